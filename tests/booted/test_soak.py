"""Changes that are watched on after their proof: bad ones go back by themselves, good ones stay, also over a reboot."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import cli, is_gone, main_pid, serves, standin, unit, until
from tests.kit.load import Plan, load

pytestmark = pytest.mark.root
STATES = "/var/lib/vllm-install"


class Case(NamedTuple):
    port: int
    fault: str  # of the new generation alone, once it is night
    outcome: str
    words: str  # of the reason
    seconds: int = 120  # for which it is watched, unless something bad ends it


CASES = {
    "nothing": Case(8001, "waiting=0", "confirmed", "", 10),
    "hang": Case(8002, "hang@night", "rolled back", "it ended by itself", 300),
    "crashes": Case(8003, "die-on-completion@night", "rolled back", "it ended by itself"),
    "errors": Case(8004, "fail=2@night", "rolled back", "requests failed"),
}
REBOOTED = {  # the one that has time first
    "hang": Case(8002, "hang@night", "rolled back", "it ended by itself", 300),
    "nothing": Case(8001, "waiting=1", "confirmed", "", 10),
}
# So often it looks where a change is watched for seconds; nobody waits here as it would for one of minutes.
OFTEN = "[Timer]\nOnActiveSec=\nOnActiveSec=2s\nOnUnitInactiveSec=2s\n"
EXITS = {"confirmed": 0, "rolled back": 6}


class Host(NamedTuple):
    machine: Machine
    keys: dict[str, str]
    bare: dict[str, str]


@pytest.fixture(scope="module")
def host(standin_wheels: Path) -> Iterator[Host]:
    """Services that are looked at often, of which the one that is to hang has a quick watchdog."""
    with Machine() as machine:
        machine.write("/etc/systemd/system/vllm-soak@.timer.d/often.conf", OFTEN)
        bare = snapshot(machine.root)
        keys = {}
        for name, case in CASES.items():
            options = ("--service", name, "--port", str(case.port))
            keys[name] = cli(machine, "deploy", *standin(standin_wheels), *options).key
        machine.write("/etc/systemd/system/hang.service.d/quick.conf", "[Service]\nWatchdogSec=4\n")
        machine.run("systemctl", "daemon-reload")
        yield Host(machine, keys, bare)
        for name in CASES:
            machine.shell(f"rm -rf /etc/systemd/system/{name}.service.d")
            cli(machine, "uninstall", name, "--yes", "--purge")
        is_gone(machine, bare, CASES)


def begin(machine: Machine, name: str, case: Case) -> None:
    machine.at(f"/var/cache/{name}/night").unlink(missing_ok=True)
    done = cli(machine, "set", name, f"VLLM_ARGS=--additional-config {case.fault}", "--soak", f"{case.seconds}s")
    assert f"it is watched for {case.seconds} s more; how that ends: vllm-install soak {name} --wait" in done.err


def night(machine: Machine, name: str) -> None:
    machine.write(f"/var/cache/{name}/night", "")


def ends(machine: Machine, name: str, case: Case, key: str) -> str:
    """As it is meant to; a line of the table."""
    found = cli(machine, "soak", name, "--wait", "--json", code=EXITS[case.outcome], timeout=900).json
    assert (found["outcome"], case.words in found["bad"]) == (case.outcome, True), found
    args = json.loads(machine.at(f"{STATES}/{name}/state.json").read_text())["proved"]["settings"]["vllm_args"]
    assert (case.fault in args) == (case.outcome == "confirmed")
    serves(machine, key, case.port)
    assert cli(machine, "status", name, "--json").json["soak"]["outcome"] == case.outcome
    assert case.outcome in cli(machine, "status", name).out
    assert f"{case.outcome}" in machine.journal("--unit", name, "--output=cat")
    until("nobody looks any more", lambda: not left(machine, name), machine)
    return f"{case.fault:<24} {found['watched']:>4} s  {found['outcome']:<12} {found['bad']}"


def left(machine: Machine, name: str) -> str:
    """Of what looks at a service."""
    units = f"systemctl list-units --all --plain --no-legend 'vllm-soak@{name}.*'"
    return machine.shell(f"{units}; find /etc/systemd/system -name 'vllm-soak@{name}.*'").stdout


def test_each_fault_has_its_outcome(host: Host) -> None:
    machine = host.machine
    machine.run("systemctl", "restart", "hang")  # with a process that has the quick watchdog
    with ExitStack() as loads:
        running = {}
        for name, case in CASES.items():
            plan = Plan(case.port, host.keys[name], rate=4, keep=1, tokens=4)
            running[name] = loads.enter_context(load(plan, machine.start))
            begin(machine, name, case)
            night(machine, name)
        table = [ends(machine, name, case, host.keys[name]) for name, case in CASES.items()]
    lost = {name: seen.result.failures for name, seen in running.items()}
    print("\nfault × outcome:", *(f"  {line}; {lost[name]}" for name, line in zip(CASES, table, strict=True)), sep="\n")
    assert lost["nothing"] == {}, "neither the change nor its confirmation costs a request"
    assert {kind.partition(": ")[2] for kind in lost["errors"]} == {"500"}, "nor does the way back"
    assert not [kind for failures in lost.values() for kind in failures if "refused" in kind]


def test_a_reboot_in_between_changes_nothing_about_it(host: Host) -> None:
    machine = host.machine
    for name, case in REBOOTED.items():
        begin(machine, name, case)
    machine.reboot()
    for name in REBOOTED:
        night(machine, name)
    for name in CASES:
        until(
            f"{name} is up",
            lambda name=name: unit(machine, "ActiveState", service=name)["ActiveState"] == "active",
            machine,
        )
    table = [ends(machine, name, case, host.keys[name]) for name, case in REBOOTED.items()]
    print("\nfault × outcome, rebooted in between:", *(f"  {line}" for line in table), sep="\n")


def test_what_can_be_done_meanwhile(host: Host) -> None:
    machine, name, case = host.machine, "errors", CASES["errors"]
    begin(machine, name, Case(case.port, "waiting=2", "", "", 3600))
    pid = main_pid(machine, name)
    refused = cli(machine, "set", name, "MAX_MODEL_LEN=2048", code=3)
    assert f"{name} is being watched after: set VLLM_ARGS=" in refused.err
    assert main_pid(machine, name) == pid
    cli(machine, "deploy", "--service", name)
    host.keys[name] = cli(machine, "set-apikey", "--service", name).key
    assert cli(machine, "soak", name, "--json").json["outcome"] is None
    waiting = machine.start(sys.executable, "-m", "installer", "soak", name, "--wait")
    assert waiting.stderr is not None
    assert "watched for" in waiting.stderr.readline()
    machine.run(
        "kill", "-INT", machine.run("pgrep", "--oldest", "--full", f"installer soak {name} --wait").stdout.strip()
    )
    out, err = waiting.communicate(timeout=300)
    assert (waiting.returncode, out, err) == (130, "", "it goes on without this command\n")
    assert cli(machine, "soak", name, "--end").out.endswith("confirmed early\n")
    cli(machine, "set", name, "MAX_MODEL_LEN=2048", "--soak", "1h")
    cli(machine, "rollback", name)
    assert cli(machine, "soak", name, "--wait", code=6).out.endswith("rolled back by hand\n")
    assert left(machine, name) == ""
    serves(machine, host.keys[name], case.port)


def test_an_uninstall_in_the_middle_leaves_nothing(host: Host, standin_wheels: Path) -> None:
    machine = host.machine
    before = snapshot(machine.root)
    cli(machine, "deploy", *standin(standin_wheels), "--service", "brief", "--port", "8009")
    cli(machine, "set", "brief", "MAX_MODEL_LEN=2048", "--soak", "1h")
    cli(machine, "uninstall", "brief", "--yes")
    assert difference(before, snapshot(machine.root)) == []
    assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "*brief*").stdout == ""
