"""One thing that doctor found: what is wrong, the line that shows it, and the commands that help."""

from __future__ import annotations

from dataclasses import dataclass

from installer.language import mark

FAULT, NOTE = mark("fault"), mark("note")
LONGEST = 400


@dataclass(frozen=True)
class Finding:
    id: str
    cause: str
    evidence: str
    commands: tuple[str, ...]  # the first is the one to try; the others are alternatives
    severity: str = FAULT


def plain(text: str) -> str:
    """A line that others wrote, harmless on a terminal and of bounded length."""
    line = "".join(c if c.isprintable() else " " for c in text.strip())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
