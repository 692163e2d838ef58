"""Rotating and revoking keys without a restart: the unit first, then a reload, then the proof; or everything back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from installer import keys, prove, render, steps
from installer.changes import Change, Reload, Run, Write
from installer.deploy import apply, settled
from installer.errors import Refused, undone
from installer.host import Host
from installer.keys import Key
from installer.language import english, mark, tr
from installer.layout import Layout
from installer.report import Report
from installer.state import State, event, managed, save_state
from installer.steps import Wanted
from installer.target import Target


@dataclass(frozen=True)
class Rotation:
    """What the user asks of one key; no text means that a key is to be made."""

    name: str = keys.DEFAULT
    text: str | None = None
    role: str = keys.INFERENCE
    keep_old: timedelta | None = None


@dataclass(frozen=True)
class Rotated:
    name: str
    made: str | None
    old_until: str | None
    live: bool


def list_keys(service: str, host: Host) -> tuple[Key, ...]:
    layout = Layout(service)
    managed(host, layout)
    return keys.named_apart(steps.unit_keys(host, layout))


def set_key(service: str, rotation: Rotation, host: Host, report: Report, show: Callable[[Rotated], None]) -> None:
    """Put a key into force and see it accepted; `show` hands it over before it counts as known."""
    layout = Layout(service)
    with host.lock(layout.lock, f"vllm-install set-apikey --service {service}"):
        state = settled(managed(host, layout), host, layout, report)
        text = rotation.text or keys.generate(service)
        new = Key(rotation.name, keys.digest(text), rotation.role)
        until = _from_now(rotation.keep_old) if rotation.keep_old else None
        held = _held(host, layout)
        replaced = any(key.name == new.name for key in held)
        wanted = keys.rotate(held, new, until, _from_now(timedelta()))

        def hand_over(live: bool) -> None:
            show(Rotated(new.name, None if rotation.text else text, until if replaced else None, live))

        _change(_Rekeying(f"set-apikey {new.name}", wanted, text), state, host, layout, report, hand_over)


def revoke_key(service: str, name: str, host: Host, report: Report) -> None:
    layout = Layout(service)
    with host.lock(layout.lock, f"vllm-install keys revoke --service {service}"):
        state = settled(managed(host, layout), host, layout, report)
        wanted = keys.revoke(_held(host, layout), name, _from_now(timedelta()))
        _change(_Rekeying(f"keys revoke {name}", wanted), state, host, layout, report)


def _held(host: Host, layout: Layout) -> tuple[Key, ...]:
    text = host.read(layout.unit)
    if not text:
        again = f"vllm-install deploy --service {layout.service}"
        if text is None:
            raise Refused(tr("{unit} is not there", unit=layout.unit), again)
        raise Refused(
            tr("{unit} is masked", unit=layout.unit),
            f"systemctl unmask {layout.service} && {again}",
        )
    return keys.named_apart(steps.unit_keys(host, layout))


@dataclass(frozen=True)
class _Rekeying:
    """A change of keys: its name in the history, all keys after it, and the one that has to be accepted then."""

    what: str
    keys: tuple[Key, ...]
    accepted: str | None = None


def _change(
    rekeying: _Rekeying,
    state: State,
    host: Host,
    layout: Layout,
    report: Report,
    hand_over: Callable[[bool], None] = lambda _: None,
) -> None:
    """A running service takes the keys at once, a stopped one at its next start; `hand_over` is told which."""
    what, wanted = rekeying.what, rekeying.keys
    if state.proved is None:
        raise Refused(
            tr("{service} was never proved", service=layout.service),
            f"vllm-install deploy --service {layout.service}",
        )
    before = host.read(layout.unit) or ""
    # The unit says which keys there were, also of those pasted in since; cut off, we go back to just these.
    proved = dataclasses.replace(state.proved, keys=_held(host, layout))
    state = dataclasses.replace(state, proved=proved)
    live = steps.running_process(host, layout) is not None
    if live:
        prove.wait_until_ready(layout, host, report)
    target = dataclasses.replace(proved, keys=wanted)
    save_state(host, layout, dataclasses.replace(state, pending=what))
    try:
        apply(_changes(render.with_keys(before, wanted), live, host, layout), host, report)
        if live:
            _prove(target, layout, host, rekeying.accepted)
        hand_over(live)
        outcome = event(what, mark("proved") if live else mark("written; the service is not running"))
        save_state(host, layout, dataclasses.replace(state, proved=target, history=(*state.history, outcome)))
    except Exception as error:
        raise undone(error, lambda why: _put_back(state, what, before, why, host, layout, report)) from error


def _changes(text: str, live: bool, host: Host, layout: Layout) -> Iterator[Change]:
    if host.read(layout.unit) != text:
        yield Write(layout.unit, text, host.mode(layout.unit) or 0o644)
    yield Reload(layout.unit_name) if live else Run(("systemctl", "daemon-reload"), tr("make systemd read the unit"))


def _prove(target: Target, layout: Layout, host: Host, accepted: str | None) -> None:
    process = steps.running_process(host, layout)
    asked = frozenset((key.name, key.digest) for key in target.keys)
    if process is None or not asked <= process.keys:
        raise prove.NotProved(tr("{unit} did not take the new keys", unit=layout.unit_name))
    if stale := process.keys - asked:
        raise prove.NotProved(tr("the key {name!r} is still in force", name=sorted(stale)[0][0]))
    want = Wanted(target, layout, (host.read(layout.probe_key) or "").strip())
    prove.keys_in_force(want, accepted)


def _put_back(state: State, what: str, before: str, why: str, host: Host, layout: Layout, report: Report) -> str:
    """The unit as it was; the process is told only if it did take other keys: what failed was perhaps the telling."""
    assert state.proved is not None, "only a proved service has keys to put back"
    process = steps.running_process(host, layout)
    told = process is not None and process.keys != frozenset((key.name, key.digest) for key in state.proved.keys)
    apply(_changes(before, told, host, layout), host, report)
    save_state(
        host, layout, dataclasses.replace(state, history=(*state.history, event(what, f"undone: {english(why)}")))
    )
    return tr("the keys are as they were")


def _from_now(span: timedelta) -> str:
    return keys.stamp(datetime.now(timezone.utc) + span)
