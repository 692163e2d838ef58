"""What the collector looks at: the host and each of its services at one moment; and what a source of figures is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from installer.base.host import Host
from installer.diagnosis.scene import Scene
from installer.monitor.textfile import Family, Row


@dataclass(frozen=True)
class Moment:
    host: Host
    services: tuple[Scene, ...] = ()
    now: float = field(default_factory=time.time)  # seconds since 1970


@dataclass(frozen=True)
class Source:
    """Figures of one kind: which metrics there may be, and how they are found out.

    `rows` is called once with all services, or where it is `each` once for every one of them; what it has yielded
    before it fails or takes too long is kept.
    """

    name: str
    families: tuple[Family, ...]
    rows: Callable[[Moment], Iterable[Row]]
    each: bool = False
