"""The few kinds of change a deploy is made of. A plan is a list of them; applying them is a deploy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from installer.host import Host
from installer.report import Report


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
        return f"write {self.path} ({self.mode:04o}, {len(self.text.encode(errors='surrogateescape'))} bytes)"

    def to_json(self) -> dict[str, object]:
        shown: dict[str, object] = {"secret": True} if self.secret else {"text": self.text}
        return {"kind": "write", "path": str(self.path), "mode": f"{self.mode:04o}", **shown}

    def apply(self, host: Host, report: Report) -> None:
        host.write(self.path, self.text, self.mode)


@dataclass(frozen=True)
class Remove:
    path: Path

    def describe(self) -> str:
        return f"remove {self.path}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "remove", "path": str(self.path)}

    def apply(self, host: Host, report: Report) -> None:
        host.remove(self.path)


@dataclass(frozen=True)
class Run:
    argv: tuple[str, ...]
    why: str

    def describe(self) -> str:
        return f"{self.why}: {' '.join(self.argv)}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "run", "argv": list(self.argv), "why": self.why}

    def apply(self, host: Host, report: Report) -> None:
        host.run(*self.argv)


@dataclass(frozen=True)
class Reload:
    """Make systemd read its unit files again."""

    def describe(self) -> str:
        return "reload systemd's unit files"

    def to_json(self) -> dict[str, object]:
        return {"kind": "reload"}

    def apply(self, host: Host, report: Report) -> None:
        host.systemctl("daemon-reload")


@dataclass(frozen=True)
class Restart:
    """Start the service anew; returns when it says it is ready."""

    unit: str

    def describe(self) -> str:
        return f"restart {self.unit}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "restart", "unit": self.unit}

    def apply(self, host: Host, report: Report) -> None:
        # A start limit also counts restarts by hand, so an earlier failure must not stop this one.
        host.systemctl("reset-failed", self.unit, check=False)
        host.systemctl("restart", self.unit)
