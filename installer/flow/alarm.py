"""What an admin is told without asking: that a service failed, how a change of it ended, that a key expires soon.

What differs from what was told before is told. So nothing is told twice, and what nobody took is told at a later look.
Of texts that may hold a line of the journal only our own words are told: a client may have chosen the others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.diagnosis import doctor, scene
from installer.diagnosis.bug_report import redactor_of
from installer.diagnosis.doctor_settings import SOON
from installer.diagnosis.finding import Finding
from installer.diagnosis.said import in_our_words
from installer.diagnosis.scene import Scene
from installer.diagnosis.signatures import in_our_words as meaning
from installer.diagnosis.signatures import recognise
from installer.runtime.vllm_notify import NOT_TAKEN, PARTLY, TAKEN
from installer.runtime.vllm_text import one_line
from installer.spec import keys, values
from installer.spec.records import managed
from installer.spec.settings import Settings
from installer.spec.soak import ROLLED_BACK, STUCK
from installer.spec.state import Event
from installer.units import alarm, journal, keyring
from installer.units.systemd import unit_properties

FORMAT = 1
HOUR = 3600.0
MOST = 6  # messages in an hour; what comes then is told later, together
TURNS = 3  # something may become of the service while somebody is told of something else
LONGEST = 64 * 1024  # bytes of what was told, and of a file with a URL
FAILED, RECOVERED, RESTARTED, CUT_OFF, EXPIRES, TEST = "failed", "recovered", "restarted", "cut-off", "expires", "test"
EXPLAINED = (FAILED, RESTARTED, "stuck")  # which doctor is asked for


@dataclass(frozen=True)
class News:
    kind: str
    text: str
    when: str


@dataclass(frozen=True)
class Told:
    """What is known to have been told, and how telling does."""

    last: Event | None = None  # of the history
    down: str = ""  # the units that had failed
    restarts: int = 0
    pending: str = ""  # a change that was cut off
    keys: tuple[str, ...] = ()
    sent: tuple[float, ...] = ()  # when, in the last hour
    failures: int = 0


def look(service: str, host: Host, report: Report) -> None:
    """Tell what is new, if anything is."""
    layout = Layout(service)
    with host.lock(layout.told_lock, f"vllm-install alarm --service {service}", report.waits):
        for _ in range(TURNS):
            if not _turn(layout, host, report):
                return


def test(service: str, host: Host, report: Report) -> int:
    """Tell whoever is to be told that it works; gives what became of that."""
    layout = Layout(service)
    with host.lock(layout.told_lock, f"vllm-install alarm --test --service {service}", report.waits):
        seen = scene.look(service, host)
        if not _settings(seen).notifies:
            raise nobody(layout)
        outcome = _tell((News(TEST, "this is a test", _now()),), seen)
        _save(_counted(told(host, layout), outcome), host, layout)
        return outcome


def nobody(layout: Layout) -> Refused:
    return Refused(
        tr("nobody is told what becomes of {service}", service=layout.service),
        f"sudo vllm-install set NOTIFY_URL=https://alerts.example/hook --service {layout.service}",
    )


def _turn(layout: Layout, host: Host, report: Report) -> bool:
    """Whether somebody was told something, so that another look is worth it."""
    seen = scene.look(layout.service, host)
    if not _settings(seen).notifies:
        return False
    before = told(host, layout)
    now = _now_known(seen, before)
    news = tuple(_news(seen, before, now))
    if not news:
        _save(now, host, layout)
        return False
    if len(before.sent) >= MOST:
        report.note(tr("{count} messages were sent within an hour; the next one waits", count=MOST))
        return False
    outcome = _tell(news, seen)
    _save(_counted(before if outcome == NOT_TAKEN else now, outcome), host, layout)
    return outcome != NOT_TAKEN


def _settings(seen: Scene) -> Settings:
    """What is in force; a service that was never proved tells whoever deploys it."""
    proved = seen.state.proved if seen.state else None
    return proved.settings if proved else Settings()


# What is known


def told(host: Host, layout: Layout) -> Told:
    """Nothing where it cannot be read: then something is told twice."""
    try:
        text = host.read_of(layout.told_file, (0, os.geteuid()), LONGEST)
        fields: dict[str, Any] = json.loads(text) if text else {}
        last = Event(**fields.pop("last")) if fields.get("last") else None
        known = replace(Told(**fields), last=last, keys=tuple(fields.get("keys", ())))
        sent = tuple(at for at in fields.get("sent", ()) if abs(time.time() - at) < HOUR)
        return replace(known, sent=sent)
    except (InstallError, OSError, ValueError, TypeError, AttributeError):
        return Told()


def _save(now: Told, host: Host, layout: Layout) -> None:
    text = json.dumps(asdict(now)) + "\n"
    if host.exists(layout.state_dir) and host.read(layout.told_file) != text:
        host.write(layout.told_file, text, 0o644)


def _counted(now: Told, outcome: int) -> Told:
    return replace(now, sent=(*now.sent, time.time()), failures=now.failures + (outcome != TAKEN))


def _now_known(seen: Scene, before: Told) -> Told:
    """While somebody changes the service nothing is judged: what is half done is no fault."""
    state = seen.state
    assert state is not None, "a service without a record tells nobody"
    now = replace(before, last=state.history[-1] if state.history else None, keys=tuple(_expiring(seen)))
    if seen.under_way:
        return now
    down = " ".join(part.member.stem for part in seen.parts if part.active == "failed")
    restarts = sum(int(part.unit.get("NRestarts") or 0) for part in seen.parts)
    return replace(now, down=down, restarts=restarts, pending=state.unfinished or "")


def _expiring(seen: Scene) -> Iterator[str]:
    """The keys that expire soon, and those that did; an old one that was kept for a while is meant to."""
    soon = keys.stamp(datetime.now(timezone.utc) + SOON)
    try:
        held = keyring.unit_keys(seen.host, seen.layout)
    except InstallError:
        return  # doctor says so
    for key in held:
        if key.expiry and key.expiry < soon and not key.is_grace:
            yield f"{key.name} {'expired' if key.is_over else 'expires'} {key.expiry}"


# What is new


def _news(seen: Scene, before: Told, now: Told) -> Iterator[News]:
    at, history = _now(), seen.state.history if seen.state else ()
    for event in _since(before.last, history):
        yield News(_kind(event.outcome), f"{event.what}: {_outcome(event.outcome, seen.service)}", event.when)
    if now.pending and now.pending != before.pending:
        yield News(CUT_OFF, f"{now.pending} was cut off; the next command undoes or completes it", at)
    if now.down and now.down != before.down:
        yield News(FAILED, f"{now.down} failed, and is not started again by itself", at)
    elif now.restarts > before.restarts and before.last:
        yield News(RESTARTED, f"it ended by itself; restarts by systemd: {now.restarts}", at)
    if before.down and not now.down and seen.serves:
        yield News(RECOVERED, f"it serves again; {before.down} had failed", at)
    for key in now.keys:
        if key not in before.keys:
            name, what, when = key.split()
            yield News(EXPIRES, f"the key {name} {what} at {when}", at)


def _since(last: Event | None, history: tuple[Event, ...]) -> tuple[Event, ...]:
    """Of a service that is new here the last one alone: it is what made us tell."""
    if last is None:
        return history[-1:]
    known = [number for number, event in enumerate(history) if event == last]
    return history[known[-1] + 1 :] if known else history


def _kind(outcome: str) -> str:
    kinds = {"undone": "undone", ROLLED_BACK: "rolled-back", STUCK: "stuck"}
    return next((kind for begin, kind in kinds.items() if outcome.startswith(begin)), "changed")


def _outcome(outcome: str, service: str) -> str:
    """In our own words, with what a line of the journal in it means, if it is known."""
    known = recognise(outcome, service)
    found = meaning(known.id, service) if known else None
    said = in_our_words(outcome)
    return f"{said} ({found.cause})" if found else said


# Telling it


def _tell(news: tuple[News, ...], seen: Scene) -> int:
    """What became of it; that it failed is said in the service's journal."""
    host, layout, settings = seen.host, seen.layout, _settings(seen)
    try:
        task = {
            "command": settings.notify_command,
            "url": _url(settings, host),
            "form": settings.notify_form,
            "message": message(news, seen),
        }
        outcome = send(task, host, layout)
    except (InstallError, OSError) as error:
        journal.tell(f"alarm: nobody could be told: {error}", host, layout)
        return NOT_TAKEN
    if outcome != TAKEN:
        who = "nobody took the message" if outcome == NOT_TAKEN else "one of two did not take the message"
        journal.tell(f"alarm: {who}; why: journalctl -u {alarm.sender(layout)}", host, layout)
    return outcome


