"""What an admin is told: each thing once, not too often, nothing that is half done, and no word of anybody else's."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from installer.base.changes import Remove, Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.diagnosis import scene
from installer.flow import alarm, eject, steps
from installer.flow.transaction import changing
from installer.flow.wanted import Wanted
from installer.runtime.vllm_notify import NOT_TAKEN, PARTLY, TAKEN
from installer.spec import keys
from installer.spec.keys import Key, digest
from installer.spec.records import save_state
from installer.spec.state import Event
from installer.units import alarm as units
from installer.units.render import with_keys
from tests.flow import test_transaction
from tests.flow.test_transaction import LAYOUT, REPORT, record
from tests.kit.targets import KEYS, with_settings

host, proofs, plain = test_transaction.host, test_transaction.proofs, test_transaction.want
WHEN = "2026-01-02T03:04:05Z"
CLIENTS_KEY = "Kunde-17_geheim.ohne+Form"
REAL_SEND = alarm.send
PROMPT = "the patient is called Miller"


class Sent(list[dict[str, Any]]):
    """The messages, in the place of the unit that sends them."""

    outcome = TAKEN

    def send(self, task: dict[str, Any], *_: object) -> int:
        self.append(json.loads(json.dumps(task)))
        return self.outcome

    @property
    def news(self) -> list[tuple[str, str]]:
        return [(news["kind"], news["text"]) for task in self for news in task["message"]["news"]]


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What systemd says of the service's unit."""
    said = {"ActiveState": "active", "SubState": "running", "Result": "success", "NRestarts": "0"}
    monkeypatch.setattr(scene, "unit_properties", lambda *_: said)
    return said


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in the service's journal."""
    said: list[str] = []
    monkeypatch.setattr(alarm.journal, "tell", lambda text, *_: said.append(text))
    return said


@pytest.fixture
def sent(
    host: Host, plain: Wanted, proofs: object, unit: dict[str, str], journal: list[str], monkeypatch: pytest.MonkeyPatch
) -> Sent:
    """A service that tells a URL, and was proved."""
    monkeypatch.setattr(units, "check_tool", lambda: None)
    want = with_settings(plain, notify_url="https://alerts.example/hook")
    test_transaction.recorded(want, steps.plan(want, host), host)
    happened(host, "deploy", "proved")
    made = Sent()
    monkeypatch.setattr(alarm, "send", made.send)
    return made


def happened(host: Host, what: str, outcome: str) -> None:
    state = record(host)
    save_state(host, LAYOUT, dataclasses.replace(state, history=(*state.history, Event(WHEN, "ana", what, outcome))))


def look(host: Host) -> None:
    alarm.look("qwen3vl", host, REPORT)


def test_the_change_that_made_us_tell_is_told_and_each_later_one_once(host: Host, sent: Sent) -> None:
    host.write(Path("/proc/sys/kernel/hostname"), "gpu-7\n")
    happened(host, "set NOTIFY_URL=https://alerts.example/hook", "proved")
    look(host)
    assert sent.news == [("changed", "set NOTIFY_URL=[secret]: proved")], "and not what was long before"
    look(host)
    assert len(sent) == 1
    happened(host, "set-apikey default", "in force as soon as the service answers")
    happened(host, "upgrade", "confirmed")
    look(host)
    assert sent.news[1:] == [
        ("changed", "set-apikey default: in force as soon as the service answers"), ("changed", "upgrade: confirmed"),
    ]  # fmt: skip
    message = sent[1]["message"]
    assert (sent[1]["url"], sent[1]["form"], message["service"]) == ("https://alerts.example/hook", "json", "qwen3vl")
    assert message["news"][0]["when"] == WHEN
    said = "set-apikey default: in force as soon as the service answers; upgrade: confirmed"
    assert (message["host"], message["summary"]) == ("gpu-7", f"qwen3vl on gpu-7: {said}")


