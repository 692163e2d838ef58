"""Reading a model's directory, whose entries may be anything but files: it was filled by others."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from installer.base.language import tr
from installer.base.sizes import MIB

LONGEST = 64 * MIB  # of a file that is read whole, as configurations and indexes are
DEEPEST = 16  # directories below a model's own; what lies deeper is none of its files


def entries_below(directory: Path) -> Iterator[Path]:
    """Everything there, no link followed; one after the other, because a recursion ends where the stack does."""
    left = [(directory, 0)]
    while left:
        place, depth = left.pop()
        try:
            found = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in found:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False) and depth < DEEPEST:
                left.append((Path(entry.path), depth + 1))


def open_regular(path: Path) -> BinaryIO:
    """A regular file, maybe behind a link as in the hub's cache; a pipe would keep us waiting, a device never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, tr("it is no regular file"))
    return os.fdopen(handle, "rb")


def read_regular(path: Path, longest: int = LONGEST) -> bytes:
    """All of it, or an error where it is longer than that."""
    with open_regular(path) as file:
        content = file.read(longest + 1)
    if len(content) > longest:
        raise OSError(errno.EFBIG, tr("too large"))
    return content
