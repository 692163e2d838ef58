"""What the settings mean on this host: an engine, a model, and keys. Everything after this is comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from installer.spec.engine import Engine
from installer.spec.keys import Key
from installer.spec.model import Model
from installer.spec.profile import Profile
from installer.spec.settings import Settings
from installer.spec.toolkit import Toolkit


@dataclass(frozen=True)
class Placed:
    """A GPU that a service was given."""

    uuid: str
    name: str
    node: str = ""  # its device node, where the driver says which that is

    def __str__(self) -> str:
        return f"{self.name} ({self.uuid})"


@dataclass(frozen=True)
class Target:
    settings: Settings
    engine: Engine
    model: Model
    keys: tuple[Key, ...]
    profile: Profile = field(default_factory=Profile)
    gpus: tuple[Placed, ...] = ()  # by uuid in the unit; none where all are shown to the service
    toolkit: Toolkit | None = None  # of a CUDA engine
