"""One reason why a host cannot carry a service, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.language import tr


@dataclass(frozen=True)
class Problem:
    what: str
    why: str
    remedy: str
    fatal: bool = True  # or only worth a warning
    id: str = "host-unfit"  # what doctor calls it

    def __str__(self) -> str:
        return tr("{what}: {why}; {remedy}", what=self.what, why=self.why, remedy=self.remedy)
