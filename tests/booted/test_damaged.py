"""The record of one service is damaged: every verb on it says so, and no verb on another service notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import ask, cli, is_gone, serves, standin

STATE = "/var/lib/vllm-install/bad/state.json"
# What becomes of the file, as a shell line with its path in $1; more of it in tests/verbs/test_records.py.
DAMAGE = {
    "garbage": 'head -c 4096 /dev/urandom >"$1"',
    "a pipe": 'rm "$1"; mkfifo "$1"',
    "of another user": 'chown nobody "$1"',
}
ON_IT = (
    ("status",), ("keys",), ("set-apikey",), ("keys", "revoke", "default"), ("set-context", "2048"),
    ("set", "PORT=8005"), ("upgrade",), ("rollback",), ("deploy",), ("plan",), ("uninstall", "--yes"),
    ("eject", "--yes"), ("test",),
)  # fmt: skip


@pytest.fixture(scope="module")
def host(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        bare = snapshot(machine.root)
        cli(machine, "deploy", *standin(standin_wheels), "--service", "good")
        cli(machine, "deploy", *standin(standin_wheels), "--service", "bad", "--port", "8001")
        yield machine
        for service in ("bad", "good"):
            cli(machine, "uninstall", "--yes", "--purge", "--service", service)
        is_gone(machine, bare, ("good", "bad"))


@pytest.fixture
def machine(host: Machine) -> Iterator[Machine]:
    host.shell(f"cp -a {STATE} /root/state.json")
    yield host
    host.shell(f"rm -rf {STATE}; mv /root/state.json {STATE}")
    assert cli(host, "deploy", "--service", "bad", "--json").changes == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damaged_record(machine: Machine, damage: str) -> None:
    machine.run("sh", "-euc", DAMAGE[damage], "sh", STATE)
    for verb in ON_IT if damage == "a pipe" else ON_IT[:6]:
        done = cli(machine, *verb, "--service", "bad", code=3, timeout=60)
        assert STATE in done.err, (verb, done)
    assert "[record-damaged]" in cli(machine, "doctor", "--service", "bad", code=8).out

    # Another service, and what is about all of them.
    key = cli(machine, "set-apikey", "--service", "good").key
    for verb in (("status",), ("doctor",), ("plan",), ("deploy",), ("keys",)):
        cli(machine, *verb, "--service", "good", timeout=60)
    cli(machine, "models", "list")
    rows = {row["service"]: row for row in cli(machine, "list", "--json").json}
    assert (rows["good"]["problem"], rows["bad"]["problem"]["id"]) == (None, "record-damaged")
    # Nobody knows what it needs, so nothing that it may need goes.
    for verb in (("prune",), ("models", "prune")):
        assert STATE in cli(machine, *verb, "--yes", code=3).err
    serves(machine, key)
    assert ask(machine, "GET", "/v1/models", port=8001).status == 401, "it serves on"


def test_what_a_newer_tool_manages_is_looked_at_and_removed(machine: Machine, standin_wheels: Path) -> None:
    before = snapshot(machine.root)
    key = cli(machine, "deploy", *standin(standin_wheels), "--service", "new", "--port", "8002").key
    record = STATE.replace("bad", "new")
    machine.run("sed", "-i", 's/"version": [0-9]*/"version": 99/', record)
    assert cli(machine, "status", "--service", "new", "--json").json["ready"]
    assert "[record-newer]" in cli(machine, "doctor", "--service", "new").out
    for verb in (("keys",), ("test",), ("client-config", "--format", "env")):
        cli(machine, *verb, "--service", "new")
    for verb in (("set-apikey",), ("set", "PORT=8005"), ("deploy",)):
        assert "by a newer version" in cli(machine, *verb, "--service", "new", code=3).err
    serves(machine, key, 8002)
    cli(machine, "uninstall", "--yes", "--service", "new")
    assert difference(before, snapshot(machine.root)) == []


def test_a_service_comes_changes_and_goes_beside_a_damaged_record(machine: Machine, standin_wheels: Path) -> None:
    machine.run("sh", "-euc", DAMAGE["garbage"], "sh", STATE)
    key = cli(machine, "deploy", *standin(standin_wheels), "--service", "new", "--port", "8002").key
    cli(machine, "set-context", "2048", "--service", "new")
    serves(machine, key, 8002)
    cli(machine, "rollback", "--service", "new")
    engines = machine.run("ls", "/opt/vllm-install/engines").stdout
    cli(machine, "uninstall", "--yes", "--purge", "--service", "new")
    assert machine.run("ls", "/opt/vllm-install/engines").stdout == engines
    assert json.loads(cli(machine, "status", "--service", "good", "--json").out)["ready"]


def test_of_all_services_each_has_its_turn_and_the_worst_exit_code_counts(machine: Machine) -> None:
    machine.run("sh", "-euc", DAMAGE["garbage"], "sh", STATE)
    machine.shell("sed -i 's/^#*DRAIN_SECONDS=.*/DRAIN_SECONDS=7/' /etc/vllm-install/good.env")
    done = cli(machine, "deploy", "--all", "--json", code=3)
    bad, good = json.loads("[" + done.out.replace("}\n{", "},{") + "]")
    assert (bad["service"], bad["error"]["exit_code"]) == ("bad", 3)
    assert STATE in bad["error"]["message"]
    assert (good["service"], bool(good["changes"])) == ("good", True)
    done = cli(machine, "deploy", "--all", code=3)
    assert "good is up to date and answers" in done.out
    assert STATE in done.err
    assert "nothing to change" in cli(machine, "deploy", "--all", "--dry-run", code=3).out
