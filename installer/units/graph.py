"""The units that a service consists of: one, which is also what people type, or replicas and a gateway of that name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from installer.base.host import Host
from installer.base.layout import UNITS, Layout
from installer.spec.target import LOOPBACK, Target


@dataclass(frozen=True)
class Member:
    """A unit with a server of its own: written, started, proved and taken away by itself."""

    layout: Layout
    name: str
    number: int = 0  # of a replica; 0 is the unit that people type
    host: str = ""  # where it listens; nothing where only the unit is meant
    port: int = 0

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

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".service")

    @property
    def run_dir(self) -> Path:
        return Path("/run") / self.stem

    @property
    def control(self) -> Path:
        """The socket by which a running supervisor hands over to its successor."""
        return self.run_dir / "control"

    @property
    def holding(self) -> Path:
        """How many callers wait; there while the engine does not serve."""
        return self.run_dir / "holding"


def members(layout: Layout, target: Target | None = None) -> tuple[Member, ...]:
    """Those with an engine each: the replicas, or else the service itself."""
    if target is None or not target.replicas:
        return (handle(layout, target),)
    return tuple(
        Member(layout, layout.member_name(replica.number), replica.number, LOOPBACK, replica.port)
        for replica in target.replicas
    )


def handle(layout: Layout, target: Target | None = None) -> Member:
    """The unit that stands for all: to start, stop, reload and look at it is to do so to every member."""
    settings = target.settings if target else None
    return Member(layout, layout.unit_name, 0, settings.host if settings else "", settings.port if settings else 0)


def units(layout: Layout, target: Target) -> tuple[Member, ...]:
    """All of them: those with an engine, and last the gateway before them."""
    return (*members(layout, target), *((handle(layout, target),) if target.replicas else ()))


def on_disk(host: Host, layout: Layout) -> tuple[Member, ...]:
    """The replicas whose units lie there, also those that a change which was cut off made or left."""
    numbers = {path.name: layout.number_of(path.name) for path in host.children(UNITS)}
    return tuple(Member(layout, name, number) for number, name in sorted((n, name) for name, n in numbers.items() if n))
