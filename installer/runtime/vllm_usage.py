"""What each key of a service has used: what stands in the file of it, and how it is read. Stdlib only.

Every record has a fixed place, so whoever is killed half way leaves a number that is off by one request and nothing
that cannot be read. vllm_usage_table.py has it open in each API server; the tool reads what lies there by `read`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

FILE = "usage"  # in the service's StateDirectory=
KEYS, DAYS, SLOTS, WINDOW = 1024, 96, 128, 60
NAME_SIZE = 48
NAME = re.compile(rb"([a-z0-9_-]{1,48})\0*", re.ASCII)
WORD = 8  # bytes; every number is one word
MOST = (1 << 53) - 1  # what a number can be: a JSON reader keeps it whole

HEADER = struct.pack("<8sQQQQ", b"usage-01", KEYS, DAYS, SLOTS, WINDOW)
KNOWS_TOKENS = 40  # where it stands whether tokens are counted
SLOT, SLOTS_AT = struct.Struct("<3Q"), 64  # of a process: requests that wait, their tokens, its tokens a second
HEAD, BINS, NUMBERS = struct.Struct("<26Q"), struct.Struct("<120Q"), struct.Struct("<7Q")
HEAD_SIZE = BINS_AT = NAME_SIZE + HEAD.size
ACTIVE_AT = BINS_AT + BINS.size
DAYS_AT = ACTIVE_AT + SLOTS * WORD
STRIDE = 7680
RECORDS_AT = 4096
SIZE = RECORDS_AT + KEYS * STRIDE

# The words of a head, behind the name; the last are free.
USED, TOTAL, DAY, TODAY, MONTH, SPENT, SECOND, NOW, RECENT = 0, 1, 7, 8, 14, 15, 16, 17, 19
REQUESTS, ERRORS, REFUSED, PROMPT, CACHED, COMPLETION = range(6)  # what is counted, in TOTAL and TODAY

LAST_DAY = 2932896  # of the year 9999, beyond which no calendar goes


class Numbers(NamedTuple):
    requests: int = 0
    errors: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Used(NamedTuple):
    """What the file says of one key."""

    name: str
    last_used: int  # seconds since 1970; 0: not yet
    total: Numbers  # since the key was first seen
    days: dict[int, Numbers]  # by days since 1970, as far as they are kept


# Anything may stand there: names that are some are read, and numbers that can be


def read(content: bytes) -> list[Used]:
    """What can be read of a file in which anything may stand: names that are some, and numbers that can be."""
    if len(content) != SIZE or not content.startswith(HEADER):
        return []
    found: dict[str, Used] = {}
    for place in range(RECORDS_AT, SIZE, STRIDE):
        used = used_of_head(content[place : place + HEAD_SIZE])
        if used and used.name not in found:
            days = {**dict(days_of(content[place + DAYS_AT : place + DAYS_AT + DAYS * NUMBERS.size])), **used.days}
            kept = {day: numbers for day, numbers in sorted(days.items()) if 0 < day < LAST_DAY and any(numbers)}
            found[used.name] = used._replace(days=kept)
    return list(found.values())


def used_of_head(head: bytes) -> Used | None:
    """With this day alone."""
    match = NAME.fullmatch(head[:NAME_SIZE])
    if match is None:
        return None
    words = [number if number <= MOST else 0 for number in HEAD.unpack_from(head, NAME_SIZE)]
    last = words[USED] if words[USED] < LAST_DAY * 86400 else 0
    today = {words[DAY]: Numbers(*words[TODAY : TODAY + 6])}
    return Used(match[1].decode(), last, Numbers(*words[TOTAL : TOTAL + 6]), today)


def days_of(cells: bytes) -> Iterator[tuple[int, Numbers]]:
    for day, *numbers in NUMBERS.iter_unpack(cells):
        if day < LAST_DAY and max(numbers) <= MOST:
            yield day, Numbers(*numbers)


def knows_tokens(content: bytes) -> bool:
    return content[KNOWS_TOKENS : KNOWS_TOKENS + WORD] == (1).to_bytes(WORD, "little")
