"""A service of several units: each is written, started, proved and taken away by itself, in one order."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.base.changes import Run, Write
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import ownership, prove, steps
from installer.flow.prove import NotProved, Start
from installer.flow.wanted import Wanted
from installer.spec.records import ejected, save_state
from installer.spec.state import State
from installer.units.graph import Member, handle, members, on_disk
from installer.units.render import render
from tests.kit.targets import replicated

LAYOUT = Layout("qwen3vl")


@pytest.fixture
def want() -> Wanted:
    return replicated((), ())


@pytest.fixture
def two(want: Wanted) -> tuple[Member, ...]:
    return members(LAYOUT, want.target)


@pytest.fixture
def host(tmp_path: Path, want: Wanted) -> Host:
    """With the units of two replicas on it."""
    host = Host(tmp_path)
    for path, file in render(want.target, LAYOUT).items():
        host.write(path, file.text)
    return host


NAMES = ["qwen3vl@1.service", "qwen3vl@2.service"]


def test_the_one_that_people_type_is_enabled_and_brings_up_the_others(host: Host, want: Wanted) -> None:
    enable = Run(("systemctl", "enable", "qwen3vl.service"), "start the service at every boot")
    assert list(steps.enabled(want, host)) == [enable]
    host.write(handle(LAYOUT).wants_link, "")
    assert list(steps.enabled(want, host)) == []


def test_each_is_written_by_itself_and_before_the_one_that_people_type(host: Host, want: Wanted) -> None:
    assert [path for path in render(want.target, LAYOUT) if path.name in NAMES]
    for member in on_disk(host, LAYOUT):
        host.remove(member.path)
    assert [change.path.name for change in steps.unit_files(want, host) if isinstance(change, Write)] == NAMES


def test_all_are_stopped_and_forgotten(host: Host, two: tuple[Member, ...]) -> None:
    host.make_dir(two[1].drop_ins)
    host.write(LAYOUT.unit, "")
    changes = list(steps.removal(LAYOUT, State("qwen3vl"), host, weights=False, engine=False))
    argvs = [change.argv for change in changes if isinstance(change, Run)]
    stop = [("systemctl", "stop", name) for name in NAMES]
    assert argvs[:3] == [("systemctl", "disable", "--now", "qwen3vl.service"), *stop]
    patterns = ("qwen3vl.servic[e]", "qwen3vl@1.servic[e]", "qwen3vl@2.servic[e]")
    assert ("systemctl", "reset-failed", *patterns) in argvs
    assert [change for change in changes if getattr(change, "path", None) == two[1].drop_ins]


def test_what_each_one_starts_is_in_use(host: Host, two: tuple[Member, ...]) -> None:
    engine = LAYOUT.engines / "0123"
    host.make_dir(engine)
    assert engine in [change.path for change in steps.unused_programs(LAYOUT, [LAYOUT], host)]
    host.write(two[1].path, f"[Service]\nExecStart={engine}/bin/python x\n")
    assert engine not in [change.path for change in steps.unused_programs(LAYOUT, [LAYOUT], host)]


def test_replicas_of_a_service_are_nobody_elses(host: Host, want: Wanted) -> None:
    assert ejected(host).keys() == {"qwen3vl", "qwen3vl@1", "qwen3vl@2"}
    save_state(host, LAYOUT, State("qwen3vl"))
    assert ejected(host) == {}


def test_a_name_that_is_taken_is_found_for_each(host: Host, want: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {NAMES[1]: {"FragmentPath": "/usr/lib/systemd/system/x.service"}}
    monkeypatch.setattr(ownership, "unit_properties", lambda _, unit, *names: theirs.get(unit, {}))
    for member in on_disk(host, LAYOUT):
        host.remove(member.path)
    host.make_dir(Path("/run/qwen3vl@1"))
    changes = list(steps.unit_files(want, host))
    found = ownership.objections(changes, host, LAYOUT, State("qwen3vl"), discard_edits=False)
    assert [problem.what for problem in found] == [f"{NAMES[1]} exists already", "/run/qwen3vl@1 exists already"]


def test_each_one_is_proved(host: Host, want: Wanted, two: tuple[Member, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    def wait(member: Member, host: Host, report: Report, start: Start) -> None:
        waited.append(member.name)

    def check(server: prove.Server) -> None:
        if server.member == two[1]:
            raise NotProved(f"{server.member.name} does not answer")

    monkeypatch.setattr(prove, "wait_until_ready", wait)
    for name in ("_check_keys", "_check_model", "_check_answer"):
        monkeypatch.setattr(prove, name, check)
    with pytest.raises(NotProved, match=r"qwen3vl@2\.service does not answer"):
        prove.serving(want, host, Report())
    assert waited == NAMES
    monkeypatch.setattr(prove.Server, "ask", lambda *_: prove.Answer(200, b""))
    with pytest.raises(NotProved, match=r"qwen3vl@2\.service does not answer"):
        prove.keys_in_force(want, host, None)
