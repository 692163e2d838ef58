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
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.runtime import vllm_flags
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import load_state, readable_state, save_state
from installer.spec.state import State, event
from installer.units.graph import Member, handle, on_disk
from installer.units.render import has_keys, with_keys
from installer.units.syntax import exec_line

ANY = Layout("any")
NOTICED = 0.1  # seconds after which new keys are in force: the guard looks every 0.05 s
LONGEST_KEYS = 1024 * 1024  # bytes of the file with the keys in force


def key_units(host: Host, layout: Layout) -> list[Member]:
    """The units of ours that hold the service's keys: itself, or its members; both while it goes from one to the other.

    All hold the same ones. Where somebody edited one, what the first has counts, and is what the others get next.
    """
    return [unit for unit in (handle(layout), *replicas(host, layout)) if has_keys(host.read(unit.path) or "")]


def replicas(host: Host, layout: Layout) -> list[Member]:
    """Those of ours that lie on the disk; an admin may have made another unit of such a name."""
    state = readable_state(host, layout)
    return [member for member in on_disk(host, layout) if state is None or str(member.path) in state.owned]


def _may_run(host: Host, layout: Layout) -> list[Member]:
    """The same, and those whose units are gone from the disk and that run on."""
    state = readable_state(host, layout)
    names = [Path(path).name for path in state.owned] if state else []
    known = [Member(layout, name, number) for name in names if (number := layout.number_of(name))]
    return [handle(layout), *(known or on_disk(host, layout))]


def first_unit(host: Host, layout: Layout) -> Path:
    return next((unit.path for unit in key_units(host, layout)), layout.unit)


def unit_keys(host: Host, layout: Layout) -> list[Key]:
    """The keys in the unit, which is their one source of truth."""
    return keys_in(host.read(first_unit(host, layout)) or "")


def live_keys(host: Host, run_dir: Path) -> frozenset[tuple[str, str]]:
    """The keys in force, as the service's own user has them in a file; none where something else lies there."""
    owner = host.owner(run_dir)
    try:
        text = host.read_of(run_dir / "keys", () if owner is None else (owner,), LONGEST_KEYS) or ""
    except (Strange, IsADirectoryError):
        text = ""
    return frozenset((line.split()[0], line.split()[2]) for line in text.splitlines() if len(line.split()) >= 3)


def in_record(held: Iterable[Key]) -> tuple[str, ...]:
    """As the record names keys: one that the unit holds verbatim by its digest, for everybody can read the record."""
    return tuple(dataclasses.replace(key, plain=None).argument for key in held)


def in_force(held: Iterable[Key]) -> frozenset[tuple[str, str]]:
    return frozenset((key.name, key.digest) for key in held)


def alone(host: Host, layout: Layout, report: Report, verb: str) -> AbstractContextManager[None]:
    """Within, nobody else changes the record or the unit; who has to wait is told for which verb."""
    return host.lock(layout.keys_lock, f"vllm-install {verb} --service {layout.service}", report.waits)


@contextmanager
def locked(host: Host, layout: Layout, report: Report, verb: str = "keys") -> Iterator[State | None]:
    """The record, which nobody else changes within. A change of keys that was cut off is undone first."""
    with alone(host, layout, report, verb):
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
    if units := key_units(host, layout):
        for unit in units:
            _put_back(unit.path, before, host)
        host.systemctl("daemon-reload")
        if any(
            live_keys(host, unit.run_dir) != in_force(before) for unit in units
        ):  # what failed was perhaps just that
            PutInForce(layout).apply(host, Report())
    history = (*state.history, event(state.rekeying.what, outcome))
    state = dataclasses.replace(state, rekeying=None, history=history)
    save_state(host, layout, state)
    return state


def _put_back(path: Path, before: tuple[Key, ...], host: Host) -> None:
    text = host.read(path) or ""
    if in_record(keys.named_apart(keys_in(text))) != in_record(before):
        host.write(path, with_keys(text, before), host.mode(path) or 0o644)


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
        text = self._text(host)
        for run_dir in self._places(host):
            host.write_into(run_dir, "keys", text)
        time.sleep(NOTICED)

    def _places(self, host: Host) -> list[Path]:
        """Of every unit that has them, and of one that does no more, but still runs as it did."""
        holders = {unit.run_dir for unit in key_units(host, self.layout)}
        known = [unit.run_dir for unit in _may_run(host, self.layout)]
        return [place for place in known if host.exists(place) and (place in holders or host.exists(place / "keys"))]

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
                text = with_keys(text, merged(keys_in(text), self.held, now))
            host.write(self.path, text, self.mode)


def held_in_unit(host: Host, layout: Layout) -> tuple[Key, ...]:
    """The keys in a unit of ours; what somebody else's has in their place is not read, nor what cannot be read."""
    text = host.read(first_unit(host, layout)) or ""
    try:
        words = exec_line(text)
        ours = len(words) > 1 and layout.runtimes in Path(words[1]).parents
        return keys.named_apart(keys_in(text)) if ours else ()
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


def keys_in(unit_text: str) -> list[Key]:
    """Those of one unit."""
    return list(map(keys.parse, vllm_flags.split(exec_line(unit_text))[0]))
