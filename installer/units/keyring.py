"""The keys of a service while several commands change it: a key is set or revoked at once, whatever else is under way.

Whoever writes the unit or the record holds the keys lock for that moment, and starts from what stands there then:
a change that takes minutes does not bring back a key that was revoked meanwhile.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from installer.base.changes import Write
from installer.base.errors import InstallError
from installer.base.host import Host, Strange
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.runtime import vllm_flags
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import load_state, save_state
from installer.spec.state import State, event
from installer.units.render import with_keys
from installer.units.syntax import exec_line

ANY = Layout("any")
NOTICED = 0.1  # seconds after which new keys are in force: the guard looks every 0.05 s
LONGEST_KEYS = 1024 * 1024  # bytes of the file with the keys in force


def unit_keys(host: Host, layout: Layout) -> list[Key]:
    """The keys in the unit, which is their one source of truth."""
    return _keys_in(host.read(layout.unit) or "")


def live_keys(host: Host, layout: Layout) -> frozenset[tuple[str, str]]:
    """The keys in force, as the service's own user has them in a file; none where something else lies there."""
    owner = host.owner(layout.run_dir)
    try:
        text = host.read_of(layout.run_dir / "keys", () if owner is None else (owner,), LONGEST_KEYS) or ""
    except Strange:
        text = ""
    return frozenset((line.split()[0], line.split()[2]) for line in text.splitlines() if len(line.split()) >= 3)


def in_record(held: Iterable[Key]) -> tuple[str, ...]:
    """As the record names keys: one that the unit holds verbatim by its digest, for everybody can read the record."""
    return tuple(dataclasses.replace(key, plain=None).argument for key in held)


def in_force(held: Iterable[Key]) -> frozenset[tuple[str, str]]:
    return frozenset((key.name, key.digest) for key in held)


def alone(host: Host, layout: Layout, report: Report) -> AbstractContextManager[None]:
    """Within, nobody else changes the record or the unit."""
    return host.lock(layout.keys_lock, f"vllm-install --service {layout.service}", report.waits)


@contextmanager
def locked(host: Host, layout: Layout, report: Report) -> Iterator[State | None]:
    """The record, which nobody else changes within. A change of keys that was cut off is undone first."""
    with alone(host, layout, report):
        state = load_state(host, layout)
        if state and state.rekeying:
            report.warn(tr("{pending} was cut off; undoing it first", pending=state.rekeying.what))
            state = put_back(state, "undone: cut off", host, layout)
        yield state


def update(known: State, change: Callable[[State], State], host: Host, layout: Layout, report: Report) -> State:
    """Change the record as it is now; `known` is where there is none yet."""
    with locked(host, layout, report) as now:
        changed = change(now or known)
        save_state(host, layout, changed)
        return changed


def put_back(state: State, outcome: str, host: Host, layout: Layout) -> State:
    """The keys as they were before a change of them that failed or was cut off."""
    assert state.rekeying is not None, "there is a change of keys to undo"
    before = tuple(keys.parse(argument) for argument in state.rekeying.before)
    if text := host.read(layout.unit):
        if in_record(keys.named_apart(_keys_in(text))) != state.rekeying.before:
            host.write(layout.unit, with_keys(text, before), host.mode(layout.unit) or 0o644)
        host.systemctl("daemon-reload")
        if live_keys(host, layout) != in_force(before):  # what failed was perhaps just that
            PutInForce(layout).apply(host, Report())
    history = (*state.history, event(state.rekeying.what, outcome))
    state = dataclasses.replace(state, rekeying=None, history=history)
    save_state(host, layout, state)
    return state


@dataclass(frozen=True)
class PutInForce:
    """Hand the unit's keys to the service, also while it starts: root writes the file that its guard reads.

    A reload would do the same, but takes no effect on a service that is starting, and runs as the service's own user,
    who could hold it up.
    """

    layout: Layout

    def describe(self) -> str:
        return tr("put the keys of {unit} into force", unit=self.layout.unit_name)

    def to_json(self) -> dict[str, object]:
        return {"kind": "keys", "unit": self.layout.unit_name}

    def apply(self, host: Host, report: Report) -> None:
        host.systemctl("daemon-reload")  # a start from now on takes the keys from the unit
        self.put(host)

    def put(self, host: Host) -> None:
        if host.exists(self.layout.run_dir):
            host.write_into(self.layout.run_dir, "keys", self._text(host))
        time.sleep(NOTICED)

    def _text(self, host: Host) -> str:
        """As the launcher writes it: the watcher's key first."""
        probe = host.word(self.layout.probe_key)
        first = (Key(keys.PROBE, keys.digest(probe)),) if probe else ()
        held = keys.named_apart(unit_keys(host, self.layout))
        lines = [f"{key.name} {key.role} {key.digest} {key.expiry or '-'}\n" for key in (*first, *held)]
        return "".join(dict.fromkeys(lines))


@dataclass(frozen=True)
class TakeKeys(PutInForce):
    """The same as part of a longer change: nobody changes the unit's keys while they are handed over."""

    def apply(self, host: Host, report: Report) -> None:
        with locked(host, self.layout, report):
            super().apply(host, report)


@dataclass(frozen=True)
class WriteUnit(Write):
    """Write the unit of a service, with what became of its keys since `held`, which this was planned from."""

    layout: Layout = ANY
    held: tuple[Key, ...] = ()

    def apply(self, host: Host, report: Report) -> None:
        with locked(host, self.layout, report):
            now = held_in_unit(host, self.layout)
            text = self.text
            if set(now) != set(self.held):
                text = with_keys(text, merged(_keys_in(text), self.held, now))
            host.write(self.path, text, self.mode)


def held_in_unit(host: Host, layout: Layout) -> tuple[Key, ...]:
    """The keys in a unit of ours; what somebody else's has in their place is not read, nor what cannot be read."""
    text = host.read(layout.unit) or ""
    try:
        words = exec_line(text)
        ours = len(words) > 1 and layout.runtimes in Path(words[1]).parents
        return keys.named_apart(_keys_in(text)) if ours else ()
    except InstallError:
        return ()


def merged(ours: Iterable[Key], before: Iterable[Key], now: Iterable[Key]) -> tuple[Key, ...]:
    """Our keys, changed as `before` was changed into `now`: what was revoked stays away, what was set stays."""
    before, now = tuple(before), tuple(now)
    gone = {key.digest for key in before} - {key.digest for key in now}
    gone_names = {key.name for key in before} - {key.name for key in now}
    fresh = [key for key in now if key not in before]
    names = gone_names | {key.name for key in fresh}
    kept = [key for key in ours if key.digest not in gone and key.name not in names]
    found = keys.named_apart([*kept, *fresh])
    return found if keys.may_ask(found) else now


def _keys_in(unit_text: str) -> list[Key]:
    return list(map(keys.parse, vllm_flags.split(exec_line(unit_text))[0]))
