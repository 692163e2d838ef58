"""Two machines with a network between them, each with a real sshd: what is typed on one is done on both, or on none."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.hosts import SUDOERS, hosts
from tests.kit.boot.machine import Machine
from tests.kit.boot.network import Network
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import chat, cli, is_up, serves, standin, until
from tests.kit.load import Load, Plan, load

RECORD = "/var/lib/vllm-install/qwen3vl/group.json"
SETTINGS = "/etc/vllm-install/qwen3vl.env"
FAULTS = "/var/cache/qwen3vl/standin"
MEMBER_DROP_IN = "/etc/systemd/system/qwen3vl@.service.d/fault.conf"
# Whatever is said to a gateway where only those of the group may speak.
KNOCK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 29500), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\\r\\n\\r\\n")
        print("heard", connection.recv(100) or "nothing")
except ConnectionResetError:
    print("heard nothing")
"""


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Network, list[Machine]]]:
    with hosts(2) as (network, machines):
        yield network, machines


def test_a_service_on_two_hosts_lives_changes_fails_and_goes(
    two: tuple[Network, list[Machine]], standin_wheels: Path
) -> None:
    (network, (one, other)), options = two, standin(standin_wheels)
    before = [snapshot(machine.root) for machine in (one, other)]

    # Refused before anything is touched, all of it at once
    refused = cli(one, "deploy", "--hosts", "gpu1,gpu2,nobody", *options, code=3)
    assert "nobody: nobody knows a host of that name" in refused.err
    other.shell("mv /root/.ssh/known_hosts /root/kept")
    assert "gpu1: its host key is not known here" in cli(other, "deploy", "--hosts", "gpu1,gpu2", code=3).err
    other.shell("mv /root/kept /root/.ssh/known_hosts")
    other.write("/etc/sudoers", SUDOERS.replace("NOPASSWD: ", ""), 0o440)
    assert "gpu2: sudo wants a password there" in cli(one, "deploy", "--hosts", "gpu1,gpu2", code=3).err
    other.write("/etc/sudoers", SUDOERS, 0o440)
    assert not one.at(RECORD).exists()

    # One command, two services with one key
    key = cli(one, "deploy", "--hosts", "gpu1,gpu2", *options).key
    for machine in (one, other):
        serves(machine, key)
        assert key not in machine.journal()
    assert [host["state"] for host in cli(other, "hosts", "--json").json["hosts"]] == ["serves", "serves"]

    # Changed from the other one, and a key rotated on both
    cli(other, "set", "PORT=8001")
    new = cli(one, "set-apikey").key
    for machine in (one, other):
        serves(machine, new, 8001)
        assert chat(machine, key, 8001).status == 401

    # The second host fails its proof: both go back
    settings = [machine.at(SETTINGS).read_text() for machine in (one, other)]
    failed = cli(one, "set", f"LISTEN_HOST={network.address(1)}", code=6)
    assert "gpu2: the successor of qwen3vl.service did not come up" in failed.err
    assert "all hosts are as they were" in failed.err
    assert [machine.at(SETTINGS).read_text() for machine in (one, other)] == settings
    for machine in (one, other):
        serves(machine, new, 8001)

    # Whoever changes both is killed when the first has it: the other one's next command undoes it
    other.write(FAULTS, "slow-start=30")  # so that it is not done before its session finds that nobody is there
    killed_when(one, "gpu2: set PORT=8002", "set", "PORT=8002")
    other.at(FAULTS).unlink()
    until("gpu2 has undone its own part", lambda: not running(other), other)
    assert "set PORT=8002 was cut off" in cli(other, "hosts", code=8).out
    assert "set PORT=8002 was cut off; undoing it on all hosts first" in cli(other, "set-context", "2048").err
    for machine in (one, other):
        serves(machine, new, 8001)

    # From now on each answers for the other, and nobody else gets in between
    cli(one, "deploy", "--hosts", "gpu1,gpu2", "--gateway-hosts", "auto", *options)
    assert network.stranger(3, sys.executable, "-c", KNOCK, network.address(1)).stdout == "heard nothing\n"

    # Each is told of from any
    shown = cli(other, "status", "--all-hosts", "--json").json["hosts"]
    assert {name: status["ready"] for name, status in shown.items()} == {"gpu1": True, "gpu2": True}
    told = cli(one, "logs", "--all-hosts", "-n", "3").out.splitlines()
    assert {line.partition(":")[0] for line in told} == {"gpu1", "gpu2"}
    assert cli(one, "usage", "--all-hosts", "--json").json["service"] == "qwen3vl"

    # No change costs a request: one that fails on the second host, an upgrade of both, one taken out and back
    with asked(one, new) as asking:
        other.write(MEMBER_DROP_IN, "[Service]\nEnvironment=VLLM_STANDIN=refuse-context=2048\n")
        assert "gpu2: asked 4096; this GPU fits 2048" in cli(one, "set-context", "4096", code=6).err
        other.at(MEMBER_DROP_IN).unlink()
        assert {cli(each, "status", "--json").json["context"] for each in (one, other)} == {2048}
        cli(other, "upgrade", "--vllm-version", "0.31.0")
        cli(other, "hosts", "drain", "gpu2")
        assert not is_up(other)
        asking.wait_for(20)
        cli(other, "hosts", "join", "gpu2")
        serves(other, new, 8001)
        asking.wait_for(20)
    assert asking.result.failures == {}

    # One loses power: what it was answering fails, nothing else, and no change is made until it is taken out
    with asked(one, new) as asking:
        network.cut(2)
        other.cut_power()
        lost_at = time.monotonic()
        asking.wait_for(150)
    print(f"{asking.result.failures} of {asking.result.asked}, longest wait {asking.result.longest_wait:.1f} s")
    assert asking.result.failed_since(lost_at) == {}
    assert all(seen.is_cut_off for seen in asking.result.failing), asking.result.failing
    network.mend(2)
    found = cli(one, "doctor", "--json", code=8).json["findings"]
    assert [finding["id"] for finding in found if finding["id"].startswith("host")] == ["host-lost"]
    assert "gpu2: it cannot be reached" in cli(one, "set-context", "1024", code=3).err
    cli(one, "hosts", "drain", "gpu2")
    cli(one, "set-context", "1024")

    # It comes back as one that was installed anew does, with nothing of ours
    other.boot()
    cli(other, "uninstall", "--yes", "--purge", "--this-host-only")
    cli(one, "hosts", "join", "gpu2")
    assert cli(other, "status", "--json").json["context"] == 1024
    serves(other, new, 8001)

    # Nothing is left on either
    cli(other, "uninstall", "--yes", "--purge")
    for machine, then in zip((one, other), before, strict=True):
        left = [line for line in difference(then, snapshot(machine.root)) if "/etc/sysusers.d" not in line]
        assert [line for line in left if "vllm" in line] == []


