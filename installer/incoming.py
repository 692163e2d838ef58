"""One file on its way: which parts of it are asked for by whom, and whether what has come is right."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from installer.hub import ModelError
from installer.partial import BLOCK, Partial, arrived, block_size, partial_path

CHUNK = 256 * 1024
HASHED_AT_ONCE = 4 * 1024 * 1024
WRITE_OUT_EVERY = 32 * 1024 * 1024
MODE = 0o644  # the service's user reads it


@dataclass(frozen=True)
class Blob:
    """A file to fetch: whence, whereto, and what it must be."""

    name: str
    url: str
    path: Path
    size: int
    digest: str

    @property
    def partial(self) -> Path:
        return partial_path(self.path)


class Abandoned(Exception):
    """The file was begun anew, or everything ends: what this connection does is of no use any more."""


@dataclass(eq=False)
class Lease:
    """A part of a file that one connection fetches; another one may take over its end."""

    file: Incoming
    at: int
    end: int
    round: int

    @property
    def left(self) -> int:
        return self.end - self.at


class Incoming:
    """A file on its way. All that connections share of it is used under its lock."""

    def __init__(self, blob: Blob, connections: int) -> None:
        self.blob = blob
        self.lock = threading.RLock()
        self.leases: list[Lease] = []
        self.connections = connections
        self.limit = 1  # connections at once; more only when the server is known to give ranges
        self.ranged: bool | None = None
        self.location = ""  # behind the redirects
        self.misses = 0
        self.best = 0
        self.not_before = 0.0
        self.is_done = False
        self._partial: Partial | None = None
        self._begun = arrived(blob.path, blob.size)
        self._taken: set[int] = set()
        self._first_free = 0
        self._round = 0
        self._was_wrong = False
        self._more = threading.Event()

    @property
    def have(self) -> int:
        if self.is_done:
            return self.blob.size
        return self._partial.have if self._partial else self._begun

    @property
    def is_open(self) -> bool:
        return self._partial is not None

    def open(self) -> None:
        self._partial = Partial(self.blob.partial, self.blob.size)
        self.best = self._partial.have

    @property
    def partial(self) -> Partial:
        assert self._partial is not None
        return self._partial

    # who fetches what

    def lease(self, length: int) -> Lease | None:
        """The next part that nobody fetches, of about this length."""
        with self.lock:
            if self.is_done or len(self.leases) >= self.limit:
                return None
            begin = self._next_free()
            if begin is None:
                return self._take_over()
            counts, end = self.partial.counts, begin + 1
            upto = len(counts) if self.ranged is False else begin + max(1, length // BLOCK)
            while end < min(upto, len(counts)) and not counts[end] and end not in self._taken:
                end += 1
            self._taken.update(range(begin, end))
            return self._leased(begin * BLOCK + counts[begin], min(end * BLOCK, self.blob.size))

    def _leased(self, at: int, end: int) -> Lease:
        lease = Lease(self, at, end, self._round)
        self.leases.append(lease)
        return lease

    def _next_free(self) -> int | None:
        counts = self.partial.counts
        while self._first_free < len(counts):
            block = self._first_free
            if block not in self._taken and counts[block] < block_size(self.blob.size, block):
                return block
            self._first_free += 1
        return None

    def _take_over(self) -> Lease | None:
        """The end of the longest part, so that a slow connection does not keep all others waiting."""
        longest = max(self.leases, key=lambda lease: lease.left, default=None)
        if not self.ranged or longest is None or longest.left < 2 * BLOCK:
            return None
        middle = -(-(longest.at + longest.left // 2) // BLOCK) * BLOCK
        if middle >= longest.end:
            return None
        lease = self._leased(middle, longest.end)
        longest.end = middle
        return lease

    def give_back(self, lease: Lease) -> None:
        with self.lock:
            self.leases.remove(lease)
            if lease.round == self._round and lease.left:
                self._taken.difference_update(range(lease.at // BLOCK, -(-lease.end // BLOCK)))
                self._first_free = min(self._first_free, lease.at // BLOCK)

    def missing_unasked(self) -> int:
        """Bytes that are missing and that no connection fetches."""
        with self.lock:
            return 0 if self.is_done else self.blob.size - self.have - sum(lease.left for lease in self.leases)

    # what comes

    def room(self, lease: Lease) -> int:
        """How many bytes the next write may have: none beyond the block."""
        return min(lease.end, (lease.at // BLOCK + 1) * BLOCK) - lease.at

    def write(self, lease: Lease, chunk: memoryview) -> None:
        with self.lock:
            if lease.round != self._round:
                raise Abandoned
            self.partial.write(lease.at, chunk)
            lease.at += len(chunk)
        self._more.set()

    def take_whole(self, lease: Lease) -> bool:
        """The server sends the file from its beginning and nothing else; False where others fetch parts of it."""
        with self.lock:
            if self.leases != [lease] or lease.round != self._round:
                return False
            self.limit, self.ranged = 1, False
            self._begin_anew()
            self._taken.update(range(len(self.partial.counts)))
            lease.at, lease.end, lease.round = 0, self.blob.size, self._round
            return True

    def allow_ranges(self) -> None:
        with self.lock:
            if self.ranged is None:
                self.ranged, self.limit = True, self.connections

    def _begin_anew(self) -> None:
        self._round += 1
        self._taken.clear()
        self._first_free = 0
        self.partial.reset()
        self._more.set()

    def spoil(self, round: int, found: str, source: str) -> None:
        """What came is not the file: once more, on one connection; twice is too often."""
        with self.lock:
            if round != self._round:
                raise Abandoned
            self.ranged, self.limit, self.location = False, 1, ""
            self._begin_anew()
            if self._was_wrong:
                raise ModelError(
                    f"{self.blob.name} arrived with wrong bytes twice: {found}, "
                    f"not {self.blob.size} with {self.blob.digest}",
                    f"run the command again later, or use another source (--hf-endpoint) than {source}",
                )
            self._was_wrong = True

    # whether it is right

    def follow(self, is_over: Callable[[], bool], source: str) -> None:
        """Take the checksum of what comes, in order and while it is still in memory, until the file is in its place."""
        buffer = memoryview(bytearray(HASHED_AT_ONCE))
        while not is_over():
            round = self._round
            checksum = self._checksum(round, buffer, is_over)
            if checksum == self.blob.digest:
                self.partial.finish(self.blob.path, MODE)
                self.is_done = True
                return
            if checksum is not None:
                self.spoil(round, f"{self.blob.size} bytes with the checksum {checksum}", source)

    def _checksum(self, round: int, buffer: memoryview, is_over: Callable[[], bool]) -> str | None:
        """The checksum of the whole file, or None where it was begun anew meanwhile."""
        size = self.blob.size
        checksum = hashlib.sha256() if len(self.blob.digest) == 64 else hashlib.sha1(b"blob %d\0" % size)  # noqa: S324 git's own
        at = block = written_out = 0
        while at < size:
            self._more.clear()
            counts = self.partial.counts
            while block < len(counts) - 1 and counts[block] == BLOCK:
                block += 1
            front = block * BLOCK + counts[block]
            if round != self._round or is_over():
                return None
            if front <= at:
                self._more.wait()
                continue
            while at < front:
                count = self.partial.read(at, buffer[: min(HASHED_AT_ONCE, front - at)])
                if not count:
                    break
                checksum.update(buffer[:count])
                at += count
                if at - written_out >= WRITE_OUT_EVERY:
                    self.partial.write_out(written_out, at)
                    written_out = at
        return checksum.hexdigest()

    def wake(self) -> None:
        self._more.set()

    def close(self) -> None:
        if self._partial:
            self._partial.close()
