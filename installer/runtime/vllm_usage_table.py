"""The table of what keys have used, as one process has it open: one file, shared by all API servers. Stdlib only."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_usage as form
    from installer.runtime.vllm_usage_file import find, in_memory, is_sound, locked, make, opened, padded, places_in_use
    from installer.runtime.vllm_usage_record import Record
    from installer.runtime.vllm_usage_slots import Slots
else:
    import vllm_usage as form
    from vllm_usage_file import find, in_memory, is_sound, locked, make, opened, padded, places_in_use
    from vllm_usage_record import Record
    from vllm_usage_slots import Slots

log = logging.getLogger("vllm.guard")
T = TypeVar("T")

COMPLAIN_EVERY, LOOK_EVERY = 60.0, 10.0


def since_boot() -> float:
    """A clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Table:
    """The file as one process has it open. Whatever is wrong with it, no request fails by that."""

    def __init__(
        self, directory: str, clock: Callable[[], float] = since_boot, wall: Callable[[], float] = time.time
    ) -> None:
        self.clock, self.wall = clock, wall
        self.path = os.path.join(directory, form.FILE) if directory else ""
        self.slots: Slots | None = None  # of the file that is open
        self.active: dict[str, int] = {}  # requests under way in this process, of keys that are limited by them
        self._places: dict[str, tuple[int, bytes]] = {}  # with the name as it stands there
        self._look_at = self._patient_at = self._complain_at = 0.0

    @property
    def descriptor(self) -> int:
        return self.slots.descriptor if self.slots else -1

    def ready(self, now: float) -> Slots:
        if self.slots is None:
            return self._open()
        if now >= self._look_at and self.path:
            self._look_at = now + LOOK_EVERY
            if not is_sound(self.path, self.descriptor):
                return self._open()
        return self.slots

    def _open(self) -> Slots:
        try:
            new = opened(self.path) if self.path else in_memory()
        except OSError as error:
            self._complain(error)
            if self.slots is not None:
                return self.slots
            new = in_memory()
        if self.slots is not None:
            os.close(self.descriptor)
        self.slots = slots = Slots(new, self.clock)
        self._places.clear()
        slots.take()
        return slots

    # Changing a key's record

    def change(self, name: str, do: Callable[[Record], T]) -> T | None:
        """What `do` says of the record, which nobody else changes meanwhile; nothing where that is not possible."""
        is_locked = False
        try:
            now = self.clock()
            slots = self.ready(now)
            is_locked = self._lock(now)
            record = self._record(name, slots)
            record.turn(int(now), self.wall())
            said = do(record)
            os.pwrite(self.descriptor, form.HEAD.pack(*record.words), record.place + form.NAME_SIZE)
            return said
        except (OSError, ValueError, ArithmeticError, IndexError, struct.error) as error:
            self._places.clear()
            self._complain(error)
            return None
        finally:
            if is_locked:
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def add(self, name: str, numbers: Sequence[int], *, is_limited: bool) -> None:
        def do(record: Record) -> None:
            record.add(numbers)
            if is_limited:
                record.add_recent(0, numbers[form.PROMPT] + numbers[form.COMPLETION])

        self.change(name, do)

    def begin(self, name: str, more: int) -> None:
        """One more request of a key is under way in this process, or one less."""
        self.active[name] = now = max(0, self.active.get(name, 0) + more)
        known = self._places.get(name)
        if self.slots and known:
            self.slots.set_active(known[0], now)

    def _record(self, name: str, slots: Slots) -> Record:
        place, name_there = self._places.get(name) or (-1, padded(name))
        head = os.pread(self.descriptor, form.HEAD_SIZE, place) if place >= 0 else b""
        if not head.startswith(name_there):
            place, head = find(self.descriptor, name_there, self.path)
            self._places[name] = place, name_there
        words = list(form.HEAD.unpack_from(head, form.NAME_SIZE))
        if max(words) > form.MOST:
            log.error("what %s says of the key %s makes no sense: it is counted anew", self.path or form.FILE, name)
            words = list(form.HEAD.unpack_from(make(self.descriptor, place, name_there), form.NAME_SIZE))
        return Record(slots, place, words)

    def _lock(self, now: float) -> bool:
        """Nobody has it for longer than microseconds, unless he was stopped: then it is done without."""
        if locked(self.descriptor, is_patient=now >= self._patient_at):
            return True
        self._patient_at = now + 1
        return False

    def _complain(self, error: Exception) -> None:
        if self.clock() >= self._complain_at:
            log.error("usage is not kept as it should be: %s: %s", self.path or "in memory", error)
            self._complain_at = self.clock() + COMPLAIN_EVERY

    # What the processes tell each other

    def publish(self, waiting: int, tokens: int, rate: int) -> None:
        if self.slots:
            self.slots.publish(waiting, tokens, rate)

    def others(self) -> list[tuple[int, int, int]]:
        """What the other processes that live have published."""
        try:
            return self.ready(self.clock()).others()
        except OSError as error:
            self._complain(error)
            return []

    def say_tokens_are_counted(self, are: bool) -> None:
        self.ready(self.clock())
        with contextlib.suppress(OSError):
            os.pwrite(self.descriptor, int(are).to_bytes(form.WORD, "little"), form.KNOWS_TOKENS)

    def totals(self) -> list[tuple[str, form.Numbers]]:
        """What each key has used since it was first seen."""
        try:
            self.ready(self.clock())
            heads = [os.pread(self.descriptor, form.HEAD_SIZE, place) for place in places_in_use(self.descriptor)]
            found = {each.name: each.total for each in map(form.used_of_head, heads) if each}
        except OSError as error:
            self._complain(error)
            return []
        return list(found.items())
