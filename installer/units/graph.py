"""The units that a service consists of, in the order in which they start: today one, which is also what people type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from installer.base.layout import Layout

UNITS = Path("/etc/systemd/system")


@dataclass(frozen=True)
class Member:
    """A unit with a server of its own: written, enabled, started, proved and taken away by itself."""

    layout: Layout
    name: str

    @property
    def path(self) -> Path:
        return UNITS / self.name

    @property
    def drop_ins(self) -> Path:
        return UNITS / f"{self.name}.d"

    @property
    def wants_link(self) -> Path:
        """There while the unit starts at every boot."""
        return UNITS / "multi-user.target.wants" / self.name


def members(layout: Layout) -> tuple[Member, ...]:
    return (handle(layout),)


def handle(layout: Layout) -> Member:
    """The unit that stands for all: to start, stop, reload and look at it is to do so to every member."""
    return Member(layout, layout.unit_name)
