"""Removing trees that others may have made: by open directories, never by a path, and flat, whatever their depth."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BATCH = 10_000
STEPS = 400  # on the way to a directory, through links too


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


@contextmanager
def reached(directory: Path) -> Iterator[int]:
    """A directory by its full path, as a handle; only links of root's and of our own lead there."""
    handle, left, links = os.open("/", os.O_PATH | os.O_CLOEXEC), list(directory.parts[1:]), 0
    try:
        while left:
            below = os.open(left.pop(0), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            found, links = os.fstat(below), links + 1
            if not stat.S_ISLNK(found.st_mode):
                os.close(handle)
                handle = below
                continue
            target = _of_link(below, found, links, directory)
            left = [*target.parts, *left]
            if target.is_absolute():
                os.close(handle)
                handle = os.open(left.pop(0), os.O_PATH | os.O_CLOEXEC)
        yield handle
    finally:
        os.close(handle)


def _of_link(link: int, found: os.stat_result, steps: int, whole: Path) -> Path:
    try:
        if found.st_uid not in (0, os.geteuid()) or steps > STEPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(whole))
        return Path(os.readlink("", dir_fd=link))
    finally:
        os.close(link)