@pytest.mark.parametrize(
    ("outcome", "kind", "told"),
    [
        ("undone: cut off", "undone", "undone: cut off"),
        ("undone: interrupted by SIGTERM", "undone", "undone: interrupted by SIGTERM"),
        (
            f"undone: qwen3vl.service did not come up (exit-code): ValueError: {PROMPT}",
            "undone",
            "undone: qwen3vl.service did not come up (exit-code): …",
        ),
        (
            "undone: qwen3vl.service did not come up (exit-code): torch.OutOfMemoryError: CUDA out of memory. Tried",
            "undone",
            "undone: qwen3vl.service did not come up (exit-code): … (",
        ),
        (
            f"rolled back: it ended by itself, and systemd had to start it again: {PROMPT}",
            "rolled-back",
            "rolled back: ",
        ),
        (f"not rolled back: {PROMPT}", "stuck", "not rolled back: …"),
        (f"undone: {PROMPT} did not come up ({PROMPT}): {PROMPT}", "undone", "undone: … did not come up (…): …"),
        (PROMPT, "changed", "…"),
    ],
)
def test_how_a_change_ended_is_told_in_our_words_alone(
    host: Host, sent: Sent, outcome: str, kind: str, told: str
) -> None:
    look(host)
    happened(host, "upgrade", outcome)
    look(host)
    assert sent.news[1][0] == kind
    assert sent.news[1][1].startswith(f"upgrade: {told}")
    assert "Miller" not in json.dumps(sent)


