"""One thing that doctor found: what is wrong, the line that shows it, and the commands that help."""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.language import mark

FAULT, NOTE = mark("fault"), mark("note")


@dataclass(frozen=True)
class Finding:
    id: str
    cause: str
    evidence: str
    commands: tuple[str, ...]  # the first is the one to try; the others are alternatives
    severity: str = FAULT
