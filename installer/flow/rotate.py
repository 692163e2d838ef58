"""Rotating and revoking keys without a restart: the unit first, then the service, then the proof; or everything back.

It waits for no other change, however long that takes: a leaked key can always be revoked at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from installer.base.changes import Write
from installer.base.errors import Refused, undone
from installer.base.host import Busy, Host
from installer.base.language import english, mark, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.flow.deploy import apply, settled
from installer.flow.steps import Wanted
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import managed, save_state
from installer.spec.state import Rekeying, State, event
from installer.units import keyring, render
from installer.units.keyring import PutInForce, unit_keys
from installer.units.systemd import unit_properties

TAKES_UP = (
    30.0  # seconds within which a starting service gets from its launcher to vLLM, which reads no arguments of ours
)
SERVES, STARTS, STOPPED = "serves", "starts", "stopped"  # what a service does when its keys have changed
OUTCOME = {
    SERVES: mark("proved"),
    STARTS: mark("in force as soon as the service answers"),
    STOPPED: mark("written; the service is not running"),
}
Edit = Callable[[tuple[Key, ...]], tuple[Key, ...]]


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
    service: str  # SERVES, STARTS or STOPPED


@dataclass(frozen=True)
class _Rekeying:
    """A change of keys: its name in the history, what becomes of the unit's keys, and of those of a generation before.

    `accepted` is the key that has to open the service then.
    """

    what: str
    edit: Edit
    edit_proved: Edit
    accepted: str | None = None


def list_keys(service: str, host: Host) -> tuple[Key, ...]:
    layout = Layout(service)
    managed(host, layout, to_look=True)
    return keys.named_apart(unit_keys(host, layout))


def set_key(service: str, rotation: Rotation, host: Host, report: Report, show: Callable[[Rotated], None]) -> None:
    """Put a key into force and see it accepted; `show` hands it over before it counts as known."""
    text = rotation.text or keys.generate(service)
    new = Key(rotation.name, keys.digest(text), rotation.role)
    until = _from_now(rotation.keep_old) if rotation.keep_old else None

    def edit(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return keys.rotate(held, new, until, _from_now(timedelta()))

    def hand_over(before: tuple[Key, ...], now: str) -> None:
        replaced = any(key.name == new.name for key in before)
        show(Rotated(new.name, None if rotation.text else text, until if replaced else None, now))

    _change(_Rekeying(f"set-apikey {new.name}", edit, edit, text), Layout(service), host, report, hand_over)


def revoke_key(service: str, name: str, host: Host, report: Report) -> None:
    def edit(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return keys.revoke(held, name, _from_now(timedelta()))

    def edit_proved(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(key for key in held if key.name != name)

    _change(_Rekeying(f"keys revoke {name}", edit, edit_proved), Layout(service), host, report, lambda *_: None)


def _change(
    rekeying: _Rekeying,
    layout: Layout,
    host: Host,
    report: Report,
    hand_over: Callable[[tuple[Key, ...], str], None],
) -> None:
    """The keys first, then what an earlier change left half done: that may take minutes."""
    state = managed(host, layout)
    if state.proved is None and host.lock_holder(layout.change_lock) is None:
        with host.lock(layout.change_lock, f"vllm-install {rekeying.what} --service {layout.service}"):
            settled(host, layout, report)
        raise Refused(
            tr("{service} was never proved", service=layout.service),
            f"vllm-install deploy --service {layout.service}",
        )
    with keyring.locked(host, layout, report):
        _rekey(rekeying, managed(host, layout), host, layout, report, hand_over)
    if state.pending:
        with (
            contextlib.suppress(Busy),  # it was not cut off: somebody is at it
            host.lock(layout.change_lock, f"vllm-install {rekeying.what} --service {layout.service}"),
        ):
            settled(host, layout, report)


def _rekey(
    rekeying: _Rekeying,
    state: State,
    host: Host,
    layout: Layout,
    report: Report,
    hand_over: Callable[[tuple[Key, ...], str], None],
) -> None:
    """A running service takes the keys at once, a stopped one at its next start; `hand_over` is told which."""
    text, held = _held(host, layout)
    wanted = rekeying.edit(held)
    state = dataclasses.replace(state, rekeying=Rekeying(rekeying.what, keyring.in_record(held)))
    save_state(host, layout, state)
    try:
        unit = Write(layout.unit, render.with_keys(text, wanted), host.mode(layout.unit) or 0o644)
        put = PutInForce(layout)
        apply([*([unit] if unit.text != text else []), put], host, report)
        now = _prove(put, wanted, state, host, rekeying.accepted)
        hand_over(held, now)
        save_state(host, layout, _changed(state, rekeying, wanted, OUTCOME[now]))
    except Exception as error:
        raise undone(error, lambda why: _put_back(state, text, why, host, layout)) from error


def _changed(state: State, rekeying: _Rekeying, wanted: tuple[Key, ...], outcome: str) -> State:
    """What a change that is under way would come back to changes as well; then no key comes back by it."""
    proved = state.proved
    if proved and state.pending is None:
        proved = dataclasses.replace(proved, keys=wanted)
    elif proved:
        edited = rekeying.edit_proved(proved.keys)
        proved = dataclasses.replace(proved, keys=edited if keys.may_ask(edited) else wanted)
    history = (*state.history, event(rekeying.what, outcome))
    return dataclasses.replace(state, proved=proved, rekeying=None, history=history)


def _held(host: Host, layout: Layout) -> tuple[str, tuple[Key, ...]]:
    text = host.read(layout.unit)
    if not text:
        again = f"vllm-install deploy --service {layout.service}"
        if text is None:
            raise Refused(tr("{unit} is not there", unit=layout.unit), again)
        raise Refused(
            tr("{unit} is masked", unit=layout.unit),
            f"systemctl unmask {layout.service} && {again}",
        )
    return text, keys.named_apart(unit_keys(host, layout))


def _prove(put: PutInForce, wanted: tuple[Key, ...], state: State, host: Host, accepted: str | None) -> str:
    """What the service does, once the keys are in force and nothing that it started with can put others there."""
    layout, asked = put.layout, keyring.in_force(wanted)
    began = time.monotonic()
    while True:
        shown = unit_properties(host, layout.unit_name, "ActiveState", "MainPID")
        pid, active = int(shown.get("MainPID") or 0), shown.get("ActiveState")
        if not pid or active not in ("active", "reloading", "activating"):
            return STARTS if active == "activating" else STOPPED
        # A launcher that was started before the unit was written still has the old keys to put there.
        launching = "vllm_launcher.py" in (host.read(Path(f"/proc/{pid}/cmdline")) or "")
        if not launching and keyring.live_keys(host, layout) == asked:
            break
        if time.monotonic() - began > TAKES_UP:
            raise prove.NotProved(tr("{unit} did not take the new keys", unit=layout.unit_name))
        put.put(host)
    if active == "activating" or state.proved is None or host.lock_holder(layout.change_lock):
        return STARTS  # where it listens is about to change, perhaps; who changes it proves it
    target = dataclasses.replace(state.proved, keys=wanted)
    prove.keys_in_force(Wanted(target, layout, (host.read(layout.probe_key) or "").strip()), host, accepted)
    return SERVES


def _put_back(state: State, before: str, why: str, host: Host, layout: Layout) -> str:
    """The unit as it was, byte for byte; the rest as after a change that was cut off."""
    if host.read(layout.unit) != before:
        host.write(layout.unit, before, host.mode(layout.unit) or 0o644)
    keyring.put_back(state, f"undone: {english(why)}", host, layout)
    return tr("the keys are as they were")


def _from_now(span: timedelta) -> str:
    return keys.stamp(datetime.now(timezone.utc) + span)
