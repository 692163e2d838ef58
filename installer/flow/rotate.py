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
from installer.base.errors import Refused
from installer.base.host import Busy, Host
from installer.base.language import english, mark, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.flow.converge import never_proved, settled
from installer.flow.steps import Wanted
from installer.flow.transaction import Transaction, changing
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import managed, save_state
from installer.spec.state import Rekeying, event
from installer.units import keyring, render
from installer.units.holding import holding
from installer.units.keyring import PutInForce, unit_keys
from installer.units.systemd import unit_properties

TAKES_UP = (
    30.0  # seconds within which a starting service gets from its launcher to vLLM, which reads no arguments of ours
)
# What a service does when its keys have changed.
SERVES, STARTS, STOPPED, SILENT = "serves", "starts", "stopped", "silent"
OUTCOME = {
    SERVES: mark("proved"),
    STARTS: mark("in force as soon as the service answers"),
    STOPPED: mark("written; the service is not running"),
    SILENT: mark("in force; the service answered nothing"),
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
    service: str  # SERVES, STARTS, STOPPED or SILENT


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

    _change(_Rekeying(f"set-apikey {new.name}", edit, edit, hand_over, text, Layout(service), host, report))


def revoke_key(service: str, name: str, host: Host, report: Report) -> None:
    def edit(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return keys.revoke(held, name, _from_now(timedelta()))

    def forget(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(key for key in held if key.name != name)

    what = f"keys revoke {name}"
    _change(_Rekeying(what, edit, forget, lambda *_: None, None, Layout(service), host, report))


class _Rekeying(Transaction):
    """A running service takes the keys at once, a stopped one at its next start.

    `edit` makes the unit's keys, `edit_proved` those of a generation before; `accepted` has to open the service then;
    `hand_over` is told the keys that were there and what the service does.
    """

    def __init__(
        self, what: str, edit: Edit, edit_proved: Edit, hand_over: Callable[[tuple[Key, ...], str], None],
        accepted: str | None, layout: Layout, host: Host, report: Report,
    ) -> None:  # fmt: skip
        super().__init__(layout, (), host, report)
        self.what, self.edit, self.edit_proved, self.hand_over = what, edit, edit_proved, hand_over
        self.accepted, self.put = accepted, PutInForce(layout)
        self.now, self.silence = STARTS, ""

    def claim(self) -> None:
        self.text, self.held = _held(self.host, self.layout)
        self.wanted, mode = self.edit(self.held), self.host.mode(self.layout.unit) or 0o644
        unit = Write(self.layout.unit, render.with_keys(self.text, self.wanted), mode)
        self.changes = [*([unit] if unit.text != self.text else []), self.put]
        rekeying = Rekeying(self.what, keyring.in_record(self.held))
        self.state = dataclasses.replace(managed(self.host, self.layout), rekeying=rekeying)
        save_state(self.host, self.layout, self.state)

    def prove(self) -> None:
        """A service that says nothing is no reason to bring back a key that was to go."""
        try:
            self.now = self._see_them_taken()
        except prove.Silent as silent:
            if self._holds():  # its engine ended just as it was asked
                self.now = STARTS
                return
            left = {key.digest for key in self.wanted}
            if all(key.digest in left or key.is_over for key in self.held):
                raise
            self.now, self.silence = SILENT, silent.message

    def _see_them_taken(self) -> str:
        """What the service does, once the keys are in force and nothing that it started with can put others there."""
        host, layout, asked = self.host, self.layout, keyring.in_force(self.wanted)
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
            self.put.put(host)
        if active == "activating" or self.state.proved is None or host.lock_holder(layout.change_lock) or self._holds():
            return STARTS  # where it listens is about to change, perhaps; who changes it proves it
        target = dataclasses.replace(self.state.proved, keys=self.wanted)
        want = Wanted(target, layout, (host.read(layout.probe_key) or "").strip())
        prove.keys_in_force(want, host, self.accepted)
        return SERVES

    def _holds(self) -> bool:
        return holding(self.host, self.layout) is not None

    def remember(self) -> None:
        """What a change that is under way would come back to changes as well; then no key comes back by it."""
        self.hand_over(self.held, self.now)
        proved = self.state.proved
        if proved and self.state.pending is None:
            proved = dataclasses.replace(proved, keys=self.wanted)
        elif proved:
            edited = self.edit_proved(proved.keys)
            proved = dataclasses.replace(proved, keys=edited if keys.may_ask(edited) else self.wanted)
        history = (*self.state.history, event(self.what, OUTCOME[self.now]))
        save_state(
            self.host, self.layout, dataclasses.replace(self.state, proved=proved, rekeying=None, history=history)
        )

    def undo(self, why: str) -> str:
        """The unit as it was, byte for byte; the rest as after a change that was cut off."""
        if self.host.read(self.layout.unit) != self.text:
            self.host.write(self.layout.unit, self.text, self.host.mode(self.layout.unit) or 0o644)
        keyring.put_back(self.state, f"undone: {english(why)}", self.host, self.layout)
        return tr("the keys are as they were")


def _change(rekeying: _Rekeying) -> None:
    """The keys first, then what an earlier change left half done: that may take minutes."""
    layout, host, report, what = rekeying.layout, rekeying.host, rekeying.report, rekeying.what
    state = managed(host, layout)
    if state.proved is None and host.lock_holder(layout.change_lock) is None:
        with changing(layout, what, host):
            settled(host, layout, report)
        raise never_proved(layout)
    with keyring.locked(host, layout, report):
        rekeying.run()
    if rekeying.silence:
        raise prove.NotProved(
            tr("{what} is in force and stays so, but that could not be proved: {why}", what=what, why=rekeying.silence),
            tr(
                "vllm-install doctor {service} says why it is silent; whatever it is, it knows these keys alone after: "
                "sudo systemctl restart {service}",
                service=layout.service,
            ),
        )
    if state.pending:
        with contextlib.suppress(Busy), changing(layout, what, host):  # Busy: it was not cut off
            settled(host, layout, report)


def _held(host: Host, layout: Layout) -> tuple[str, tuple[Key, ...]]:
    text = host.read(layout.unit)
    if not text:
        again = f"vllm-install deploy --service {layout.service}"
        if text is None:
            raise Refused(tr("{unit} is not there", unit=layout.unit), again)
        raise Refused(tr("{unit} is masked", unit=layout.unit), f"systemctl unmask {layout.service} && {again}")
    return text, keys.named_apart(unit_keys(host, layout))


def _from_now(span: timedelta) -> str:
    return keys.stamp(datetime.now(timezone.utc) + span)
