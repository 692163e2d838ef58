"""The real vLLM in a container, on a Debian 13 that has podman and no Python packages: its whole life, in order.

The image is built from nothing, without a network. What fills it are this host's /usr and the engine at hand, which
every container of the machine is given by podman's own configuration: so nobody copies gigabytes into a layer.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.boot.debian import debian
from tests.kit.boot.machine import STORE, Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.boot.surroundings import REPO
from tests.kit.life import cli, engine_pid, is_gone, is_up, main_pid, serves, unit, until
from tests.kit.load import Plan, load
from tests.kit.memory import share
from tests.vllm.test_try_real import passes

BUNDLE, BROKEN = "/srv/vllm.bundle", "/srv/broken.tar"
FIRST, OTHER, FLOOD = "localhost/vllm:1", "localhost/vllm:2", "localhost/flood:1"
UNIT = "/etc/systemd/system/qwen3vl.service"
DROP_IN = "/run/systemd/system/qwen3vl.service.d"
START = 240  # seconds
# What code in the container would have root run: podman takes its runtime from the configuration in its home.
PLANTED = """
cd /var/cache/qwen3vl; mkdir -p .config/containers
printf '#!/bin/sh\\nid -u >>/var/cache/qwen3vl/ran\\nexec crun "$@"\\n' >runtime; chmod 755 runtime
printf '[engine.runtimes]\\ncrun = ["/var/cache/qwen3vl/runtime"]\\n' >.config/containers/containers.conf
"""
STORAGE = "/var/lib/containers"
SITE = "/usr/local/lib/python3.13/dist-packages"
PACKAGES = ("podman", "crun", "dbus", "procps", "python3")
# What podman needs beyond a machine's usual rights: a fuse device is looked for, keyrings and BPF are used.
RIGHTS = (
    "--capability=all",
    "--drop-capability=CAP_SYS_MODULE",
    "--system-call-filter=@keyring bpf",
    "--bind=/dev/fuse",
)
COMMAND = '#!/bin/sh\nexec python3 -m installer "$@"\n'
IMAGES = f"""
umount /sys/kernel/debug /sys/kernel/tracing  # as nspawn mounts them, they are in the way of crun
mkdir -p /etc/containers /var/tmp/image /srv
printf '[containers]\\nvolumes = ["/host-usr:/usr:ro", "/engine:/opt/engine:ro"]\\n' >/etc/containers/containers.conf
cd /var/tmp/image
mkdir -p usr opt/engine tmp run proc sys dev etc var
for each in bin sbin lib lib64; do ln -s usr/$each $each; done
libraries=LD_LIBRARY_PATH=/usr/lib/$(uname -m)-linux-gnu
made() {{
    tar --create . | podman import --quiet --change 'ENV PATH=/opt/engine/bin:/usr/bin' --change "ENV $libraries" "$@"
}}
made - {FIRST}
made --change 'ENV OTHER=1' - {OTHER}
made --change 'ENV VLLM_CPU_KVCACHE_SPACE=much' - localhost/broken:1
podman save --quiet --output {BROKEN} localhost/broken:1
podman rmi --force localhost/broken:1
printf '#!/bin/sh\\nexec yes\\n' >opt/python3; chmod 755 opt/python3
made --change 'ENV PATH=/opt:/usr/bin' - {FLOOD}
"""


@contextlib.contextmanager
def booted(cpu_engine: str) -> Iterator[Machine]:
    """With this checkout, the packages that it needs for the Python that is there, and images."""
    inside = (f"{STORE / 'engines' / cpu_engine}:/engine", "/usr:/host-usr:norbind", f"{REPO}:{REPO}:norbind")
    binds = [f"--bind-ro={each}" for each in inside]
    with Machine(
        system=debian("trixie", "podman", "crun", "dbus", "procps", "python3"), nspawn=(*RIGHTS, *binds)
    ) as machine:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        asked = ["--python-version", "3.13", "--requirement", REPO / "packages/requirements.txt"]
        subprocess.run([*pip, "--target", machine.at(SITE), *asked], check=True)
        machine.write("/usr/local/bin/vllm-install", COMMAND, 0o755)
        machine.shell(IMAGES)
        packed = ("--runtime", "podman", "--image", FIRST, "--model", "builtin:tiny", "--engine", "cpu")
        cli(machine, "bundle", "create", BUNDLE, *packed, "--no-tool")
        machine.run("podman", "rmi", "--force", FIRST)
        yield machine


@pytest.fixture(scope="module")
def machine(cpu_engine: str) -> Iterator[Machine]:
    with booted(cpu_engine) as machine:
        yield machine


def podman(machine: Machine, *words: str) -> list[str]:
    return machine.run("podman", *words).stdout.splitlines()


def kept(machine: Machine) -> list[list[str]]:
    """All that podman has."""
    return [
        podman(machine, "ps", "--all", "--external", "--format", "{{.ID}} {{.Names}} {{.Status}}"),
        podman(machine, "volume", "ls", "--quiet"),
        sorted(podman(machine, "images", "--all", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}")),
    ]  # fmt: skip


def status_of(machine: Machine, pid: int) -> dict[str, str]:
    lines = machine.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def variables(machine: Machine) -> list[str]:
    """Of the engine: by those of its image it is known which image serves."""
    return machine.run("cat", f"/proc/{engine_pid(machine)}/environ").stdout.split("\0")


def only_keys_open(change: dict[str, Any]) -> dict[str, Any]:
    """With the digests of keys as a plan shows them, which has not made any."""
    text = re.sub(r"sha256:[0-9a-f]{64}( |$)", r"sha256:MADE-BY-DEPLOY\1", change.get("text", ""), flags=re.MULTILINE)
    return {**change, "text": text} if change.get("path") == UNIT else change


def is_back(machine: Machine, pid: int, key: str) -> None:
    until("another", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine, START)
    serves(machine, key)


@pytest.fixture(scope="module")
def before(machine: Machine) -> tuple[dict[str, str], list[list[str]]]:
    """What is on the disk, and what podman has: among it somebody's container of the service's name."""
    machine.run("podman", "create", "--name=qwen3vl", OTHER, "true")
    return snapshot(machine.root, [STORAGE]), kept(machine)


@pytest.fixture(scope="module")
def key(machine: Machine, before: tuple[dict[str, str], list[list[str]]]) -> str:
    """Of the service, which was planned and deployed from a bundle that has the image."""
    options = (
        "--bundle",
        BUNDLE,
        "--gpu-memory-utilization",
        share(),
        "--hold",
        "600",
        "--json",
        "--",
        "--enforce-eager",
    )
    planned = cli(machine, "plan", *options).changes
    done = cli(machine, "deploy", *options, timeout=600)
    assert [only_keys_open(change) for change in done.changes] == planned
    assert cli(machine, "deploy", "--json").changes == []
    return done.key


def test_nobody_in_the_container_is_root_or_can_become_it(machine: Machine, key: str) -> None:
    serves(machine, key)
    user = machine.run("id", "-u", "vllm-qwen3vl").stdout.strip()
    inside = status_of(machine, engine_pid(machine))
    assert set(inside["Uid"].split()) == {user}
    assert (inside["CapPrm"], inside["CapBnd"], inside["NoNewPrivs"], inside["Seccomp"]) == (
        "0" * 16,
        "0" * 16,
        "1",
        "2",
    )
    mapped = machine.run("cat", f"/proc/{engine_pid(machine)}/uid_map").stdout.split()
    assert mapped[:2] == ["0", str(0x60000000)], "root of the image is nobody outside"
    passes(cli(machine, "test", "--json").json)
    cli(machine, "doctor")


def test_a_key_and_the_image_change_under_load_and_nobody_is_refused(machine: Machine, key: str) -> None:
    plan = Plan(8000, key, rate=1, keep=1, patience=400, tokens=64)
    with load(plan, lambda _, *words: machine.start("python3", *words)) as running:
        running.wait_for(4)
        first = main_pid(machine)
        serves(machine, cli(machine, "set-apikey", "--keep-old", "1h").key)
        assert main_pid(machine) == first
        cli(machine, "set", f"IMAGE={OTHER}", timeout=600)
        running.wait_for(4)
    print("another image under load", json.dumps(running.result.to_json()))
    assert running.result.failures == {}
    assert main_pid(machine) != first
    assert "OTHER=1" in variables(machine)


def test_an_image_that_fails_is_undone_and_rollback_leads_back(machine: Machine, key: str) -> None:
    pid = main_pid(machine)
    refused = cli(machine, "set", f"IMAGE={BROKEN}", code=6, timeout=600)
    assert re.search("did not come up .* validation error .* is back as it was", refused.err), refused.err
    assert main_pid(machine) not in (0, pid)
    serves(machine, key)
    assert "OTHER=1" in variables(machine)
    assert cli(machine, "deploy", "--json").changes == []

    cli(machine, "rollback", timeout=600)
    serves(machine, key)
    assert "OTHER=1" not in variables(machine)


def test_an_image_that_prints_without_an_end_is_ended(machine: Machine, key: str) -> None:
    refused = cli(machine, "set", f"IMAGE={FLOOD}", code=4)
    assert "did not say within 300 s and 1048576 bytes what is in it, and was ended" in refused.err
    assert podman(machine, "ps", "--all", "--format", "{{.Names}}") == ["qwen3vl", "vllm-install-qwen3vl"]
    serves(machine, key)


def test_what_is_stopped_or_taken_away_by_hand_comes_back(machine: Machine, key: str) -> None:
    machine.shell(f"mkdir -p {DROP_IN}; printf '[Service]\\nWatchdogSec=40\\n' >{DROP_IN}/own.conf")
    machine.run("systemctl", "daemon-reload")
    pid = main_pid(machine)
    machine.run("podman", "rm", "--force", "--time=0", "vllm-install-qwen3vl")
    is_back(machine, pid, key)

    pid = main_pid(machine)
    machine.run("kill", "-STOP", str(engine_pid(machine)))
    is_back(machine, pid, key)
    journal = machine.journal("--unit=qwen3vl").rpartition("makes no progress")[2]
    assert "most recent call first" in journal, "no stacks"


def test_a_stop_ends_what_has_begun_to_start(machine: Machine, key: str) -> None:
    machine.run("systemctl", "restart", "--no-block", "qwen3vl")
    until("it starts", lambda: unit(machine, "StatusText")["StatusText"] == "starting the engine", machine, START)
    machine.run("systemctl", "stop", "qwen3vl")
    assert unit(machine, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_what_podman_did_not_live_to_take_away_goes_and_root_runs_nothing_of_the_services(
    machine: Machine, key: str
) -> None:
    machine.shell(f"setpriv --reuid=vllm-qwen3vl --regid=vllm-qwen3vl --clear-groups sh -euc {shlex.quote(PLANTED)}")
    machine.run("systemctl", "start", "--no-block", "qwen3vl")
    until("a container", lambda: podman(machine, "ps", "--quiet"), machine, START)
    pid = main_pid(machine)
    machine.run("kill", "-KILL", str(pid))
    until("another", lambda: main_pid(machine) not in (0, pid), machine, START)
    assert not machine.at("/var/cache/qwen3vl/ran").exists(), "root ran it"
    machine.run("systemctl", "stop", "qwen3vl")


def test_uninstalling_leaves_nothing_neither_on_the_disk_nor_with_podman(
    machine: Machine, key: str, before: tuple[dict[str, str], list[list[str]]]
) -> None:
    disk, images = before
    cli(machine, "uninstall", "--yes", "--purge")
    is_gone(machine, disk, beside=[STORAGE])
    assert kept(machine) == images
