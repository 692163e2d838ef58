"""A file that arrives in pieces, in any order; what is there of it survives the end of the process at any moment.

The bytes lie where they belong. Behind them, past the file's end, follows a table that says how much of each block has
come; it is cut off when the file is whole. One file holds both, so that the two cannot come apart.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from pathlib import Path

BLOCK = 8 * 1024 * 1024
MAGIC = b"vllm-install partial file 1\n"
_HEADER = struct.Struct(f"<{len(MAGIC)}sQQ")
_COUNT = struct.Struct("<I")
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
        if path.is_symlink():
            path.unlink()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        loaded = _load(self._handle, self.size)
        self.counts = loaded or []
        self.have = sum(self.counts)
        if loaded is None:
            self.reset()
        elif os.fstat(self._handle).st_size == self.size:
            self._write_table()

    def _write_table(self) -> None:
        table = b"".join(_COUNT.pack(count) for count in self.counts)
        _write(self._handle, memoryview(_HEADER.pack(MAGIC, self.size, BLOCK) + table), self.size)

    def reset(self) -> None:
        """Nothing of it is any good."""
        os.ftruncate(self._handle, 0)
        self.counts = [0] * -(-self.size // BLOCK)
        self.have = 0
        self._write_table()

    def write(self, at: int, chunk: memoryview) -> None:
        """Bytes that follow those which their block has already, and end in the same block."""
        _write(self._handle, chunk, at)
        block = at // BLOCK
        self.counts[block] += len(chunk)
        self.have += len(chunk)
        # Only now: a table that promises more than there is would have wrong bytes kept.
        _write(self._handle, memoryview(_COUNT.pack(self.counts[block])), self._place_of(block))

    def _place_of(self, block: int) -> int:
        return self.size + _HEADER.size + block * _COUNT.size

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
        self.close()

    def close(self) -> None:
        if self._handle >= 0:
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
