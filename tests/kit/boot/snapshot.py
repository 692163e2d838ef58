"""What is on a machine's disk, to compare before and after."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

COUNTS = "var/lib/vllm-usage"  # whose numbers go on with each answer
# Not on the disk, or written by a running system whatever we do.
NOT_OURS = (
    "usr", "proc", "sys", "dev", "run", "tmp", "root/.cache", "var/log", "var/tmp", "var/lib/systemd",
    "etc/.pwd.lock", "etc/.updated", "var/.updated", "etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-",
)  # fmt: skip


def snapshot(root: Path, ignore: Collection[str] = ()) -> dict[str, str]:
    """Path -> everything about it that can be compared (type, mode, owner, and size and digest or link target)."""
    skip = {*NOT_OURS, *(path.lstrip("/") for path in ignore)}
    found = {}
    for directory, subdirectories, files in os.walk(root):
        here = Path(directory).relative_to(root)
        subdirectories[:] = sorted(name for name in subdirectories if str(here / name) not in skip)
        for name in (*subdirectories, *sorted(files)):
            path = here / name
            if str(path) not in skip:
                found[f"/{path}"] = _describe(root / path, with_content=not str(path).startswith(COUNTS))
    return found


def _describe(path: Path, *, with_content: bool) -> str:
    status = path.lstat()
    line = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{line} -> {path.readlink()}"
    if stat.S_ISREG(status.st_mode) and with_content:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return f"{line} {status.st_size} {digest[:16]}"
    return line


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Readable lines; empty when both are the same."""
    lines = [f"added {path}: {after[path]}" for path in after.keys() - before.keys()]
    lines += [f"removed {path}: {before[path]}" for path in before.keys() - after.keys()]
    lines += [
        f"changed {path}: {before[path]} -> {after[path]}"
        for path in before.keys() & after.keys()
        if before[path] != after[path]
    ]
    return sorted(lines)
