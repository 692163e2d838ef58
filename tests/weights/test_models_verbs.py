"""models list and models prune: what is here, who needs it, and what goes when nobody does, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import steps
from installer.spec.model import Model
from installer.spec.records import save_state
from installer.spec.state import State
from installer.spec.target import Target
from installer.units.render import render
from installer.weights import inventory
from installer.weights.inventory import RemoveModel, plan_prune, prune
from installer.weights.models import resolve
from installer.weights.wanted import is_present
from tests.kit.boot.surroundings import in_own_mounts
from tests.kit.hub import Hub
from tests.kit.targets import target
from tests.kit.weights import LAYOUT, REPO, SHARD, WANTED, checkpoint, due, pull, settings

OTHER = "Org/Other"


def served_by(host: Host, service: str, *, proved: Model, previous: Model | None = None) -> State:
    """A service as it is after its deploys, with these models."""
    layout = Layout(service)

    def of(model: Model) -> Target:
        return replace(target(replace(settings(model=model.repo), service=service)), model=model)

    state = State(service, proved=of(proved), previous=of(previous) if previous else None)
    save_state(host, layout, state)
    host.write(layout.unit, render(of(proved), layout)[layout.unit].text)
    return state


def two_commits(server: Hub, host: Host) -> tuple[Model, Model]:
    """They share one shard and all small files but config.json."""
    server.add(REPO, checkpoint())
    first = pull(server, host)
    server.add(REPO, checkpoint() | {SHARD: checkpoint(seed=2)[SHARD]})
    return first, pull(server, host)


def on_disk(host: Host) -> int:
    real = host.at(LAYOUT.hub)
    return sum(path.lstat().st_size for path in real.rglob("*") if path.is_file() and not path.is_symlink())


# list


def test_a_model_is_listed_with_all_that_is_known(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    served_by(host, "qwen3vl", proved=model)
    (found,) = inventory.models(host)
    size = sum(len(checkpoint()[name]) for name in WANTED)
    assert (found.model, found.commit, found.path, found.bytes, found.missing) == (
        REPO,
        model.commit,
        model.path,
        size,
        0,
    )
    assert (found.source, found.revisions, found.used_by) == (server.url, ("main",), ("qwen3vl",))
    assert found.last_used is not None
    json.dumps(found.to_json())


def test_what_has_only_begun_is_listed_as_incomplete(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint(size=20_000_000))
    model = pull(server, host)
    digest = (host.at(model.path) / SHARD).resolve()
    digest.unlink()
    (found,) = inventory.models(host)
    assert found.missing == len(checkpoint(size=20_000_000)[SHARD])
    assert found.to_json()["complete"] is False


def test_what_another_client_fetched_is_listed_too(server: Hub, host: Host) -> None:
    from huggingface_hub import snapshot_download

    server.add(REPO, checkpoint())
    snapshot_download(REPO, cache_dir=host.at(LAYOUT.hub), endpoint=server.url, token=False)
    (found,) = inventory.models(host)
    assert (found.model, found.source, found.used_by) == (REPO, "another client", ())


def test_everybody_who_needs_a_model_is_named(server: Hub, host: Host) -> None:
    first, second = two_commits(server, host)
    served_by(host, "qwen3vl", proved=second, previous=first)
    served_by(host, "coder", proved=second)
    used = {found.commit: set(found.used_by) for found in inventory.models(host)}
    assert used == {first.commit: {"qwen3vl (rollback)"}, second.commit: {"qwen3vl", "coder"}}


# prune


def test_nothing_that_any_service_needs_goes(server: Hub, host: Host) -> None:
    first, second = two_commits(server, host)
    served_by(host, "qwen3vl", proved=second, previous=first)
    assert plan_prune(host) == []


def test_a_commit_that_nobody_needs_goes_and_shared_blobs_stay(server: Hub, host: Host) -> None:
    first, second = two_commits(server, host)
    served_by(host, "qwen3vl", proved=second)
    before = on_disk(host)
    (change,) = plan_prune(host)
    assert (change.commits, on_disk(host)) == ((first.commit,), before)
    prune(host, Report())
    assert before - on_disk(host) == change.bytes
    assert change.bytes > len(checkpoint()[SHARD])
    assert not host.exists(first.path)
    assert is_present(second, host)
    assert due(second, host) == [], "what is left is still known to be right"
    assert plan_prune(host) == []


def test_a_model_that_nobody_needs_goes_whole(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.add(OTHER, checkpoint(seed=4))
    kept = pull(server, host)
    pull(server, host, model=OTHER)
    served_by(host, "qwen3vl", proved=kept)
    before = on_disk(host)
    (change,) = prune(host, Report())
    assert change.describe().startswith(f"remove {OTHER} at ")
    assert before - on_disk(host) == change.bytes
    assert [found.model for found in inventory.models(host)] == [REPO]


def test_a_download_that_was_cut_off_in_a_deploy_is_needed(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    save_state(host, LAYOUT, State("qwen3vl", pending="deploy", pending_model=str(model.path)))
    (found,) = inventory.models(host)
    assert found.used_by == ("qwen3vl (unfinished deploy)",)
    assert plan_prune(host) == []


def test_what_is_being_downloaded_stays(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    fault = server.fail(f"/lfs/.*{SHARD}", cut=1000, hold=threading.Event())
    download = threading.Thread(target=pull, args=(server, host))
    download.start()
    assert fault.reached.wait(180)
    with pytest.raises(Refused, match="being downloaded"):
        prune(host, Report())
    assert fault.hold is not None
    fault.hold.set()
    download.join()
    assert is_present(resolve(settings(server), host, LAYOUT), host)


def test_what_changed_since_the_plan_stays(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    (change,) = plan_prune(host)
    served_by(host, "qwen3vl", proved=model)
    with pytest.raises(Refused, match="changed just now"):
        change.apply(host, Report())
    assert is_present(model, host)


def test_a_blob_with_another_name_elsewhere_frees_nothing(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    blob = (host.at(model.path) / SHARD).resolve()
    (change,) = plan_prune(host)
    os.link(blob, host.root / "elsewhere")
    (less,) = plan_prune(host)
    assert change.bytes - less.bytes == len(checkpoint()[SHARD])


def test_the_last_beginnings_go_too(server: Hub, host: Host) -> None:
    first, second = two_commits(server, host)
    served_by(host, "qwen3vl", proved=second, previous=first)
    left = host.at(second.folder / "blobs" / f"{'0' * 64}.incomplete")
    left.write_bytes(b"x" * 10_000)
    (change,) = prune(host, Report())
    assert (change.commits, change.bytes, left.exists()) == ((), 10_000, False)


def test_only_the_model_of_a_command_line_counts() -> None:
    words = ["python", "launch", "--", "serve", "/srv/model", "--x", "/etc/passwd", "--y", f"{LAYOUT.hub}/models--a/b"]
    assert inventory._served(words) == [Path("/srv/model"), LAYOUT.hub / "models--a/b"]


def test_uninstall_purge_takes_what_only_this_service_needed(server: Hub, host: Host) -> None:
    first, second = two_commits(server, host)
    mine = served_by(host, "qwen3vl", proved=second, previous=first)
    served_by(host, "coder", proved=second)
    changes = [c for c in steps.removal(LAYOUT, mine, host, weights=True, engine=False) if isinstance(c, RemoveModel)]
    assert [change.commits for change in changes] == [(first.commit,)]
    for change in changes:
        change.apply(host, Report())
    assert is_present(second, host)


# The command line, with a cache of its own mounted where the host's would be


@pytest.fixture
def cache(server: Hub, tmp_path: Path) -> Path:
    server.add(REPO, checkpoint())
    return tmp_path


def run(cache: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    script = """
        for dir in /etc/vllm-install /var/lib/vllm-install; do [ ! -d $dir ] || mount -t tmpfs none $dir; done
        mount -t tmpfs none /var/cache && mkdir /var/cache/vllm-install
        mount --bind "$1" /var/cache/vllm-install && shift && exec "$@"
    """
    ran = subprocess.run(
        in_own_mounts(script, cache, sys.executable, "-m", "installer", "models", *args),
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert ran.returncode == code, f"{ran.stdout}\n{ran.stderr}"
    assert "Traceback" not in ran.stderr
    return ran


@pytest.mark.root
def test_the_verbs_from_the_command_line(server: Hub, cache: Path) -> None:
    assert "no models here yet" in run(cache, "list").stderr
    assert json.loads(run(cache, "verify", "--json").stdout) == []
    assert "not in the cache" in run(cache, "verify", REPO, code=5).stderr
    run(cache, "pull", REPO, "--hf-endpoint", server.url, "--quiet")
    (found,) = json.loads(run(cache, "list", "--json").stdout)
    assert (found["model"], found["complete"], found["used_by"]) == (REPO, True, [])
    assert "no service" in run(cache, "list").stdout

    said = run(cache, "verify", REPO).stdout
    assert f"{REPO} at " in said
    assert ": right" in said
    assert "model_type qwen3, vocab_size 320" in said
    (blob,) = cache.glob(f"hub/models--Org--Tiny/snapshots/*/{SHARD}")
    blob.resolve().write_bytes(b"x" * blob.stat().st_size)
    failed = run(cache, "verify", REPO, code=5)
    assert f"wrong bytes: {SHARD}" in failed.stdout
    assert "--repair" in failed.stderr
    (bad,) = json.loads(run(cache, "verify", REPO, "--json", code=5).stdout)
    assert (bad["ok"], bad["wrong"]) == (False, [SHARD])
    repaired = run(cache, "verify", REPO, "--repair", "--hf-endpoint", server.url)
    assert f"wrong bytes: {SHARD}; fetched anew" in repaired.stdout

    # Somebody runs it without us.
    with subprocess.Popen([sys.executable, "-c", "input()", found["path"]], stdin=subprocess.PIPE) as user:
        (needed,) = json.loads(run(cache, "list", "--json").stdout)
        assert needed["used_by"][0].startswith(f"pid {user.pid} ")
        assert run(cache, "prune", "--yes").stdout == "nothing to change\n"
        user.communicate(b"\n")

    planned = json.loads(run(cache, "prune", "--dry-run", "--json").stdout)["changes"]
    assert [change["kind"] for change in planned] == ["remove-model"]
    for words in ((), ("--json",)):
        refused = run(cache, "prune", *words, code=3)
        assert "with --yes" in refused.stdout + refused.stderr
    assert "would be freed" in run(cache, "prune", "--dry-run").stderr
    assert json.loads(run(cache, "list", "--json").stdout)
    done = json.loads(run(cache, "prune", "--yes", "--json").stdout)["changes"]
    assert done == planned
    assert json.loads(run(cache, "list", "--json").stdout) == []
    assert run(cache, "prune", "--yes").stdout == "nothing to change\n"


def test_no_repair_is_proposed_for_a_directory_of_which_nobody_knows_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "model").mkdir()
    failed = run(tmp_path / "cache", "verify", str(tmp_path / "model"), code=5)
    assert "NOT right" in failed.stdout
    assert "copy it anew from where it came" in failed.stderr
    assert "--repair" not in failed.stderr
