"""How many wait for their first token, over all API servers of a service, and how long that will take.

Beyond MAX_QUEUED of them, or beyond TTFT, the next one is told to come again. Stdlib only.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from installer.runtime.vllm_count import Call, Counter
    from installer.runtime.vllm_limits import Refusal
    from installer.runtime.vllm_usage_table import Table
else:
    from vllm_limits import Refusal

LOOK_EVERY = 0.02  # seconds
MEMORY = 200_000  # tokens; what was measured before fades
AT_ONCE = 1.0  # seconds of a period that is measured, while there is no pause
BYTES_A_TOKEN, GUESSED = 4, 4096  # of a request that is not read yet


def patience(text: str) -> float:
    """`2s` or `500ms` in seconds; 0 where nothing is promised."""
    match = re.fullmatch(r"(\d{1,6})(ms|s)", text, re.ASCII)
    return int(match[1]) * (0.001 if match[2] == "ms" else 1.0) if match else 0.0


class Rate:
    """Tokens of prompts a second, measured while some wait; long periods tell more than short ones."""

    def __init__(self) -> None:
        self._weight = self._sum = 0.0
        self._began: float | None = None
        self._tokens = 0

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else 0.0

    def begin(self, now: float) -> None:
        if self._began is None:
            self._began, self._tokens = now, 0

    def done(self, tokens: int, now: float, *, is_last: bool) -> None:
        """Some have their first token; `is_last`: nobody waits any more."""
        self._tokens += tokens
        if self._began is None or not (is_last or now - self._began >= AT_ONCE):
            return
        if self._tokens and now > self._began:
            self._weigh(self._tokens, self._tokens / (now - self._began))
        self._began, self._tokens = None if is_last else now, 0

    def _weigh(self, tokens: int, rate: float) -> None:
        fading = min(1.0, MEMORY / (self._weight + tokens))
        self._sum = (self._sum + tokens * rate) * fading
        self._weight = (self._weight + tokens) * fading


class Queue:
    def __init__(self, table: Table, most: int, within: float) -> None:
        self.table, self.most, self.within = table, most, within
        self.rate = Rate()
        self.counter: Counter | None = None
        self._waiting: dict[Call, None] = {}
        self._is_looking = False

    @classmethod
    def of_environment(cls, table: Table) -> Queue | None:
        """None where everybody may wait."""
        most, within = os.environ.get("MAX_QUEUED", ""), patience(os.environ.get("TTFT", ""))
        number = int(most) if most.isdecimal() else 0
        return cls(table, number, within) if number or within else None

    def judge(self) -> Refusal | None:
        """Whether one more is one too many."""
        self.look()
        others = self.table.others()
        waiting = len(self._waiting) + sum(each[0] for each in others)
        if self.most and waiting >= self.most:
            return Refusal(503, "queue_full", f"{waiting} requests wait already: come again.", 1)
        rate = self.rate.value + sum(each[2] for each in others)
        tokens = sum(map(tokens_of, self._waiting)) + sum(each[1] for each in others)
        if self.within and rate and (left := tokens / rate - self.within) > 0:
            said = f"The first token would take longer than {self.within:g} seconds: come again."
            return Refusal(503, "queue_full", said, max(1, math.ceil(left)))
        return None

    def enter(self, call: Call, size: int) -> None:
        """`size` is that of the body, by which its tokens are guessed until they are known."""
        call.guess, call.begun = min(size // BYTES_A_TOKEN, GUESSED), self.leave
        self.rate.begin(time.monotonic())
        self._waiting[call] = None
        self._publish()
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(LOOK_EVERY, self._look_again)

    def leave(self, call: Call) -> None:
        if call in self._waiting:
            del self._waiting[call]
            fresh = sum(max(0, max(each.tokens, each.prompt) - each.cached) for each in call.asked.values())
            self.rate.done(fresh, time.monotonic(), is_last=not self._waiting)
            self._publish()

    def look(self) -> None:
        for call in [each for each in self._waiting if not self._waits(each)]:
            self.leave(call)

    def _waits(self, call: Call) -> bool:
        counter = self.counter
        return not call.asked or counter is None or all(map(counter.is_waiting, call.asked.values()))

    def _look_again(self) -> None:
        self.look()
        self._is_looking = bool(self._waiting)
        if self._is_looking:
            asyncio.get_running_loop().call_later(LOOK_EVERY, self._look_again)

    def _publish(self) -> None:
        self.table.publish(len(self._waiting), sum(map(tokens_of, self._waiting)), int(self.rate.value))


def tokens_of(call: Call) -> int:
    return sum(question.tokens for question in call.asked.values()) if call.asked else call.guess
