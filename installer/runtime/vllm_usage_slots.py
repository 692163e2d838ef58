"""The processes that share a table of usage: what each tells the others, for as long as it lives. Stdlib only."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_usage as form
    from installer.runtime.vllm_usage_file import places_in_use
else:
    import vllm_usage as form
    from vllm_usage_file import places_in_use

log = logging.getLogger("vllm.guard")


class Slots:
    """Each process has a slot, by a lock that goes with it, however it ends; `own` is ours, -1 where none was left."""

    def __init__(self, descriptor: int, clock: Callable[[], float]) -> None:
        self.descriptor, self.clock = descriptor, clock
        self.own = -1
        self._taken, self._taken_at = 0, -1

    def take(self) -> None:
        for slot in range(form.SLOTS):
            with contextlib.suppress(OSError):
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                self.own = slot
                break
        else:
            log.error("more than %d API servers: what this one has under way counts for itself alone", form.SLOTS)
            return
        for place in places_in_use(self.descriptor):  # of who had the slot before
            self._write_active(place, self.own, 0)
        self.publish(0, 0, 0)

    def is_dead(self, slot: int) -> bool:
        """Whether nobody holds that slot. Our own is not to be asked for: it would be given up."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:
            return False
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, slot)
        return True

    def taken(self) -> int:
        """Up to the last process that lives, looked for once a second."""
        second = int(self.clock())
        if self._taken_at != second:
            others = (slot for slot in range(form.SLOTS) if slot != self.own and not self.is_dead(slot))
            self._taken_at, self._taken = second, max(self.own, *others, -1) + 1
        return self._taken

    # The load of each

    def publish(self, waiting: int, tokens: int, rate: int) -> None:
        if self.own >= 0:
            with contextlib.suppress(OSError):
                data = form.SLOT.pack(waiting, tokens, rate)
                os.pwrite(self.descriptor, data, form.SLOTS_AT + self.own * form.SLOT.size)

    def others(self) -> list[tuple[int, int, int]]:
        """What the other processes that live have published."""
        data = os.pread(self.descriptor, self.taken() * form.SLOT.size, form.SLOTS_AT)
        return [
            (waiting, tokens, rate)
            for slot, (waiting, tokens, rate) in enumerate(form.SLOT.iter_unpack(data))
            if slot != self.own and 0 < max(waiting, tokens, rate) <= form.MOST and not self.is_dead(slot)
        ]

    # The requests of a key that each has under way, in the key's record

    def set_active(self, place: int, requests: int) -> None:
        if self.own >= 0:
            with contextlib.suppress(OSError):
                self._write_active(place, self.own, requests)

    def active(self, place: int) -> int:
        """In all other processes."""
        taken = self.taken()
        numbers = struct.unpack(f"<{taken}Q", os.pread(self.descriptor, taken * form.WORD, place + form.ACTIVE_AT))
        return sum(n for slot, n in enumerate(numbers) if slot != self.own and n <= form.MOST)

    def forget_dead(self, place: int) -> None:
        """Let what dead processes had under way be over."""
        for slot in range(self.taken()):
            if slot != self.own and self.is_dead(slot):
                self._write_active(place, slot, 0)

    def _write_active(self, place: int, slot: int, requests: int) -> None:
        at = place + form.ACTIVE_AT + slot * form.WORD
        os.pwrite(self.descriptor, requests.to_bytes(form.WORD, "little"), at)
