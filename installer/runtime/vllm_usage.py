"""What each key of a service has used: one table in a file, shared by all of its API servers, bounded in size.

Every record has a fixed place, so whoever is killed half way leaves a number that is off by one request and nothing
that cannot be read. It is read and written by pread and pwrite: where a disk is full or the file was cut short, these
fail, and a store through mmap would end the process. Stdlib only; the tool reads the file by `read` below.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

log = logging.getLogger("vllm.guard")
T = TypeVar("T")

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

TRIES, PAUSES, PAUSE = 50, 200, 0.0005  # for the lock, which a busy host may keep a process from giving back at once
COMPLAIN_EVERY, LOOK_EVERY = 60.0, 10.0


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


def since_boot() -> float:
    """A clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def month_of(day: int) -> int:
    """A number for the month of a day: a later month has a larger one."""
    at = time.gmtime(day * 86400)
    return at.tm_year * 12 + at.tm_mon - 1


class Record:
    """One key's numbers, as they are while the table is locked."""

    def __init__(self, table: Table, place: int, words: list[int]) -> None:
        self.table, self.place, self.words, self.wall = table, place, words, 0

    @property
    def recent(self) -> tuple[int, int]:
        """Requests and tokens of the last minute."""
        return self.words[RECENT], self.words[RECENT + 1]

    @property
    def spent(self) -> int:
        """Tokens of this month."""
        return self.words[SPENT]

    def turn(self, second: int, wall: float) -> None:
        """Let the clocks have gone on. The day's is set by people: it goes back as well as on, and each day counts."""
        self.wall = int(wall) & MOST
        if self.words[DAY] != self.wall // 86400:
            self._turn_day(self.wall // 86400)
        if self.words[SECOND] != second:
            self._turn_window(second)

    def _turn_day(self, day: int) -> None:
        words, month = self.words, month_of(day)
        self._write(DAYS_AT + words[DAY] % DAYS * NUMBERS.size, NUMBERS.pack(*words[DAY : TODAY + 6]))
        days = dict(_days(self._read(DAYS_AT, DAYS * NUMBERS.size)))
        words[DAY], words[TODAY : TODAY + 6] = day, days.pop(day, Numbers())
        words[MONTH] = month
        words[SPENT] = sum(n.prompt_tokens + n.completion_tokens for at, n in days.items() if month_of(at) == month)
        words[SPENT] += words[TODAY + PROMPT] + words[TODAY + COMPLETION]

    def _turn_window(self, second: int) -> None:
        """Sums are made anew each second: what a killed process left half done is right again then."""
        words, bins = self.words, self.bins()
        last = words[SECOND]
        bins[last % WINDOW] = (words[NOW], words[NOW + 1])
        gone = second - last if 0 <= second - last < WINDOW else WINDOW  # or back: the host was booted
        for each in range(second - gone + 1, second + 1):
            bins[each % WINDOW] = (0, 0)
        words[SECOND], words[NOW], words[NOW + 1] = second, 0, 0
        words[RECENT] = sum(requests for requests, _ in bins) & MOST
        words[RECENT + 1] = sum(tokens for _, tokens in bins) & MOST
        self._write(BINS_AT, BINS.pack(*(number for each in bins for number in each)))

    def bins(self) -> list[tuple[int, int]]:
        """Requests and tokens of each second of the last minute but this one."""
        numbers = BINS.unpack(self._read(BINS_AT, BINS.size))
        return [(numbers[at] & MOST, numbers[at + 1] & MOST) for at in range(0, 2 * WINDOW, 2)]

    def until_less(self, column: int, most: int) -> int:
        """Seconds until the minute holds less than this of requests or tokens."""
        bins, second, left = self.bins(), self.words[SECOND], self.words[RECENT + column]
        for wait in range(1, WINDOW):
            left -= bins[(second + wait) % WINDOW][column]
            if left < most:
                return wait
        return WINDOW

    def active(self) -> int:
        """Requests under way in all other processes."""
        taken = self.table.places_taken()
        numbers = struct.unpack(f"<{taken}Q", self._read(ACTIVE_AT, taken * WORD))
        return sum(n for slot, n in enumerate(numbers) if slot != self.table.slot and n <= MOST)

    def forget_dead(self) -> None:
        """Let what dead processes had under way be over."""
        for slot in range(self.table.places_taken()):
            if slot != self.table.slot and self.table.is_dead(slot):
                self._write(ACTIVE_AT + slot * WORD, bytes(WORD))

    def add_recent(self, requests: int, tokens: int) -> None:
        for at, more in ((NOW, requests), (NOW + 1, tokens), (RECENT, requests), (RECENT + 1, tokens)):
            self.words[at] = (self.words[at] + more) & MOST

    def add(self, numbers: Sequence[int]) -> None:
        words = self.words
        for at, number in enumerate(numbers):
            if number:
                words[TOTAL + at] = (words[TOTAL + at] + number) & MOST
                words[TODAY + at] = (words[TODAY + at] + number) & MOST
        words[SPENT] = (words[SPENT] + numbers[PROMPT] + numbers[COMPLETION]) & MOST
        words[USED] = self.wall

    def _read(self, at: int, size: int) -> bytes:
        return os.pread(self.table.descriptor, size, self.place + at)

    def _write(self, at: int, data: bytes) -> None:
        os.pwrite(self.table.descriptor, data, self.place + at)


class Table:
    """The file as one process has it open. Whatever is wrong with it, no request fails by that."""

    def __init__(
        self, directory: str, clock: Callable[[], float] = since_boot, wall: Callable[[], float] = time.time
    ) -> None:
        self.clock, self.wall = clock, wall
        self.path = os.path.join(directory, FILE) if directory else ""
        self.descriptor = self.slot = -1
        self.active: dict[str, int] = {}  # requests under way in this process, of keys that are limited by them
        self._places: dict[str, tuple[int, bytes]] = {}  # with the name as it stands there
        self._taken, self._taken_at = 0, -1
        self._look_at = self._patient_at = self._complain_at = 0.0

    def ready(self, now: float) -> None:
        if self.descriptor < 0:
            self._open()
        elif now >= self._look_at and self.path:
            self._look_at = now + LOOK_EVERY
            if not is_sound(self.path, self.descriptor):
                self._open()

    def _open(self) -> None:
        try:
            new = opened(self.path) if self.path else in_memory()
        except OSError as error:
            self._complain(error)
            if self.descriptor >= 0:
                return
            new = in_memory()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self.slot, self._taken_at = new, -1, -1
        self._places.clear()
        self._take_slot()

    def _take_slot(self) -> None:
        """A place among the processes, by a lock that goes with this one, however it ends."""
        for slot in range(SLOTS):
            with contextlib.suppress(OSError):
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                self.slot = slot
                break
        else:
            log.error("more than %d API servers: what this one has under way counts for itself alone", SLOTS)
            return
        for place in self._places_in_use():  # of who had the place before
            os.pwrite(self.descriptor, bytes(WORD), place + ACTIVE_AT + self.slot * WORD)
        self.publish(0, 0, 0)

    def is_dead(self, slot: int) -> bool:
        """Whether nobody holds that place. Our own is not to be asked for: it would be given up."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:
            return False
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, slot)
        return True

    def places_taken(self) -> int:
        """Up to the last process that lives, looked for once a second."""
        second = int(self.clock())
        if self._taken_at != second:
            others = (slot for slot in range(SLOTS) if slot != self.slot and not self.is_dead(slot))
            self._taken_at, self._taken = second, max(self.slot, *others, -1) + 1
        return self._taken

    # Changing a key's record

    def change(self, name: str, do: Callable[[Record], T]) -> T | None:
        """What `do` says of the record, which nobody else changes meanwhile; nothing where that is not possible."""
        is_locked = False
        try:
            now = self.clock()
            self.ready(now)
            is_locked = self._lock(now)
            record = self._record(name)
            record.turn(int(now), self.wall())
            said = do(record)
            os.pwrite(self.descriptor, HEAD.pack(*record.words), record.place + NAME_SIZE)
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
                record.add_recent(0, numbers[PROMPT] + numbers[COMPLETION])

        self.change(name, do)

    def begin(self, name: str, more: int) -> None:
        """One more request of a key is under way in this process, or one less."""
        self.active[name] = now = max(0, self.active.get(name, 0) + more)
        known = self._places.get(name)
        if self.slot >= 0 and known:
            with contextlib.suppress(OSError):
                os.pwrite(self.descriptor, now.to_bytes(WORD, "little"), known[0] + ACTIVE_AT + self.slot * WORD)

    def _record(self, name: str) -> Record:
        place, name_there = self._places.get(name) or (-1, padded(name))
        head = os.pread(self.descriptor, HEAD_SIZE, place) if place >= 0 else b""
        if not head.startswith(name_there):
            place, head = self._find(name_there)
            self._places[name] = place, name_there
        words = list(HEAD.unpack_from(head, NAME_SIZE))
        if max(words) > MOST:
            log.error("what %s says of the key %s makes no sense: it is counted anew", self.path or FILE, name)
            words = list(HEAD.unpack_from(self._made(place, name_there), NAME_SIZE))
        return Record(self, place, words)

    def _find(self, name: bytes) -> tuple[int, bytes]:
        """The record of a key; if there is none, the first that is free, or the one that nobody used for longest."""
        if os.fstat(self.descriptor).st_size != SIZE or not is_whole(self.descriptor):
            made_anew(self.descriptor, self.path)  # somebody has written over it
        oldest = (MOST + 1, RECORDS_AT)
        for place in range(RECORDS_AT, SIZE, STRIDE):
            head = os.pread(self.descriptor, NAME_SIZE + WORD, place)
            if head[:NAME_SIZE] == name:
                return place, os.pread(self.descriptor, HEAD_SIZE, place)
            if NAME.fullmatch(head[:NAME_SIZE]) is None:
                return place, self._made(place, name)
            oldest = min(oldest, (int.from_bytes(head[NAME_SIZE:], "little"), place))
        return oldest[1], self._made(oldest[1], name)

    def _places_in_use(self) -> Iterator[int]:
        for place in range(RECORDS_AT, SIZE, STRIDE):
            if not any(os.pread(self.descriptor, NAME_SIZE, place)):
                return
            yield place

    def _made(self, place: int, name: bytes) -> bytes:
        """A record without numbers; its name comes last, and until then there is none."""
        os.pwrite(self.descriptor, bytes(STRIDE), place)
        head = name.ljust(HEAD_SIZE, b"\0")
        os.pwrite(self.descriptor, head, place)
        return head

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
        if self.slot >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self.descriptor, SLOT.pack(waiting, tokens, rate), SLOTS_AT + self.slot * SLOT.size)

    def others(self) -> list[tuple[int, int, int]]:
        """What the other processes that live have published."""
        try:
            self.ready(self.clock())
            data = os.pread(self.descriptor, self.places_taken() * SLOT.size, SLOTS_AT)
        except OSError as error:
            self._complain(error)
            return []
        return [
            (waiting, tokens, rate)
            for slot, (waiting, tokens, rate) in enumerate(SLOT.iter_unpack(data))
            if slot != self.slot and 0 < max(waiting, tokens, rate) <= MOST and not self.is_dead(slot)
        ]

    def say_tokens_are_counted(self, are: bool) -> None:
        self.ready(self.clock())
        with contextlib.suppress(OSError):
            os.pwrite(self.descriptor, int(are).to_bytes(WORD, "little"), KNOWS_TOKENS)

    def totals(self) -> list[tuple[str, Numbers]]:
        """What each key has used since it was first seen."""
        try:
            self.ready(self.clock())
            heads = [os.pread(self.descriptor, HEAD_SIZE, place) for place in self._places_in_use()]
            found = {each.name: each.total for each in map(_used_of_head, heads) if each}
        except OSError as error:
            self._complain(error)
            return []
        return list(found.items())


def padded(name: str) -> bytes:
    return name.encode(errors="replace")[:NAME_SIZE].ljust(NAME_SIZE, b"\0")


# The file


def opened(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no file")
        locked(descriptor, is_patient=True)  # somebody else may be making it
        status = os.fstat(descriptor)
        if status.st_size != SIZE or not is_whole(descriptor):
            made_anew(descriptor, path, is_new=not status.st_size)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def locked(descriptor: int, *, is_patient: bool) -> bool:
    for tried in range(TRIES + PAUSES if is_patient else TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if tried >= TRIES:
                time.sleep(PAUSE)
        else:
            return True
    return False


def is_sound(path: str, descriptor: int) -> bool:
    """Whether what is open is what lies there, and still the table that it was."""
    try:
        there, here = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return os.path.samestat(there, here) and here.st_size == SIZE and is_whole(descriptor)


def in_memory() -> int:
    descriptor = os.memfd_create(FILE)
    os.ftruncate(descriptor, SIZE)
    os.pwrite(descriptor, HEADER, 0)
    return descriptor


def is_whole(descriptor: int) -> bool:
    return os.pread(descriptor, len(HEADER), 0) == HEADER


def made_anew(descriptor: int, path: str, *, is_new: bool = False) -> None:
    """All of its room is taken now: later a full disk takes nothing from those who are counted."""
    if not is_new:
        log.error("%s is no table of usage: it is made anew, and what was counted is lost", path or FILE)
    os.ftruncate(descriptor, 0)
    try:
        os.posix_fallocate(descriptor, 0, SIZE)
    except OSError:
        os.ftruncate(descriptor, 0)
        raise
    os.pwrite(descriptor, HEADER, 0)


# Reading what somebody else may have written


def read(content: bytes) -> list[Used]:
    """What can be read of a file in which anything may stand: names that are some, and numbers that can be."""
    if len(content) != SIZE or not content.startswith(HEADER):
        return []
    found: dict[str, Used] = {}
    for place in range(RECORDS_AT, SIZE, STRIDE):
        used = _used_of_head(content[place : place + HEAD_SIZE])
        if used and used.name not in found:
            days = {**dict(_days(content[place + DAYS_AT : place + DAYS_AT + DAYS * NUMBERS.size])), **used.days}
            kept = {day: numbers for day, numbers in sorted(days.items()) if 0 < day < LAST_DAY and any(numbers)}
            found[used.name] = used._replace(days=kept)
    return list(found.values())


def _used_of_head(head: bytes) -> Used | None:
    """With this day alone."""
    match = NAME.fullmatch(head[:NAME_SIZE])
    if match is None:
        return None
    words = [number if number <= MOST else 0 for number in HEAD.unpack_from(head, NAME_SIZE)]
    last = words[USED] if words[USED] < LAST_DAY * 86400 else 0
    today = {words[DAY]: Numbers(*words[TODAY : TODAY + 6])}
    return Used(match[1].decode(), last, Numbers(*words[TOTAL : TOTAL + 6]), today)


def _days(cells: bytes) -> Iterator[tuple[int, Numbers]]:
    for day, *numbers in NUMBERS.iter_unpack(cells):
        if day < LAST_DAY and max(numbers) <= MOST:
            yield day, Numbers(*numbers)


def knows_tokens(content: bytes) -> bool:
    return content[KNOWS_TOKENS : KNOWS_TOKENS + WORD] == (1).to_bytes(WORD, "little")
