"""What an earlier tool deployed, the tool of today looks at, changes and removes, with no restart that is not due."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.boot.surroundings import REPO
from tests.kit.life import ask, cli, is_gone, main_pid, serves, standin, until

RELEASED = sorted((REPO / "tests/fixtures/released").glob("*.tar.xz"))
EARLIER = "/root/earlier"
EARLIER_CLI = (sys.executable, "-m", "installer")
IN_EARLIER = {"PYTHONPATH": EARLIER}
STATE = "/var/lib/vllm-install/qwen3vl/state.json"
FAULTS = "/var/cache/qwen3vl/standin"
UNIT = "/etc/systemd/system/qwen3vl.service"


@pytest.fixture(scope="module", params=RELEASED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """With an earlier tool beside that of today."""
    with Machine() as machine:
        machine.at(EARLIER).mkdir()
        machine.run("tar", "-xJf", request.param, "-C", EARLIER)
        yield machine


def earlier(machine: Machine, *args: str) -> Any:
    """Run the command line of the earlier tool; what it answers as JSON."""
    return json.loads(machine.run(*EARLIER_CLI, *args, "--json", env=IN_EARLIER).stdout)


def test_its_service_is_looked_at_changed_and_removed(machine: Machine, standin_wheels: Path) -> None:
    machine.shell("mkdir -p /etc/sysusers.d")  # the earlier tool did not write down that it made it
    bare = snapshot(machine.root)
    key = earlier(machine, "deploy", *standin(standin_wheels), "--vllm-version", "0.31.0")["api_key"]
    pid, record, before = main_pid(machine), machine.at(STATE).read_text(), earlier(machine, "status")

    # To look at it changes nothing, and shows what the earlier tool showed.
    shown = cli(machine, "status", "--json").json
    for name in ("pid", "model", "engine", "vllm_version", "context", "address", "ready", "keys", "last_changes"):
        assert shown[name] == before[name], name
    for verb in (("list",), ("keys",), ("plan",), ("test",)):
        cli(machine, *verb)
    assert {"runtime-missing", "runtime-changed", "restart-due", "unit-edited"}.isdisjoint(findings(machine))
    text = machine.at(UNIT).read_text()
    machine.write(UNIT, text.replace("UNIT_DIGEST=", "UNIT_DIGEST=x"))
    assert "restart-due" in findings(machine), "it is no longer what the process was started from"
    machine.write(UNIT, text)
    assert (machine.at(STATE).read_text(), main_pid(machine)) == (record, pid)

    # A key needs no restart.
    key = cli(machine, "set-apikey").key
    assert main_pid(machine) == pid
    serves(machine, key)

    # A deploy without a change is due to restart where the unit, with the programs it names, is another one now.
    pid = is_restarted_if_due(machine, pid)
    serves(machine, key)
    assert cli(machine, "deploy", "--json").changes == []

    # What asks for a restart gets one, and an undone one gets it back.
    cli(machine, "set", "MAX_MODEL_LEN=2048")
    assert main_pid(machine) != pid
    assert ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"] == 2048
    cli(machine, "upgrade", "--vllm-version", "0.32.0")
    assert cli(machine, "status", "--json").json["vllm_version"] == "0.32.0"
    cli(machine, "rollback")
    assert cli(machine, "status", "--json").json["vllm_version"] == "0.31.0"
    serves(machine, key)
    cli(machine, "uninstall", "--yes", "--purge")
    is_gone(machine, bare)


def findings(machine: Machine) -> set[str]:
    return {finding["id"] for finding in json.loads(machine.cli("doctor", "--json", check=False).stdout)["findings"]}


def is_restarted_if_due(machine: Machine, pid: int) -> int:
    text = machine.at(UNIT).read_text()
    changes = cli(machine, "deploy", "--json").changes
    is_due = machine.at(UNIT).read_text() != text
    assert [change["kind"] for change in changes if change["kind"] == "restart"] == ["restart"] * is_due
    assert (main_pid(machine) != pid) == is_due
    return main_pid(machine)


def test_what_it_was_cut_off_in_is_undone(machine: Machine, standin_wheels: Path) -> None:
    bare = snapshot(machine.root)
    earlier(machine, "deploy", *standin(standin_wheels))
    machine.write(FAULTS, "stall=load")  # so that it is not done when it is killed
    with machine.start(*EARLIER_CLI, "set-context", "2048", env=IN_EARLIER) as cut:
        until("it is at it", lambda: json.loads(machine.at(STATE).read_text())["pending"], machine)
        os.killpg(cut.pid, signal.SIGKILL)
    machine.at(FAULTS).unlink()
    assert cli(machine, "status", "--json").json["pending"] == "set-context 2048"
    cli(machine, "set", "DRAIN=7")  # of the service as it was, not of what was cut off
    key = cli(machine, "set-apikey").key
    assert ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"] == 1024
    changes = [(each["what"], each["outcome"]) for each in cli(machine, "status", "--json").json["last_changes"]]
    assert ("set-context 2048", "undone: cut off") in changes
    cli(machine, "uninstall", "--yes", "--purge")
    is_gone(machine, bare)