def _url(settings: Settings, host: Host) -> str | None:
    """A file with it is believed if it is root's."""
    given = settings.notify_url
    if not given or not given.startswith("/"):
        return given
    text = host.read_of(Path(given), (0, os.geteuid()), LONGEST)
    if text is None:
        raise Refused(tr("{path}: no such file", path=given))
    try:
        found = values.webhook(text.strip())
    except ValueError:
        found = None
    if not found or found.startswith("/"):
        raise Refused(tr("{path} holds no URL", path=given))
    return found


def send(task: Mapping[str, object], host: Host, layout: Layout) -> int:
    """By a unit of its own, that has no more to do it with than this message."""
    host.write(layout.message, json.dumps(task), 0o600)
    try:
        done = host.systemctl("start", alarm.sender(layout), check=False)
        if done.returncode == 0:
            return TAKEN
        status = unit_properties(host, alarm.sender(layout), "ExecMainStatus").get("ExecMainStatus")
        return PARTLY if status == str(PARTLY) else NOT_TAKEN
    finally:
        host.remove(layout.message)


def message(news: tuple[News, ...], seen: Scene) -> dict[str, Any]:
    """No key is in it and no prompt: neither the words of a client nor a line of the journal."""
    name = seen.host.word(Path("/proc/sys/kernel/hostname"))
    explained = any(each.kind in EXPLAINED for each in news)
    found = doctor.diagnose(seen).findings if explained else ()
    said = "; ".join(each.text for each in news)
    text = {
        "format": FORMAT,
        "service": seen.service,
        "host": name,
        "time": _now(),
        "summary": f"{seen.service} on {name}: {said}",
        "news": [asdict(each) for each in news],
        "findings": [_as_told(finding, seen.service) for finding in found],
    }
    redactor = redactor_of(seen, None)
    return {field: _clean(value, redactor) for field, value in text.items()}


def _as_told(finding: Finding, service: str) -> dict[str, object]:
    """Without the line that shows it, which stays on this host."""
    told = meaning(finding.id, service) or finding
    return {"id": finding.id, "severity": finding.severity, "cause": told.cause, "commands": list(told.commands)}


def _clean(value: Any, redactor: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {name: _clean(each, redactor) for name, each in value.items()}
    if isinstance(value, list):
        return [_clean(each, redactor) for each in value]
    return one_line(redactor(value)) if isinstance(value, str) else value


def _now() -> str:
    return keys.stamp(datetime.now(timezone.utc))


# By hand


@dataclass(frozen=True)
class Telling:
    """Who is told, and how that does."""

    service: str
    command: tuple[str, ...]
    url: str | None
    form: str
    failures: int
    waits: bool  # too many messages were sent within an hour


def of(service: str, host: Host) -> Telling:
    layout = Layout(service)
    state = managed(host, layout, to_look=True)
    settings = state.proved.settings if state.proved else Settings()
    if not settings.notifies:
        raise nobody(layout)
    known = told(host, layout)
    return Telling(
        service, settings.notify_command, settings.notify_url, settings.notify_form, known.failures,
        len(known.sent) >= MOST,
    )  # fmt: skip
