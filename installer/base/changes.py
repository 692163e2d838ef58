"""The few kinds of change a deploy is made of. A plan is a list of them; applying them is a deploy."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Described, Report, size


class Change(Protocol):
    """Says what it would do, as text and as data, and does it. Doing it twice is harmless."""

    def describe(self) -> str: ...

    def to_json(self) -> dict[str, object]: ...

    def apply(self, host: Host, report: Report) -> None: ...


@dataclass(frozen=True)
class Write:
    path: Path
    text: str
    mode: int = 0o644
    secret: bool = False

    def describe(self) -> str:
        return tr(
            "write {path} ({mode:04o}, {bytes} bytes)",
            path=self.path,
            mode=self.mode,
            bytes=self.size,
        )

    @property
    def size(self) -> int:
        return len(self.text.encode(errors="surrogateescape"))

    def to_json(self) -> dict[str, object]:
        shown: dict[str, object] = {"secret": True} if self.secret else {"text": self.text}
        return {"kind": "write", "path": str(self.path), "mode": f"{self.mode:04o}", **shown}

    def apply(self, host: Host, report: Report) -> None:
        host.write(self.path, self.text, self.mode)


@dataclass(frozen=True)
class Remove:
    path: Path
    only_if_empty: bool = False

    def describe(self) -> str:
        return tr("remove {path}", path=self.path) + (tr(" if it is empty") if self.only_if_empty else "")

    def to_json(self) -> dict[str, object]:
        return {"kind": "remove", "path": str(self.path), "only_if_empty": self.only_if_empty}

    def apply(self, host: Host, report: Report) -> None:
        if self.only_if_empty:
            host.remove_empty_dir(self.path)
        else:
            host.remove(self.path)


@dataclass(frozen=True)
class Run:
    argv: tuple[str, ...]
    why: str
    may_fail: bool = False  # what it is for may hold already

    def describe(self) -> str:
        return f"{self.why} ({shlex.join(self.argv)})"

    def to_json(self) -> dict[str, object]:
        return {"kind": "run", "argv": list(self.argv), "why": self.why}

    def apply(self, host: Host, report: Report) -> None:
        host.run(*self.argv, check=not self.may_fail)


@dataclass(frozen=True)
class Restart:
    """Start the service anew; implies that systemd reads its units anew. Waiting for it is part of the proof."""

    unit: str
    along: tuple[str, ...] = ()  # units that it brings up
    alone: bool = False  # leaves those alone that it would bring up, or take with it

    def describe(self) -> str:
        return tr("restart {unit}", unit=self.unit)

    def to_json(self) -> dict[str, object]:
        return {"kind": "restart", "unit": self.unit}

    def apply(self, host: Host, report: Report) -> None:
        host.systemctl("daemon-reload")
        # A start limit also counts restarts by hand, so an earlier failure must not stop this one.
        host.systemctl("reset-failed", self.unit, *self.along, check=False)
        mode = ("--job-mode=ignore-dependencies",) if self.alone else ()
        host.systemctl("restart", "--no-block", *mode, self.unit)


@dataclass(frozen=True)
class Handover:
    """Let the running service make way for its successor, while callers wait; what has to be seen is as for Restart.

    The successor is prepared beside it, and one that does not come up changes nothing.
    """

    unit: str

    def describe(self) -> str:
        return tr("hand {unit} over to its successor, while callers wait", unit=self.unit)

    def to_json(self) -> dict[str, object]:
        return {"kind": "handover", "unit": self.unit}

    def apply(self, host: Host, report: Report) -> None:
        host.systemctl("daemon-reload")
        host.systemctl("reload", "--no-block", self.unit)


MANY = 5  # files of one directory, which are one line to who reads


@dataclass(frozen=True)
class Files:
    """For who reads: many files that are written into one directory."""

    folder: Path
    count: int
    bytes: int

    def describe(self) -> str:
        return tr(
            "write {count} files in {folder} ({size})", count=self.count, folder=self.folder, size=size(self.bytes)
        )


def told(changes: Sequence[Change]) -> Iterator[Described | None]:
    """What is said of each in its turn: of many files in one directory all at the first of them."""
    files = [change for change in changes if isinstance(change, Write)]
    count = Counter(file.path.parent for file in files)
    said = set()
    for change in changes:
        folder = change.path.parent if isinstance(change, Write) else None
        if folder is None or count[folder] < MANY:
            yield change
        elif folder in said:
            yield None
        else:
            said.add(folder)
            yield Files(folder, count[folder], sum(file.size for file in files if file.path.parent == folder))