def test_a_host_is_let_go_while_it_serves_when_it_is_out_and_when_it_is_lost(
    two: tuple[Network, list[Machine]], standin_wheels: Path
) -> None:
    (network, (one, other)), options = two, standin(standin_wheels)
    deploy = ("deploy", "--hosts", "gpu1,gpu2", "--gateway-hosts", "auto", "--port", "8001", *options)
    key = cli(one, *deploy).key

    # One that serves: no request is lost, and each is its own from then on
    with asked(one, key) as asking:
        cli(one, "hosts", "remove", "gpu2")
        asking.wait_for(20)
    assert asking.result.failures == {}
    assert names(one) == ["gpu1"]
    assert "qwen3vl is on this host alone" in cli(other, "hosts", code=3).err
    assert not other.at("/var/lib/vllm-install/qwen3vl/group-key").exists(), "by which it would be heard"
    cli(other, "set-context", "2048")
    assert [context(machine) for machine in (one, other)] == [1024, 2048]
    for machine in (one, other):
        assert ":29500" not in machine.run("ss", "-Hltn").stdout
        serves(machine, key, 8001)

    # One that was taken out: it stays stopped, until it is told to serve for itself
    cli(one, *deploy)
    cli(one, "hosts", "drain", "gpu2")
    cli(one, "hosts", "remove", "gpu2")
    assert not is_up(other)
    cli(other, "set", "GATEWAY_HOSTS=")
    serves(other, key, 8001)

    # One that is lost: it is told when it is back, by whoever asks there
    cli(one, *deploy)
    network.cut(2)
    assert "gpu2: it cannot be reached" in cli(one, "hosts", "remove", "gpu2").err
    serves(one, key, 8001)
    network.mend(2)
    assert names(one) == names(other) == ["gpu1"]
    assert "gpu2 was let go by the other hosts" in cli(other, "set-context", "4096", code=3).err
    assert [context(machine) for machine in (one, other)] == [1024, 2048]
    cli(other, "set-context", "4096")
    assert [context(machine) for machine in (one, other)] == [1024, 4096]
    for machine in (one, other):
        cli(machine, "uninstall", "--yes", "--purge", "--this-host-only")


