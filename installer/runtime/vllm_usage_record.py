"""What one key has used, as it is counted: in all, today, this month, and in the last minute. Stdlib only."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_usage as form
    from installer.runtime.vllm_usage_slots import Slots
else:
    import vllm_usage as form
    from vllm_usage_slots import Slots


def month_of(day: int) -> int:
    """A number for the month of a day: a later month has a larger one."""
    at = time.gmtime(day * 86400)
    return at.tm_year * 12 + at.tm_mon - 1


class Record:
    """One key's numbers, as they are while the table is locked."""

    def __init__(self, slots: Slots, place: int, words: list[int]) -> None:
        self.slots, self.place, self.words, self.wall = slots, place, words, 0

    @property
    def recent(self) -> tuple[int, int]:
        """Requests and tokens of the last minute."""
        return self.words[form.RECENT], self.words[form.RECENT + 1]

    @property
    def spent(self) -> int:
        """Tokens of this month."""
        return self.words[form.SPENT]

    def turn(self, second: int, wall: float) -> None:
        """Let the clocks have gone on. The day's is set by people: it goes back as well as on, and each day counts."""
        self.wall = int(wall) & form.MOST
        if self.words[form.DAY] != self.wall // 86400:
            self._turn_day(self.wall // 86400)
        if self.words[form.SECOND] != second:
            self._turn_window(second)

    def _turn_day(self, day: int) -> None:
        words, month = self.words, month_of(day)
        self._write(
            form.DAYS_AT + words[form.DAY] % form.DAYS * form.NUMBERS.size,
            form.NUMBERS.pack(*words[form.DAY : form.TODAY + 6]),
        )
        days = dict(form.days_of(self._read(form.DAYS_AT, form.DAYS * form.NUMBERS.size)))
        words[form.DAY], words[form.TODAY : form.TODAY + 6] = day, days.pop(day, form.Numbers())
        words[form.MONTH] = month
        words[form.SPENT] = sum(
            n.prompt_tokens + n.completion_tokens for at, n in days.items() if month_of(at) == month
        )
        words[form.SPENT] += words[form.TODAY + form.PROMPT] + words[form.TODAY + form.COMPLETION]

    def _turn_window(self, second: int) -> None:
        """Sums are made anew each second: what a killed process left half done is right again then."""
        words, bins = self.words, self.bins()
        last = words[form.SECOND]
        bins[last % form.WINDOW] = (words[form.NOW], words[form.NOW + 1])
        gone = second - last if 0 <= second - last < form.WINDOW else form.WINDOW  # or back: the host was booted
        for each in range(second - gone + 1, second + 1):
            bins[each % form.WINDOW] = (0, 0)
        words[form.SECOND], words[form.NOW], words[form.NOW + 1] = second, 0, 0
        words[form.RECENT] = sum(requests for requests, _ in bins) & form.MOST
        words[form.RECENT + 1] = sum(tokens for _, tokens in bins) & form.MOST
        self._write(form.BINS_AT, form.BINS.pack(*(number for each in bins for number in each)))

    def bins(self) -> list[tuple[int, int]]:
        """Requests and tokens of each second of the last minute but this one."""
        numbers = form.BINS.unpack(self._read(form.BINS_AT, form.BINS.size))
        return [(numbers[at] & form.MOST, numbers[at + 1] & form.MOST) for at in range(0, 2 * form.WINDOW, 2)]

    def until_less(self, column: int, most: int) -> int:
        """Seconds until the minute holds less than this of requests or tokens."""
        bins, second, left = self.bins(), self.words[form.SECOND], self.words[form.RECENT + column]
        for wait in range(1, form.WINDOW):
            left -= bins[(second + wait) % form.WINDOW][column]
            if left < most:
                return wait
        return form.WINDOW

    def add_recent(self, requests: int, tokens: int) -> None:
        for first in (form.NOW, form.RECENT):
            for at, more in ((first, requests), (first + 1, tokens)):
                self.words[at] = (self.words[at] + more) & form.MOST

    def add(self, numbers: Sequence[int]) -> None:
        words = self.words
        for at, number in enumerate(numbers):
            if number:
                words[form.TOTAL + at] = (words[form.TOTAL + at] + number) & form.MOST
                words[form.TODAY + at] = (words[form.TODAY + at] + number) & form.MOST
        words[form.SPENT] = (words[form.SPENT] + numbers[form.PROMPT] + numbers[form.COMPLETION]) & form.MOST
        words[form.USED] = self.wall

    def _read(self, at: int, size: int) -> bytes:
        return os.pread(self.slots.descriptor, size, self.place + at)

    def _write(self, at: int, data: bytes) -> None:
        os.pwrite(self.slots.descriptor, data, self.place + at)
