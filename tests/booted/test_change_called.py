"""Changes while callers call: handed over, proved or undone, and nobody who asked was refused or cut off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.booted.test_change import context, misbehaving
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import SERVICE, cli, is_gone, main_pid, serves, standin, unit, until
from tests.kit.load import Load, Plan, load


@pytest.fixture(scope="module")
def shared(standin_wheels: Path) -> Iterator[tuple[Machine, str]]:
    with Machine() as machine:
        bare = snapshot(machine.root)
        yield machine, cli(machine, "deploy", *standin(standin_wheels)).key
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare)


@pytest.fixture
def machine(shared: tuple[Machine, str]) -> Machine:
    """The service at a context of 1024."""
    cli(shared[0], "set", "MAX_MODEL_LEN=1024", "HOLD=120")
    return shared[0]


@pytest.fixture
def key(shared: tuple[Machine, str]) -> str:
    return shared[1]


def kinds(changes: list[dict[str, Any]]) -> list[str]:
    return [change["kind"] for change in changes]


def nobody_failed(callers: Load, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen = callers.result
    with capsys.disabled():
        print(f"\n{what}: {seen.failed} of {seen.asked} failed, longest wait {seen.longest_wait:.1f} s")
    assert seen.failures == {}


def test_a_change_costs_no_request(machine: Machine, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    pid, run = main_pid(machine), unit(machine, "InvocationID")
    planned = cli(machine, "set", "MAX_MODEL_LEN=2048", "--dry-run", "--json").changes
    with load(Plan(8000, key), machine.start) as callers:
        callers.wait_for(10)
        done = cli(machine, "set-context", "2048")
        changes = cli(machine, "rollback", "--json").changes
        again = cli(machine, "rollback", "--dry-run").out
        callers.wait_for(10)
    nobody_failed(callers, "set-context, rollback", capsys)
    assert kinds(planned)[-1:] == kinds(changes)[-1:] == ["handover"]
    assert f"hand {SERVICE}.service over to its successor" in done.err
    assert f"hand {SERVICE}.service over to its successor" in again
    assert main_pid(machine) != pid
    assert unit(machine, "InvocationID") == run, "systemd has started nothing"
    assert context(machine, key) == 1024


def test_a_change_that_fails_costs_none_either(machine: Machine, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    pid = main_pid(machine)
    with load(Plan(8000, key), machine.start) as callers:
        callers.wait_for(10)
        with misbehaving(machine, "refuse-context=2000"):
            done = cli(machine, "set-context", "4096", code=6)
        callers.wait_for(10)
    nobody_failed(callers, "set-context, refused and undone", capsys)
    assert "asked 4096; this GPU fits 2000; the service is back at 1024" in done.err
    assert main_pid(machine) == pid, "nothing was restarted"
    assert unit(machine, "NeedDaemonReload") == {"NeedDaemonReload": "no"}
    assert context(machine, key) == 1024
    assert cli(machine, "deploy", "--json").changes == []


def test_who_waits_is_shown_and_nothing_is_asked_meanwhile(machine: Machine, key: str) -> None:
    with load(Plan(8000, key), machine.start) as callers:
        with misbehaving(machine, "stall=load"):
            change = machine.start(sys.executable, "-m", "installer", "set-context", "2048")
            until("callers wait", lambda: waiting(machine) > 1, machine)
            shown = cli(machine, "status", "--json").json
            assert not shown["ready"]
            assert shown["holding"]["limit"] == 120
            assert "callers wait, longest" in cli(machine, "status").out
            assert "callers-wait" in cli(machine, "doctor").out
            assert "callers wait, longest" in cli(machine, "logs", "-n", "1").err
            guest = cli(machine, "set-apikey", "--name", "guest")
            assert "is in force as soon as the service answers" in guest.err
        assert change.wait(timeout=300) == 0
    assert callers.result.failures == {}
    serves(machine, guest.key)
    cli(machine, "keys", "revoke", "guest")


def waiting(machine: Machine) -> int:
    shown = cli(machine, "status", "--json").json["holding"]
    return int(shown["waiting"]) if shown else 0


def test_without_holding_it_is_a_restart(machine: Machine, key: str) -> None:
    cli(machine, "set", "HOLD=0")
    assert kinds(cli(machine, "set", "MAX_MODEL_LEN=2048", "--json").changes)[-1:] == ["restart"]
    assert kinds(cli(machine, "set", "MAX_MODEL_LEN=1024", "HOLD=120", "--dry-run", "--json").changes)[-1] in (
        "handover", "restart",
    )  # fmt: skip
    serves(machine, key)
