"""The units that tell an admin: nothing typed stands in them, systemd reads them, and nobody restarts for them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given

from installer.base.changes import Remove, Run, Write
from installer.base.host import Host
from installer.base.layout import Layout
from installer.flow.eject import plain_unit
from installer.monitor import logs, place
from installer.spec.records import ejected
from installer.spec.settings import Settings
from installer.spec.target import Target
from installer.units import alarm, soaking
from installer.units.render import generation, render, runtime_dir, unit
from installer.units.syntax import exec_line
from tests.kit.samples import TEXTS
from tests.kit.targets import replicated, target
from tests.units import test_render
from tests.units.test_render import analyze, exposure

LAYOUT = Layout("qwen3vl")
RUNTIME = runtime_dir(LAYOUT)
LOOK, CLOCK, SEND = alarm.paths(LAYOUT)
distribution = test_render.distribution


def telling(**more: object) -> Target:
    return target(dataclasses.replace(Settings(), notify_url="https://alerts.example/hook", **more), kind="cpu")  # type: ignore[arg-type]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(alarm, "check_tool", lambda: None)
    return Host(tmp_path)


def test_no_service_can_have_such_a_name() -> None:
    assert [path.name for path in alarm.paths(LAYOUT)] == [
        "vllm-alarm@qwen3vl.service", "vllm-alarm@qwen3vl.timer", "vllm-notify@qwen3vl.service",
    ]  # fmt: skip


def test_who_looks_is_the_tool_and_who_sends_is_the_engines_python() -> None:
    made = telling()
    texts = alarm.texts(made, LAYOUT, RUNTIME)
    assert exec_line(texts[LOOK])[1:] == ["-m", "installer", "alarm", "--service", "qwen3vl", "--look"]
    assert exec_line(texts[SEND])[1:] == ["-EsS", str(RUNTIME / "vllm_notify.py")]
    assert RUNTIME / "vllm_notify.py" in render(made, LAYOUT)
    assert "\nDynamicUser=yes\n" in texts[SEND]


@given(TEXTS, TEXTS)
def test_nothing_that_was_typed_stands_in_a_unit(url: str, word: str) -> None:
    typed = telling(notify_command=("/usr/local/bin/tell", word))
    typed = dataclasses.replace(typed, settings=dataclasses.replace(typed.settings, notify_url=url or "https://x"))
    assert alarm.texts(typed, LAYOUT, RUNTIME) == alarm.texts(telling(), LAYOUT, RUNTIME)
    assert unit(typed, LAYOUT) == unit(telling(), LAYOUT)


def test_systemd_has_nothing_to_say_about_them(distribution: Path) -> None:
    host, made = Host(distribution), telling()
    test_render.install(made, LAYOUT, distribution)
    for path, text in alarm.texts(made, LAYOUT, RUNTIME).items():
        host.write(path, text)
    host.write(Path(sys.executable), "", 0o755)
    names = [path.name for path in alarm.paths(LAYOUT)]
    verified = analyze(distribution, "verify", LAYOUT.unit_name, *names)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    assert exposure(distribution, SEND.name) < 2.5, "it talks to the network, and runs a command of the admin's"
    assert exposure(distribution, LOOK.name) < 6, "root, which looks at everything"


def test_without_the_tool_nobody_looks_and_nothing_fails() -> None:
    """Its package may be gone while the service runs on."""
    soak = next(each for each in soaking.beginning(LAYOUT, 600) if isinstance(each, Write)).text
    figures = place.texts(place.Wish())[place.SERVICE]
    for text in (alarm.texts(telling(), LAYOUT, RUNTIME)[LOOK], soak, figures, logs.unit()):
        assert f"\nConditionPathExists={exec_line(text)[0]}\n" in text


def test_a_failure_begins_a_look_and_nothing_is_started_anew_for_it() -> None:
    silent, tells = target(kind="cpu"), telling()
    assert "OnFailure" not in unit(silent, LAYOUT)
    assert "\nOnFailure=vllm-alarm@qwen3vl.service\n" in unit(tells, LAYOUT)
    assert generation(silent, LAYOUT) == generation(tells, LAYOUT)


def test_every_unit_of_a_service_with_replicas_begins_one() -> None:
    made = replicated((), (), notify_command=("/usr/local/bin/tell",))
    texts = [unit(made.target, LAYOUT, number) for number in (0, 1, 2)]
    assert [text.count("\nOnFailure=vllm-alarm@qwen3vl.service\n") for text in texts] == [1, 1, 1]
    silent = replicated((), ()).target
    assert generation(made.target, LAYOUT) == generation(silent, LAYOUT)


def test_they_come_once_and_go_when_nobody_wants_to_be_told(host: Host) -> None:
    made = telling()
    first = list(alarm.due(made, LAYOUT, RUNTIME, host))
    assert [change.path for change in first if isinstance(change, Write)] == [SEND, LOOK, CLOCK]
    assert [change.argv for change in first if isinstance(change, Run)] == [
        ("systemctl", "enable", CLOCK.name), ("systemctl", "restart", CLOCK.name),
    ]  # fmt: skip
    for change in first:
        if isinstance(change, Write):
            host.write(change.path, change.text)
    host.write(CLOCK.parent / "timers.target.wants" / CLOCK.name, "")
    assert list(alarm.due(made, LAYOUT, RUNTIME, host)) == []
    host.remove(CLOCK.parent / "timers.target.wants" / CLOCK.name)
    assert list(alarm.due(made, LAYOUT, RUNTIME, host)) == [change for change in first if isinstance(change, Run)]
    gone = list(alarm.due(target(kind="cpu"), LAYOUT, RUNTIME, host))
    assert [change.path for change in gone if isinstance(change, Remove)] == [LOOK, CLOCK, SEND]
    assert [change.argv[1:] for change in gone if isinstance(change, Run)] == [
        ("disable", "--now", CLOCK.name), ("stop", LOOK.name, SEND.name), ("daemon-reload",),
        ("reset-failed", "vllm-alarm@qwen3vl.servic[e]", "vllm-notify@qwen3vl.servic[e]"),
    ]  # fmt: skip


def test_who_sends_runs_on_an_engine_and_is_no_service_that_was_let_go(host: Host) -> None:
    for path, text in alarm.texts(telling(), LAYOUT, RUNTIME).items():
        host.write(path, text)
    assert ejected(host) == {}


def test_where_nobody_was_told_nothing_is_due(host: Host) -> None:
    assert list(alarm.due(target(kind="cpu"), LAYOUT, RUNTIME, host)) == []


def test_a_service_that_is_let_go_begins_none() -> None:
    assert "OnFailure" not in plain_unit(unit(telling(), LAYOUT), LAYOUT)