def test_one_model_on_both_is_changed_from_either_and_one_that_is_installed_anew_comes_back(
    two: tuple[Network, list[Machine]], standin_wheels: Path
) -> None:
    (_, (head, follower)), options = two, standin(standin_wheels)
    before = [snapshot(machine.root) for machine in (head, follower)]
    key = cli(head, "deploy", "--hosts", "gpu1,gpu2", "--mode", "span", *options).key

    def serve_together(version: str) -> None:
        shown = [cli(machine, "status", "--json").json for machine in (head, follower)]
        assert [(each["ready"], each["vllm_version"]) for each in shown] == [(True, version)] * 2
        serves(head, key)

    serve_together("0.32.0")

    # What a key may use is the head's to say, whoever says it
    cli(follower, "keys", "limit", "default", "--requests", "2/min")
    assert [chat(head, key).status for _ in range(3)][-1] == 429
    cli(head, "keys", "limit", "default", "--none")
    assert chat(head, key).status == 200

    # HTTPS on the head, and nothing there on the follower
    cli(follower, "set", "TLS=self")
    curl = (
        "curl -sS --cacert /etc/vllm-install/ca/ca.pem -o /dev/null -w '%{http_code}' https://localhost:8000/v1/models"
    )
    assert head.shell(curl).stdout == "401"
    assert head.shell(f"{curl} -H 'Authorization: Bearer {key}'").stdout == "200"
    assert ":8000" not in follower.run("ss", "-Hltn").stdout
    cli(head, "set", "TLS=none")

    # Another engine on both, and back
    cli(follower, "upgrade", "--vllm-version", "0.31.0")
    serve_together("0.31.0")
    cli(follower, "rollback")
    serve_together("0.32.0")

    # A follower that is installed anew
    assert "each of these hosts holds a part of the model" in cli(head, "hosts", "remove", "gpu2", code=3).err
    cli(follower, "uninstall", "--yes", "--purge", "--this-host-only")
    until("the head is told", lambda: not cli(head, "status", "--json").json["ready"], head)
    cli(head, "hosts", "join", "gpu2")
    serve_together("0.32.0")

    cli(follower, "uninstall", "--yes", "--purge")
    for machine, then in zip((head, follower), before, strict=True):
        left = [line for line in difference(then, snapshot(machine.root)) if "/etc/sysusers.d" not in line]
        assert [line for line in left if "vllm" in line and not line.startswith("removed ")] == []


@contextlib.contextmanager
def asked(machine: Machine, key: str) -> Iterator[Load]:
    """All the while, ten requests a second and clients that keep their connections."""
    with load(Plan(8001, key), machine.start) as asking:
        asking.wait_for(10)
        yield asking


def killed_when(machine: Machine, said: str, *words: str) -> None:
    """SIGKILL for a command, and for what leads it to other hosts, when it says so."""
    process = machine.start(sys.executable, "-m", "installer", *words)
    assert process.stderr is not None
    for line in process.stderr:
        if said in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def context(machine: Machine) -> int:
    return int(cli(machine, "status", "--json").json["context"])


def names(machine: Machine) -> list[str]:
    return [host["name"] for host in cli(machine, "hosts", "--json").json["hosts"]]


def running(machine: Machine) -> bool:
    return machine.run("pgrep", "-f", "installer.*hosts --session", check=False).returncode == 0
