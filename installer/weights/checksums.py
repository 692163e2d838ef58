"""Checksums of large files: read ahead, several files at once, no trace in their access times."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from installer.base.report import Advance

PIECE = 4 * 1024 * 1024
AHEAD = 4 * PIECE  # what the kernel is asked to read while a piece is being summed
MOST_WORKERS = 8


class _Stopped(Exception):
    """Another file could not be read, or the user interrupted."""


def new(digest: str, length: int) -> hashlib._Hash:
    """The checksum that a digest is of: sha256, or git's sha1 of a blob of this length."""
    if len(digest) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % length)  # noqa: S324 git's own


def is_right(path: Path, digest: str, advance: Callable[[int], None]) -> bool:
    """Whether the file's bytes have this checksum."""
    with os.fdopen(_open(path), "rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        checksum = new(digest, length)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(min(PIECE, max(length, 1))))
        offset = 0
        try:
            while count := file.readinto(buffer):
                offset += count
                os.posix_fadvise(file.fileno(), offset, AHEAD, os.POSIX_FADV_WILLNEED)
                checksum.update(buffer[:count])
                advance(count)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False  # what the disk cannot read any more is not there
    return checksum.hexdigest() == digest


def find_wrong(files: Sequence[tuple[Path, str]], advance: Advance) -> Iterator[Path]:
    """Those of (path, digest) whose bytes are not what the digest says. A file that cannot be read is an OSError."""
    from concurrent.futures import ThreadPoolExecutor

    lock, stop = threading.Lock(), threading.Event()

    def count(length: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            advance(length)

    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)), len(files))
    if not workers:
        return
    with ThreadPoolExecutor(workers) as pool:
        # The largest first, so that none is left over for a single worker at the end.
        largest = sorted(files, key=lambda file: -file[0].stat().st_size)
        futures = [(path, pool.submit(is_right, path, digest, count)) for path, digest in largest]
        try:
            yield from (path for path, future in futures if not future.result())
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _open(path: Path) -> int:
    """Without a mark in the access time, which tells when a service last read the file; only its owner may ask so."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
