"""What a key may use at most: the file that root writes, and whether the next request of a key is one too many.

Shared by the tool, which writes what `line` makes, and by the guard, which reads it by `parse`. Stdlib only.
"""

from __future__ import annotations

import calendar
import logging
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_usage import MOST
    from installer.runtime.vllm_usage_record import Record
    from installer.runtime.vllm_usage_table import since_boot
else:
    from vllm_usage import MOST
    from vllm_usage_record import Record
    from vllm_usage_table import since_boot

log = logging.getLogger("vllm.guard")

LOOK_EVERY = 1.0  # seconds that the file is taken to be unchanged
LARGEST = 1 << 20
PRIORITIES = {"high": -1, "normal": 0, "low": 1}  # as vLLM has them: the smaller comes first
NUMBERS = ("concurrent", "requests", "tokens", "budget")
NAME = re.compile(r"[a-z0-9_-]+", re.ASCII)
NUMBER = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)


class Limit(NamedTuple):
    """None: as much as it likes."""

    concurrent: int | None = None
    requests: int | None = None  # in a minute
    tokens: int | None = None  # in a minute
    budget: int | None = None  # tokens in a month
    priority: str = "normal"


NO_LIMIT = Limit()


class Refusal(NamedTuple):
    """Why a request is not taken, and when the next one may be."""

    status: int
    code: str
    message: str
    retry_after: int


def line(name: str, limit: Limit) -> str:
    """`team-a concurrent=8 requests=600 priority=high`"""
    words = [f"{each}={getattr(limit, each)}" for each in NUMBERS if getattr(limit, each) is not None]
    return " ".join([name, *words, *([f"priority={limit.priority}"] if limit.priority != "normal" else [])])


def parse(text: str) -> tuple[dict[str, Limit], int]:
    """The limits by name, and how many lines make no sense; a line that begins with # is for people."""
    found: dict[str, Limit] = {}
    damaged = 0
    for each in text.splitlines():
        name, *words = each.split() or ["#"]
        if name.startswith("#"):
            continue
        limit = _limit(words)
        if limit is None or not NAME.fullmatch(name) or name in found:
            damaged += 1
        else:
            found[name] = limit
    return found, damaged


def _limit(words: list[str]) -> Limit | None:
    limit = NO_LIMIT
    for word in words:
        name, _, value = word.partition("=")
        if name in NUMBERS and NUMBER.fullmatch(value) and getattr(limit, name) is None and int(value) <= MOST:
            limit = limit._replace(**{name: int(value)})  # type: ignore[arg-type]
        elif name == "priority" and value in PRIORITIES:
            limit = limit._replace(priority=value)
        else:
            return None
    return limit


class Limits:
    """The file as it is now. One that is not there limits nobody; one that cannot be read changes nothing."""

    def __init__(self, path: str, clock: Callable[[], float] = since_boot) -> None:
        self.path, self.clock = path, clock
        self.by_name: dict[str, Limit] = {}
        self._look_at = 0.0
        self._seen: tuple[int, ...] | None = None

    def of(self, name: str) -> Limit:
        if self.path and self.clock() >= self._look_at:
            self._look()
        return self.by_name.get(name, NO_LIMIT)

    def _look(self) -> None:
        self._look_at = self.clock() + LOOK_EVERY
        try:
            status = os.stat(self.path)
            seen: tuple[int, ...] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._read()
        except FileNotFoundError:
            self.by_name, self._seen = {}, None
        except Exception as error:  # of whatever kind: a request must not fail by it
            log.error("the limits of keys stay as they were: %s: %s", self.path, error)

    def _read(self) -> None:
        with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OSError(f"it is larger than {LARGEST} bytes")
        self.by_name, damaged = parse(content.decode(errors="replace"))
        if damaged:
            log.error("%d lines of %s cannot be read: they limit nobody", damaged, self.path)


def judge(record: Record, limit: Limit, own: int) -> Refusal | None:
    """Whether a request of the key, with `own` under way in this process, is one too many now."""
    requests, tokens = record.recent
    if limit.budget is not None and record.spent >= limit.budget:
        said = f"The budget of this API key is spent: {limit.budget} tokens a month."
        return Refusal(429, "insufficient_quota", said, until_next_month(record.wall))
    if limit.tokens is not None and tokens >= limit.tokens:
        said = f"This API key may use {limit.tokens} tokens a minute."
        return Refusal(429, "rate_limit_exceeded", said, record.until_less(1, limit.tokens))
    if limit.requests is not None and requests >= limit.requests:
        said = f"This API key may make {limit.requests} requests a minute."
        return Refusal(429, "rate_limit_exceeded", said, record.until_less(0, limit.requests))
    if limit.concurrent is not None and is_busy(record, own, limit.concurrent):
        said = f"This API key may have {limit.concurrent} requests under way at once."
        return Refusal(429, "rate_limit_exceeded", said, 1)
    return None


def is_busy(record: Record, own: int, most: int) -> bool:
    slots, place = record.slots, record.place
    if own + slots.active(place) < most:
        return False
    slots.forget_dead(place)
    return own + slots.active(place) >= most


def until_next_month(now: int) -> int:
    """Seconds until it begins in UTC."""
    at = time.gmtime(now)
    year, month = divmod(at.tm_year * 12 + at.tm_mon, 12)
    return calendar.timegm((year, month + 1, 1, 0, 0, 0)) - now
