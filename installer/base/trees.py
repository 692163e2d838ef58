"""Removing trees that others may have made: by open directories, never by a path, and flat, whatever their depth."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BATCH = 10_000


def remove(parent: int, name: str) -> None:
    """What lies in directories of a directory is moved up into it and then removed: three are open at any depth."""
    if is_unlinked(parent, name):
        return
    with opened(name, parent) as top:
        fresh = itertools.count()
        for entry in _entries(top):
            if not is_unlinked(top, entry):
                with opened(entry, top) as below:
                    for further in _entries(below):
                        if not is_unlinked(below, further):
                            _move_up(below, further, top, fresh)
                os.rmdir(entry, dir_fd=top)
    os.rmdir(name, dir_fd=parent)


def _entries(directory: int) -> Iterator[str]:
    """Until none is left, files before directories: what says that a tree is whole goes first."""
    while True:
        with os.scandir(directory) as found:
            batch = sorted(itertools.islice(found, BATCH), key=lambda entry: entry.is_dir(follow_symlinks=False))
        if not batch:
            return
        yield from (entry.name for entry in batch)


def is_unlinked(directory: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        pass  # somebody else took it away just now
    return True


def _move_up(below: int, name: str, top: int, fresh: Iterator[int]) -> None:
    for number in fresh:
        try:
            os.rename(name, f".{number}", src_dir_fd=below, dst_dir_fd=top)
        except (FileExistsError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                continue
            raise
        return


@contextmanager
def opened(name: str | Path, parent: int | None = None, *, follow: bool = False) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(name, flags, dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)
