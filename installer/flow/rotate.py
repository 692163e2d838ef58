"""Rotating and revoking keys without a restart: the unit first, then the service, then the proof; or everything back.

It waits for no other change, however long that takes: a leaked key can always be revoked at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from installer.base.changes import Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import english, mark, tr
from installer.base.layout import Layout
from installer.base.locks import Busy
from installer.base.report import Report
from installer.flow import limit, prove
from installer.flow.converge import never_proved, settled
from installer.flow.transaction import Transaction, changing
from installer.flow.wanted import Wanted
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import managed, save_state
from installer.spec.state import Rekeying, event
from installer.spec.target import Target
from installer.units import alarm, keyring, render
from installer.units.graph import Member, handle, members
from installer.units.holding import holding
from installer.units.keyring import PutInForce, unit_keys
from installer.units.processes import of_unit, read
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


@dataclass(frozen=True)
class _Edits:
    """What becomes of the keys, in the unit and in a generation before, and what is done with the new one."""

    what: str
    edit: Edit
    edit_proved: Edit
    accepted: str | None = None  # has to open the service then
    # Is told the keys that were there and what the service does, before the change counts as done.
    hand_over: Callable[[tuple[Key, ...], str], None] = lambda *_: None


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

    edits = _Edits(f"set-apikey {new.name}", edit, edit, text, hand_over)
    _change(_Rekeying(edits, Layout(service), host, report))


def revoke_key(service: str, name: str, host: Host, report: Report) -> None:
    def edit(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return keys.revoke(held, name, _from_now(timedelta()))

    def forget(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return tuple(key for key in held if key.name != name)

    edits = _Edits(f"keys revoke {name}", edit, forget)
    try:
        _change(_Rekeying(edits, Layout(service), host, report))
    finally:
        limit.forget(name, host, Layout(service), report)


def take_keys(service: str, held: tuple[Key, ...], host: Host, report: Report) -> None:
    """The keys as they were before a change of several hosts."""
    if keyring.in_record(list_keys(service, host)) != keyring.in_record(held):
        edits = _Edits("keys of before", lambda _: held, lambda _: held)
        _change(_Rekeying(edits, Layout(service), host, report))


class _Rekeying(Transaction):
    """A running service takes the keys at once, a stopped one at its next start."""

    def __init__(self, edits: _Edits, layout: Layout, host: Host, report: Report) -> None:
        super().__init__(layout, (), host, report)
        self.edits, self.put = edits, PutInForce(layout)
        self.now, self.silence = STARTS, ""

    def claim(self) -> None:
        self.texts, self.held = _held(self.host, self.layout)
        self.wanted = self.edits.edit(self.held)
        self.changes = [*self._writes(), self.put]
        rekeying = Rekeying(self.edits.what, keyring.in_record(self.held))
        self.state = dataclasses.replace(managed(self.host, self.layout), rekeying=rekeying)
        save_state(self.host, self.layout, self.state)

    def _writes(self) -> Iterator[Write]:
        for unit, text in self.texts.items():
            if (new := render.with_keys(text, self.wanted)) != text:
                yield Write(unit.path, new, self.host.mode(unit.path) or 0o644)

    def prove(self) -> None:
        """A service that says nothing is no reason to bring back a key that was to go."""
        try:
            self.now = self._see_them_taken()
        except prove.Silent as silent:
            left = {key.digest for key in self.wanted}
            if all(key.digest in left or key.is_over for key in self.held):
                raise
            self.now, self.silence = SILENT, silent.message

    def _see_them_taken(self) -> str:
        """What the service does, once the keys are in force and nothing that it started with can put others there."""
        began = time.monotonic()
        while None in (found := {unit: self._doing(unit) for unit in self.texts}).values():
            if time.monotonic() - began > TAKES_UP:
                late = next(unit for unit, doing in found.items() if doing is None)
                raise prove.NotProved(tr("{unit} did not take the new keys", unit=late.name))
            self.put.put(self.host)
        if SERVES in found.values() and self.state.proved and not self.host.lock_holder(self.layout.change_lock):
            target = dataclasses.replace(self.state.proved, keys=self.wanted)
            return self._asked(target, {unit.name for unit, doing in found.items() if doing == SERVES})
        # Where it listens is about to change, perhaps; who changes it proves it.
        return STOPPED if set(found.values()) == {STOPPED} else STARTS

    def _doing(self, unit: Member) -> str | None:
        """What one unit of it does; None while it has not taken the keys."""
        shown = unit_properties(self.host, unit.name, "ActiveState", "MainPID")
        pid, active = int(shown.get("MainPID") or 0), shown.get("ActiveState")
        if not pid or active not in ("active", "reloading", "activating"):
            return STARTS if active == "activating" else STOPPED
        # A launcher that was started before the unit was written still has the old keys to put there.
        processes = {pid, *of_unit(self.host, unit.name)}
        launching = any(_is_launcher(self.host, each) for each in processes)
        if launching or keyring.live_keys(self.host, unit.run_dir) != keyring.in_force(self.wanted):
            return None
        return STARTS if active == "activating" or holding(self.host, unit) else SERVES

    def _asked(self, target: Target, serving: Collection[str]) -> str:
        """Every one is asked, also after one that says nothing: another may say that it refuses nobody."""
        want = Wanted(target, self.layout, (self.host.read(self.layout.probe_key) or "").strip())
        silent: prove.Silent | None = None
        outcome = STARTS
        for unit in (member for member in members(self.layout, target) if member.name in serving):
            try:
                prove.keys_in_force(want, self.host, self.edits.accepted, [unit])
                outcome = SERVES
            except prove.Silent as nothing:
                if not holding(self.host, unit):  # else its engine ended just as it was asked
                    silent = silent or nothing
        if silent:
            raise silent
        if outcome == SERVES and target.replicas and self._has_gateway():
            prove.keys_in_force(want, self.host, self.edits.accepted, [handle(self.layout, target)])
        return outcome

    def _has_gateway(self) -> bool:
        """One that runs: without it nobody comes to the members, and that is another fault."""
        shown = unit_properties(self.host, self.layout.unit_name, "ActiveState")
        return shown.get("ActiveState") in ("active", "reloading")

    def remember(self) -> None:
        """What a change that is under way would come back to changes as well; then no key comes back by it."""
        self.edits.hand_over(self.held, self.now)
        proved = self.state.proved
        if proved and self.state.pending is None:
            proved = dataclasses.replace(proved, keys=self.wanted)
        elif proved:
            edited = self.edits.edit_proved(proved.keys)
            proved = dataclasses.replace(proved, keys=edited if keys.may_ask(edited) else self.wanted)
        history = (*self.state.history, event(self.edits.what, OUTCOME[self.now]))
        save_state(
            self.host, self.layout, dataclasses.replace(self.state, proved=proved, rekeying=None, history=history)
        )

    def undo(self, why: str) -> str:
        """The units as they were, byte for byte; the rest as after a change that was cut off."""
        for path, text in ((unit.path, text) for unit, text in self.texts.items()):
            if self.host.read(path) != text:
                self.host.write(path, text, self.host.mode(path) or 0o644)
        keyring.put_back(self.state, f"undone: {english(why)}", self.host, self.layout)
        return tr("the keys are as they were")


def _change(rekeying: _Rekeying) -> None:
    """The keys first, then what an earlier change left half done: that may take minutes."""
    layout, host, report, what = rekeying.layout, rekeying.host, rekeying.report, rekeying.edits.what
    state = managed(host, layout)
    if state.proved is None and host.lock_holder(layout.change_lock) is None:
        with changing(layout, what, host):
            settled(host, layout, report)
        raise never_proved(layout)
    try:
        with keyring.locked(host, layout, report, what):
            rekeying.run()
    finally:
        alarm.rouse(host, layout)
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


def _held(host: Host, layout: Layout) -> tuple[dict[Member, str], tuple[Key, ...]]:
    """The texts of all units that have the service's keys, and these."""
    held_by = keyring.key_units(host, layout) or members(layout, managed(host, layout).proved)[:1]
    texts = {unit: host.read(unit.path) for unit in held_by}
    again = f"vllm-install deploy --service {layout.service}"
    for unit, text in texts.items():
        if text is None:
            raise Refused(tr("{unit} is not there", unit=unit.path), again)
        if not text:
            unmask = f"systemctl unmask {unit.stem} && {again}"
            raise Refused(tr("{unit} is masked", unit=unit.path), unmask)
    return {unit: text for unit, text in texts.items() if text}, keys.named_apart(unit_keys(host, layout))


def _from_now(span: timedelta) -> str:
    return keys.stamp(datetime.now(timezone.utc) + span)


def _is_launcher(host: Host, pid: int) -> bool:
    """Not podman, which has the launcher's name among its words for as long as the container runs."""
    words = read(host, pid, "cmdline").split("\0")
    return len(words) > 2 and words[1].endswith("/vllm_launcher.py") and words[2] == "launch"
