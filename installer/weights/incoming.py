"""One file on its way: which parts of it are asked for by whom, and whether what has come is right."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from installer.base.language import tr
from installer.spec.model import ModelError
from installer.weights import checksums
from installer.weights.partial import BLOCK, Partial, arrived, block_size, partial_path

CHUNK = 256 * 1024
SUMMED_AT_ONCE = 4 * 1024 * 1024
LOOK_EVERY = 0.2  # seconds
MODE = 0o644  # the service's user reads it


@dataclass(frozen=True)
class Blob:
    """A file to fetch: from where, to where, and what it must be."""

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
    is_served: bool = False

    @property
    def left(self) -> int:
        return self.end - self.at


class _Total:
    """The checksum of a file's beginning, which grows to the whole."""

    def __init__(self, blob: Blob) -> None:
        self.at = 0
        self.checksum = checksums.new(blob.digest, blob.size)
        self._lock = threading.Lock()

    def add(self, begin: int, chunk: memoryview) -> bool:
        """Sum a chunk if its turn is now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if begin != self.at:
                return False
            self.checksum.update(chunk)
            self.at += len(chunk)
            return True
        finally:
            self._lock.release()

    def catch_up(self, partial: Partial, front: int, buffer: memoryview) -> None:
        """Sum some of what came out of turn."""
        with self._lock:
            count = partial.read(self.at, buffer[: max(min(len(buffer), front - self.at), 0)])
            self.checksum.update(buffer[:count])
            self.at += count


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
        self._total = _Total(blob)

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
                self.partial.record(lease.at // BLOCK)
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
            # A short chunk comes from a slow line, where every byte is dear.
            self.partial.write(lease.at, chunk, record=len(chunk) < CHUNK)
            lease.at += len(chunk)
            begin, total = lease.at - len(chunk), self._total
        # What comes in order is summed while it is at hand; the rest is read again, from memory.
        if not total.add(begin, chunk) or total.at == self.blob.size:
            self._more.set()

    def write_out(self, lease: Lease) -> None:
        """Have the disk begin with each block that is whole. A busy disk holds up this connection, and nobody else."""
        if lease.at % BLOCK == 0 or lease.at == self.blob.size:
            self.partial.write_out((lease.at - 1) // BLOCK * BLOCK, lease.at)

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
        self._total = _Total(self.blob)
        self._taken.clear()
        self._first_free = 0
        self.partial.reset()
        self._more.set()

    def spoil(self, round: int, found: str, source: str) -> None:
        """What came is not the file: once more, on one connection; twice is too often."""
        with self.lock:
            if round != self._round:
                raise Abandoned
            # Twice wrong, nobody is to begin again while the fault makes its way.
            self.ranged, self.limit, self.location = False, 0 if self._was_wrong else 1, ""
            self._begin_anew()
            if self._was_wrong:
                raise ModelError(
                    tr(
                        "{file} arrived with wrong bytes twice: {found}, not {size} with {digest}",
                        file=self.blob.name,
                        found=found,
                        size=self.blob.size,
                        digest=self.blob.digest,
                    ),
                    tr(
                        "run the command again later, or use another source (--hf-endpoint) than {source}",
                        source=source,
                    ),
                )
            self._was_wrong = True

    # whether it is right

    def follow(self, is_over: Callable[[], bool], source: str) -> None:
        """Take the checksum of what comes, in order and while it is still in memory; bring a whole file to its place.

        Returns with the file in its place or begun anew.
        """
        with self.lock:
            round, total = self._round, self._total
        buffer = memoryview(bytearray(SUMMED_AT_ONCE))
        while total.at < self.blob.size:
            self._more.clear()
            with self.lock:
                front = self.partial.front()
                if round != self._round or is_over():
                    return
            if total.at >= front:
                self._more.wait(LOOK_EVERY)
            else:
                total.catch_up(self.partial, front, buffer)
        if total.checksum.hexdigest() == self.blob.digest:
            self.partial.finish(self.blob.path, MODE)
            self.is_done = True
        else:
            digest = total.checksum.hexdigest()
            found = tr("{count} bytes with the checksum {digest}", count=self.blob.size, digest=digest)
            self.spoil(round, found, source)

    def wake(self) -> None:
        self._more.set()

    def close(self) -> None:
        if self._partial:
            self._partial.close()
