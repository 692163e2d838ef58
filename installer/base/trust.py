"""Whether root alone decides what lies at a path: the file, and every directory and link on the way to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from installer.base.files import Files

LINKS = 40  # as the kernel


def of_others(host: Files, path: Path, *, or_read_only: bool = False) -> Path | None:
    """The first part of the way to a path that others than root can change; none: what lies there is root's choice.

    What is read-only for us may be so in a sandbox of ours alone, and elsewhere be changed: `or_read_only` takes it.
    """
    root = host.owner(Path("/"))
    at, left, links = Path("/"), list(path.parts[1:]), 0
    while True:
        found = host.at(at).lstat()
        is_theirs = found.st_uid != root or _is_open(found.st_mode)
        if is_theirs and not (or_read_only and _is_read_only(host.at(at))):
            return at
        if stat.S_ISLNK(found.st_mode):
            target, links = host.at(at).readlink(), links + 1
            if links > LINKS:
                return at
            left = [*(target.parts[1:] if target.is_absolute() else target.parts), *left]
            at = Path("/") if target.is_absolute() else at.parent
        if not left:
            return None
        name = left.pop(0)
        at = at.parent if name == ".." else at / name


def _is_read_only(path: Path) -> bool:
    """Of a link the directory that it lies in: where it leads says nothing about who may replace it."""
    lies_at = path.parent if path.is_symlink() else path
    return bool(os.statvfs(lies_at).f_flag & os.ST_RDONLY)


def _is_open(mode: int) -> bool:
    """In a directory as /tmp everybody may write, but only a file's owner may put another into its place."""
    return not stat.S_ISLNK(mode) and bool(mode & 0o022) and not mode & stat.S_ISVTX
