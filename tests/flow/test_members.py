"""A service of several units: each is enabled, started, proved and taken away by itself, in one order."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.base.changes import Restart, Run
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import ownership, prove, steps
from installer.flow.prove import NotProved, Start
from installer.spec.state import State
from installer.units.graph import Member
from installer.units.render import File
from installer.units.systemd import MainProcess
from tests.kit.targets import wanted

LAYOUT = Layout("qwen3vl")
TWO = (Member(LAYOUT, "qwen3vl@1.service"), Member(LAYOUT, "qwen3vl@2.service"))
NAMES = [member.name for member in TWO]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for module in (steps, prove, ownership):
        monkeypatch.setattr(module, "members", lambda _: TWO)
    host = Host(tmp_path)
    for member in TWO:
        host.write(member.path, "[Service]\n")
    return host


def test_each_is_enabled_unless_it_is(host: Host) -> None:
    enable = [Run(("systemctl", "enable", name), "start the service at every boot") for name in NAMES]
    assert list(steps.enabled(wanted(), host)) == enable
    host.write(TWO[0].wants_link, "")
    assert list(steps.enabled(wanted(), host)) == enable[1:]


def test_each_is_restarted_if_it_is_due_for_that(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    want = wanted()
    assert list(steps.running(want, host)) == [Restart(name) for name in NAMES]
    monkeypatch.setattr(steps, "render", lambda *_: {member.path: File("[Service]\n") for member in TWO})
    held = frozenset((key.name, key.digest) for key in want.target.keys)
    sound = MainProcess(1, steps.process_digest(want.target, LAYOUT), held, is_up=True)
    monkeypatch.setattr(steps, "running_process", lambda _, member: sound if member == TWO[0] else None)
    assert list(steps.running(want, host)) == [Restart(NAMES[1])]


def test_each_is_stopped_last_to_first_and_forgotten(host: Host) -> None:
    host.make_dir(TWO[1].drop_ins)
    changes = list(steps.removal(LAYOUT, State("qwen3vl"), host, weights=False, engine=False))
    argvs = [change.argv for change in changes if isinstance(change, Run)]
    assert argvs[:2] == [("systemctl", "disable", "--now", name) for name in reversed(NAMES)]
    assert ("systemctl", "reset-failed", "qwen3vl@1.servic[e]", "qwen3vl@2.servic[e]") in argvs
    assert [change for change in changes if getattr(change, "path", None) == TWO[1].drop_ins]


def test_what_each_one_starts_is_in_use(host: Host) -> None:
    engine = LAYOUT.engines / "0123"
    host.make_dir(engine)
    assert [change.path for change in steps.unused_programs(LAYOUT, [LAYOUT], host)] == [engine]
    host.write(TWO[1].path, f"[Service]\nExecStart={engine}/bin/python x\n")
    assert list(steps.unused_programs(LAYOUT, [LAYOUT], host)) == []


def test_a_name_that_is_taken_is_found_for_each(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {NAMES[1]: {"FragmentPath": "/usr/lib/systemd/system/x.service"}}
    monkeypatch.setattr(ownership, "unit_properties", lambda _, unit, *names: theirs.get(unit, {}))
    found = ownership.objections([], host, LAYOUT, State("qwen3vl"), discard_edits=False)
    assert [problem.what for problem in found] == [f"{NAMES[1]} exists already"]


def test_each_one_is_proved(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    def wait(member: Member, host: Host, report: Report, start: Start) -> None:
        waited.append(member.name)

    def check(server: prove.Server) -> None:
        if server.member == TWO[1]:
            raise NotProved(f"{server.member.name} does not answer")

    monkeypatch.setattr(prove, "wait_until_ready", wait)
    for name in ("_check_keys", "_check_model", "_check_answer"):
        monkeypatch.setattr(prove, name, check)
    with pytest.raises(NotProved, match=r"qwen3vl@2\.service does not answer"):
        prove.serving(wanted(), host, Report())
    assert waited == NAMES
    monkeypatch.setattr(prove.Server, "ask", lambda *_: prove.Answer(200, b""))
    with pytest.raises(NotProved, match=r"qwen3vl@2\.service does not answer"):
        prove.keys_in_force(wanted(), host, None)
