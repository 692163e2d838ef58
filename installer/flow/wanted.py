"""What one change of a service works towards."""

from __future__ import annotations

from dataclasses import dataclass

from installer.airgap.bundle_file import Bundle
from installer.base.layout import Layout
from installer.spec.former import Former
from installer.spec.keys import Key
from installer.spec.offer import Elsewhere
from installer.spec.target import Target


@dataclass(frozen=True)
class Wanted:
    target: Target
    layout: Layout
    probe_key: str
    bundle: Bundle | None = None  # which has the engine's packages and the weights
    former: Former | None = None  # the unit whose place this service takes
    environment: tuple[tuple[str, str], ...] = ()  # variables that come along from there
    caches: tuple[Elsewhere, ...] = ()  # of the hub's, that were used there; or of other hosts
    held: tuple[Key, ...] | None = None  # the unit's keys when the change began; those of now if none began
    is_first: bool = False  # no service was there before
    is_way_back: bool = False  # to what was proved before