def test_a_failure_is_told_once_with_what_doctor_says_and_so_is_its_end(
    host: Host, sent: Sent, unit: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(host)
    lines = [
        f"ValueError: {PROMPT} {CLIENTS_KEY}",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ]
    monkeypatch.setattr(scene.Scene, "runs", [lines])
    unit |= {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}
    look(host)
    look(host)
    assert sent.news[1:] == [("failed", "qwen3vl failed, and is not started again by itself")]
    found = sent[1]["message"]["findings"]
    assert {"id", "severity", "cause", "commands"} == found[0].keys(), "the line that shows it stays here"
    assert [each["id"] for each in found if each["severity"] == "fault"], found
    assert "Miller" not in json.dumps(sent)
    assert CLIENTS_KEY not in json.dumps(sent)
    unit |= {"ActiveState": "active", "SubState": "running"}
    look(host)
    look(host)
    assert sent.news[2:] == [("recovered", "it serves again; qwen3vl had failed")]


def test_a_restart_by_systemd_is_told(host: Host, sent: Sent, unit: dict[str, str]) -> None:
    unit["NRestarts"] = "3"
    look(host)
    assert [kind for kind, _ in sent.news] == ["changed"], "what was before anybody was told is not told"
    unit["NRestarts"] = "4"
    look(host)
    unit["NRestarts"] = "0"
    look(host)
    assert sent.news[1:] == [("restarted", "it ended by itself; restarts by systemd: 4")]


def test_while_a_change_is_under_way_nothing_is_judged(host: Host, sent: Sent, unit: dict[str, str]) -> None:
    look(host)
    unit |= {"ActiveState": "failed", "SubState": "failed", "NRestarts": "2"}
    with changing(LAYOUT, "upgrade", host):
        save_state(host, LAYOUT, dataclasses.replace(record(host), pending="upgrade"))
        look(host)
    assert len(sent) == 1
    look(host)
    assert [kind for kind, _ in sent.news[1:]] == ["cut-off", "failed"], "it was cut off, and nobody is at it"
    look(host)
    assert len(sent) == 2


def test_what_nobody_took_is_told_again_and_counted(host: Host, sent: Sent, journal: list[str]) -> None:
    sent.outcome = NOT_TAKEN
    look(host)
    look(host)
    assert (len(sent), alarm.told(host, LAYOUT).failures) == (2, 2)
    assert journal[0] == "alarm: nobody took the message; why: journalctl -u vllm-notify@qwen3vl.service"
    sent.outcome = PARTLY
    look(host)
    look(host)
    assert (len(sent), alarm.told(host, LAYOUT).failures) == (3, 3), "one has heard it"
    assert sent[0]["message"]["news"] == sent[2]["message"]["news"]


def test_there_are_few_messages_in_an_hour_and_nothing_is_lost(
    host: Host, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(alarm.MOST + 3):
        happened(host, f"set PORT={number}", "proved")
        look(host)
    assert len(sent) == alarm.MOST
    later = time.time() + alarm.HOUR
    monkeypatch.setattr(time, "time", lambda: later)
    look(host)
    assert [text for _, text in sent.news[-3:]] == [
        f"set PORT={number}: proved" for number in range(alarm.MOST, alarm.MOST + 3)
    ]


def hold(host: Host, *held: Key) -> None:
    """Beside those that it was deployed with."""
    text = host.read(LAYOUT.unit)
    assert text
    host.write(LAYOUT.unit, with_keys(text, (*KEYS, *held)))


def test_a_key_that_expires_soon_is_told_and_once_more_when_it_has(host: Host, sent: Sent) -> None:
    look(host)
    soon, late = (keys.stamp(datetime.now(timezone.utc) + timedelta(days=days)) for days in (2, 30))
    hold(host, Key("team", digest("x" * 20), expiry=soon), Key("far", digest("y" * 20), expiry=late),
         Key("default-old", digest("z" * 20), expiry=soon))  # fmt: skip
    look(host)
    look(host)
    assert sent.news[1:] == [("expires", f"the key team expires at {soon}")]
    hold(host, Key("team", digest("x" * 20), expiry=WHEN))
    look(host)
    look(host)
    assert sent.news[2:] == [("expires", f"the key team expired at {WHEN}")]


def test_no_key_leaves_whatever_its_form(host: Host, sent: Sent) -> None:
    hold(host, Key("team", digest(CLIENTS_KEY)))
    look(host)
    planted = f"set X={CLIENTS_KEY} 'sk-qwen3vl-0123456789abcdef' Authorization: Bearer abcdefghijkl"
    happened(host, planted, "proved")
    look(host)
    said = json.dumps(sent)
    assert (CLIENTS_KEY in said, "0123456789abcdef" in said, "abcdefghijkl" in said) == (False, False, False)
    assert "[secret]" in sent.news[1][1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"sent": 3}', '{"last": {"when": 1}}', '{"unknown": 1}', "\0" * 70000]
)
def test_what_was_told_may_be_damaged(host: Host, sent: Sent, text: str) -> None:
    host.write(LAYOUT.told_file, text)
    look(host)
    look(host)
    assert len(sent) == 1


def test_what_was_told_is_read_where_an_earlier_tool_wrote_less_of_it(host: Host) -> None:
    host.write(LAYOUT.told_file, '{"down": "qwen3vl", "failures": 3}')
    assert alarm.told(host, LAYOUT) == alarm.Told(down="qwen3vl", failures=3)


def test_nobody_is_told_where_nobody_wants_to_be(
    host: Host, plain: Wanted, proofs: object, unit: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_transaction.deployed(plain, host)
    monkeypatch.setattr(alarm, "send", lambda *_: pytest.fail("somebody was told"))
    look(host)
    assert not host.exists(LAYOUT.told_file)
    for verb in (lambda: alarm.of("qwen3vl", host), lambda: alarm.test("qwen3vl", host, REPORT)):
        with pytest.raises(Refused, match="nobody is told what becomes of qwen3vl") as caught:
            verb()
        assert "vllm-install set NOTIFY_URL=" in caught.value.hint


def test_a_url_may_stand_in_a_file_of_roots(host: Host, sent: Sent, journal: list[str]) -> None:
    state, place = record(host), Path("/etc/slack")
    assert state.proved
    proved = dataclasses.replace(
        state.proved, settings=dataclasses.replace(state.proved.settings, notify_url=str(place), notify_form="slack")
    )
    save_state(host, LAYOUT, dataclasses.replace(state, proved=proved))
    for text in (None, "", "/etc/other", "ftp://x", "one two"):
        if text is not None:
            host.write(place, text)
        look(host)
    assert (len(sent), alarm.told(host, LAYOUT).failures) == (0, 5)
    assert all(said.startswith("alarm: nobody could be told: /etc/slack") for said in journal)
    host.remove(LAYOUT.told_file)
    host.write(place, "https://hooks.example/T0/secret\n", 0o600)
    look(host)
    assert (sent[0]["url"], sent[0]["form"]) == ("https://hooks.example/T0/secret", "slack")


@pytest.mark.root
def test_a_file_of_somebody_elses_is_not_believed(host: Host, sent: Sent, journal: list[str]) -> None:
    test_a_url_may_stand_in_a_file_of_roots(host, sent, journal)
    os.chown(host.at(Path("/etc/slack")), 65534, 65534)
    happened(host, "upgrade", "proved")
    look(host)
    assert len(sent) == 1
    assert "it belongs to the user 65534" in journal[-1]


def test_a_test_is_told_at_once_and_says_what_became_of_it(host: Host, sent: Sent) -> None:
    assert alarm.test("qwen3vl", host, REPORT) == TAKEN
    assert sent.news == [("test", "this is a test")]
    sent.outcome = NOT_TAKEN
    assert alarm.test("qwen3vl", host, REPORT) == NOT_TAKEN
    assert alarm.of("qwen3vl", host).failures == 1


def test_tests_count_among_the_messages_of_an_hour_and_change_nothing_else(host: Host, sent: Sent) -> None:
    look(host)
    before = alarm.told(host, LAYOUT)
    for _ in range(alarm.MOST - 1):
        assert not alarm.of("qwen3vl", host).waits
        alarm.test("qwen3vl", host, REPORT)
    assert alarm.of("qwen3vl", host).waits
    assert dataclasses.replace(alarm.told(host, LAYOUT), sent=()) == dataclasses.replace(before, sent=())


def test_the_message_is_roots_alone_while_it_is_sent_and_gone_then(host: Host, sent: Sent, tmp_path: Path) -> None:
    program = tmp_path / "bin/systemctl"
    seen = host.at(LAYOUT.message)
    program.write_text(f"#!/bin/sh\ncase $* in *start*) stat -c %a {seen} >>{tmp_path}/modes; exit 1; esac\n")
    assert REAL_SEND({"message": {}}, host, LAYOUT) == NOT_TAKEN
    assert (tmp_path / "modes").read_text() == "600\n"
    assert not host.exists(LAYOUT.message)


def test_a_change_rouses_who_tells_however_it_ends(
    host: Host, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin/systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n')
    with changing(LAYOUT, "set", host):
        pass
    with pytest.raises(ZeroDivisionError), changing(LAYOUT, "set", host):
        raise ZeroDivisionError
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.endswith("start --no-block vllm-alarm@qwen3vl.service") for line in asked] == [True, True]
    host.remove(units.paths(LAYOUT)[0])
    with changing(LAYOUT, "set", host):
        pass
    assert len((tmp_path / "asked").read_text().splitlines()) == 2, "who tells nobody is not roused"


def test_who_tells_goes_with_the_service_and_stays_with_nobody_who_is_let_go(host: Host, sent: Sent) -> None:
    going = {
        "uninstall": steps.removal(LAYOUT, record(host), host, weights=False, engine=False),
        "eject": eject.plan("qwen3vl", host),
    }
    for verb, changes in going.items():
        removed = {change.path for change in changes if isinstance(change, Remove)}
        assert removed >= set(units.paths(LAYOUT)), verb


def test_who_is_told_is_a_change_of_files_alone(host: Host, sent: Sent, plain: Wanted) -> None:
    silent = with_settings(plain, notify_url=None)
    changes = steps.plan(silent, host)
    assert LAYOUT.unit in [change.path for change in changes if isinstance(change, Write)]
    assert {path for change in changes if (path := getattr(change, "path", None))} >= set(units.paths(LAYOUT))
