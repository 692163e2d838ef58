"""A file that arrives in pieces, in any order; what is there of it survives the end of the process at any moment.

The bytes lie where they belong. Behind them, past the file's end, follows a table that says how much of each block has
come; it is cut off when the file is whole. One file holds both, so that the two cannot come apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from functools import cache
from pathlib import Path

BLOCK = 8 * 1024 * 1024
MAGIC = b"vllm-install partial file 1\n"
_HEADER = struct.Struct(f"<{len(MAGIC)}sQQ")
_COUNT = struct.Struct("<I")
MOST_LOST = 1024 * 1024  # of each connection, in a file of a gigabyte or more; of a smaller one in proportion
_WRITE_OUT = 2  # SYNC_FILE_RANGE_WRITE


def partial_path(blob: Path) -> Path:
    """Where the pieces that have arrived so far are kept."""
    return blob.with_name(blob.name + ".incomplete")


def arrived(blob: Path, size: int) -> int:
    """How many of a file's bytes need not be fetched any more."""
    try:
        with partial_path(blob).open("rb") as file:
            return sum(_load(file.fileno(), size) or ())
    except FileNotFoundError:
        return 0


def block_size(size: int, block: int) -> int:
    return min(BLOCK, size - block * BLOCK)


def _load(handle: int, size: int) -> list[int] | None:
    """How much of each block is there, or None where the file is not one of ours of this size."""
    blocks = -(-size // BLOCK)
    length = os.fstat(handle).st_size
    if length == size:  # the table was cut off, but the file not yet moved to its place
        return [block_size(size, block) for block in range(blocks)]
    if length != size + _HEADER.size + blocks * _COUNT.size:
        return None
    table = os.pread(handle, length - size, size)
    if _HEADER.unpack_from(table) != (MAGIC, size, BLOCK):
        return None
    counts = [count for (count,) in _COUNT.iter_unpack(table[_HEADER.size :])]
    return counts if all(count <= block_size(size, block) for block, count in enumerate(counts)) else None


class Partial:
    """The open file. Its user sees to it that writes do not meet in one block."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._worth = min(size >> 10, MOST_LOST)
        if path.is_symlink():
            path.unlink()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._begin()
        except BaseException:
            os.close(self._handle)
            raise

    def _begin(self) -> None:
        loaded = _load(self._handle, self.size)
        self.counts = loaded or []
        self.have = sum(self.counts)
        self._recorded = list(self.counts)
        self._whole = 0
        if loaded is None:
            self.reset()
        elif os.fstat(self._handle).st_size == self.size:
            self._write_table()

    def _write_table(self) -> None:
        table = b"".join(_COUNT.pack(count) for count in self.counts)
        _write(self._handle, memoryview(_HEADER.pack(MAGIC, self.size, BLOCK) + table), self.size)
        self._recorded = list(self.counts)

    def reset(self) -> None:
        """Nothing of it is any good."""
        os.ftruncate(self._handle, 0)
        self.counts = [0] * -(-self.size // BLOCK)
        self.have = self._whole = 0
        self._write_table()

    def write(self, at: int, chunk: memoryview, *, record: bool) -> None:
        """Bytes that follow those which their block has already, and end in the same block.

        `record` has them found after a kill. Otherwise so much may be lost as is worth the trouble: for the disk, a few
        bytes in the table cost as much as a megabyte in the file.
        """
        _write(self._handle, chunk, at)
        block = at // BLOCK
        self.counts[block] += len(chunk)
        self.have += len(chunk)
        if record or self.counts[block] - self._recorded[block] >= self._worth or self.counts[block] == BLOCK:
            self.record(block)

    def record(self, block: int) -> None:
        """Only after the bytes: a table that promises more than there is would have wrong ones kept."""
        if self._recorded[block] != self.counts[block]:
            place = self.size + _HEADER.size + block * _COUNT.size
            _write(self._handle, memoryview(_COUNT.pack(self.counts[block])), place)
            self._recorded[block] = self.counts[block]

    def front(self) -> int:
        """The end of what has come without a gap."""
        counts, block = self.counts, self._whole
        while block < len(counts) and counts[block] == BLOCK:
            block += 1
        self._whole = block
        return block * BLOCK + (counts[block] if block < len(counts) else 0)

    def keep_front(self) -> int:
        """Only what has come without a gap; how much that is."""
        front = self.front()
        first = -(-front // BLOCK)
        self.counts[first:] = [0] * (len(self.counts) - first)
        self.have = front
        self._write_table()
        return front

    def read(self, at: int, into: memoryview) -> int:
        return os.preadv(self._handle, [into], at)

    def write_out(self, begin: int, end: int) -> None:
        """Have the disk begin with a range, so that it is not all left for the end."""
        _libc().sync_file_range(self._handle, begin, end - begin, _WRITE_OUT)

    def finish(self, target: Path, mode: int) -> None:
        """Move the whole file to its place. Killed in between, it is found whole."""
        os.fchmod(self._handle, mode)
        os.fsync(self._handle)
        os.ftruncate(self._handle, self.size)
        self.path.replace(target)
        os.close(self._handle)
        self._handle = -1

    def close(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError):  # a full disk: then these are fetched again
                for block in range(len(self.counts)):
                    self.record(block)
            os.close(self._handle)
            self._handle = -1


def _write(handle: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(handle, data, at)
        at += written
        data = data[written:]


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return libc
