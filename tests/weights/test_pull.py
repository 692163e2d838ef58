"""`models pull`, as a process, with a cache of its own mounted where the host's would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.errors import Exit
from tests.kit.boot import surroundings
from tests.kit.boot.surroundings import in_own_mounts
from tests.kit.hub import Hub
from tests.kit.weights import REPO, WANTED, checkpoint

pytestmark = pytest.mark.root


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as running:
        running.add(REPO, checkpoint())
        yield running


def pull(cache: Path, *args: str, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the verb in a mount namespace in which the host's cache and settings are empty directories."""
    script = """
        [ ! -d /etc/vllm-install ] || mount -t tmpfs none /etc/vllm-install
        mount -t tmpfs none /var/cache && mkdir /var/cache/vllm-install
        mount --bind "$1" /var/cache/vllm-install && shift && exec "$@"
    """
    command = [sys.executable, "-m", "installer", "models", "pull", *args]
    ran = subprocess.run(
        in_own_mounts(script, cache, *under, *command),
        capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(surroundings.REPO)},
    )  # fmt: skip
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def test_it_prints_where_the_model_is(server: Hub, tmp_path: Path) -> None:
    planned = pull(tmp_path, REPO, "--hf-endpoint", server.url, "--dry-run", "--json")
    assert not list(tmp_path.iterdir())
    plan = json.loads(planned.stdout)
    assert [change["kind"] for change in plan["changes"]] == ["download"]
    assert plan["bytes"] == plan["changes"][0]["bytes"] == sum(len(checkpoint()[name]) for name in WANTED)

    done = pull(tmp_path, REPO, "--hf-endpoint", server.url)
    assert (done.returncode, done.stdout) == (0, plan["path"] + "\n")
    assert "602" in done.stderr
    again = pull(tmp_path, REPO, "--offline", "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")


def test_a_cache_of_another_user_that_root_may_not_write_is_named(server: Hub, tmp_path: Path) -> None:
    """As on a network file system: root is nobody special there."""
    hub = tmp_path / "hub"
    hub.mkdir()
    os.chown(hub, 1000, 1000)
    ordinary = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
    refused = pull(tmp_path, REPO, "--hf-endpoint", server.url, under=ordinary)
    assert refused.returncode == Exit.MODEL
    assert "no permission to write /var/cache/vllm-install/hub" in refused.stderr
    assert "ls -ld /var/cache/vllm-install/hub" in refused.stderr
    assert server.sent == 0


def test_progress_for_programs_goes_to_stderr_line_by_line(server: Hub, tmp_path: Path) -> None:
    done = pull(tmp_path, REPO, "--hf-endpoint", server.url, "--json")
    assert json.loads(done.stdout)["changes"]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["event"] == "progress"
    assert events[-1]["files"] == events[-1]["files_total"] == len(WANTED)


def test_a_directory_that_is_no_model_is_not_one_to_be_had(tmp_path: Path) -> None:
    done = pull(tmp_path, "/etc")
    assert (done.returncode, done.stdout) == (5, "")
    assert "/etc/config.json is missing" in done.stderr
