"""A life in a container, on a booted Debian 13: the real vLLM in an image that was made here, run by podman."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.kit.boot.debian import NSPAWN, debian13
from tests.kit.boot.machine import STORE, Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import (
    cli,
    engine_pid,
    is_gone,
    is_up,
    main_pid,
    serves,
    until,
)
from tests.kit.load import Plan, load

FILE = "/srv/vllm.tar"
BROKEN = "localhost/broken:1"
START = 240  # seconds
STORAGE = "/var/lib/containers"
# An image of links and mount points. What fills it are this host's /usr and the engine at hand, which every container
# of the machine is given by podman's own configuration: so nobody has to copy gigabytes into a layer.
IMAGE = f"""
umount /sys/kernel/debug /sys/kernel/tracing  # below a mount of its own, as nspawn makes it, they are in the way of crun
mkdir -p /etc/containers /var/tmp/image /srv
printf '[containers]\\nvolumes = ["/host-usr:/usr:ro", "/engine:/opt/engine:ro"]\\n' >/etc/containers/containers.conf
cd /var/tmp/image
mkdir -p usr opt/engine tmp run proc sys dev etc var
for each in bin sbin lib lib64; do ln -s usr/$each $each; done
libraries=LD_LIBRARY_PATH=/usr/lib/$(uname -m)-linux-gnu
made() {{
    tar --create . | podman import --quiet --change 'ENV PATH=/opt/engine/bin:/usr/bin' --change "ENV $libraries" "$@"
}}
made - localhost/vllm:1
podman save --quiet --output {FILE} localhost/vllm:1
podman rmi --force localhost/vllm:1
made --change 'ENV VLLM_CPU_KVCACHE_SPACE=much' - {BROKEN}
"""


@pytest.fixture(scope="module")
def machine(cpu_engine: str) -> Iterator[Machine]:
    inside = (f"--bind-ro={STORE / 'engines' / cpu_engine}:/engine", "--bind-ro=/usr:/host-usr:norbind")
    with Machine(system=debian13(), nspawn=(*NSPAWN, *inside)) as machine:
        machine.shell(IMAGE)
        yield machine


def podman(machine: Machine, *words: str) -> list[str]:
    return machine.run("podman", *words).stdout.splitlines()


def kept(machine: Machine) -> list[list[str]]:
    """All that podman has."""
    return [
        podman(machine, "ps", "--all", "--quiet", "--external"), podman(machine, "volume", "ls", "--quiet"),
        sorted(podman(machine, "images", "--all", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}")),
    ]  # fmt: skip


def status_of(machine: Machine, pid: int) -> dict[str, str]:
    lines = machine.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_a_life_in_a_container(machine: Machine) -> None:
    bare, images = snapshot(machine.root, [STORAGE]), kept(machine)
    options = ("--model", "builtin:tiny", "--engine", "cpu", "--gpu-memory-utilization", "0.1", "--offline")
    done = cli(machine, "deploy", "--runtime", "podman", "--image", FILE, *options, timeout=600)
    serves(machine, done.key)
    assert cli(machine, "deploy", "--json").changes == []

    # nobody is root in there, and nobody can become it
    user = machine.run("id", "-u", "vllm-qwen3vl").stdout.strip()
    inside = status_of(machine, engine_pid(machine))
    assert set(inside["Uid"].split()) == {user}
    assert (inside["CapPrm"], inside["CapBnd"], inside["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    mapped = machine.run("cat", f"/proc/{engine_pid(machine)}/uid_map").stdout.split()
    assert mapped[:2] == ["0", str(0x60000000)], "root of the image is nobody outside"

    with load(Plan(8000, done.key, rate=2, keep=1), machine.start) as running:
        running.wait_for(4)
        first = main_pid(machine)
        new = cli(machine, "set-apikey", "--keep-old", "10m").key
        serves(machine, new)
        assert main_pid(machine) == first
        machine.run("systemctl", "restart", "qwen3vl", timeout=START)
        assert main_pid(machine) != first
        running.wait_for(4)
    print("restart under load", json.dumps(running.result.to_json()))
    assert running.result.failures == {}

    second = main_pid(machine)
    machine.run("kill", "-KILL", str(engine_pid(machine)))
    until("another", lambda: main_pid(machine) not in (0, second) and is_up(machine), machine, START)
    serves(machine, new)

    third = main_pid(machine)
    refused = cli(machine, "set", f"IMAGE={BROKEN}", code=6, timeout=600)
    assert "invalid literal for int" in refused.err, refused.err
    assert main_pid(machine) not in (0, third)
    serves(machine, new)
    assert cli(machine, "deploy", "--json").changes == []

    cli(machine, "uninstall", "--yes", "--purge")
    is_gone(machine, bare)
    assert kept(machine) == images
