"""What the settings mean on this host: an engine, a model, and keys. Everything after this is comparison."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
class Adapter:
    """A LoRA adapter that is served beside the model, as a model of its own name."""

    model: Model  # its id is that name
    rank: int


LOOPBACK = "127.0.0.1"
MEMBER_HOLD = 5  # seconds: by then the gateway has seen that a replica does not serve, and asks another or holds


@dataclass(frozen=True)
class Replica:
    """One of several engines behind the gateway: its number, its port on the loopback interface, its own GPUs."""

    number: int
    port: int
    gpus: tuple[Placed, ...] = ()


@dataclass(frozen=True)
class Place:
    """Which host of a group this one is, and by which network interface it reaches the others."""

    rank: int  # 0 is the head, which has the API
    interface: str


@dataclass(frozen=True)
class Target:
    settings: Settings
    engine: Engine
    model: Model
    keys: tuple[Key, ...]
    profile: Profile = field(default_factory=Profile)
    gpus: tuple[Placed, ...] = ()  # by uuid in the unit; none where all are shown to the service
    toolkit: Toolkit | None = None  # of a CUDA engine
    replicas: tuple[Replica, ...] = ()  # behind a gateway; none where the service is the engine itself
    adapters: tuple[Adapter, ...] = ()
    place: Place | None = None  # in a group of hosts that serve one model together
    others: tuple[str, ...] = ()  # hosts whose replicas the gateway asks as well, by address

    @property
    def read(self) -> tuple[Model, ...]:
        """All whose weights the engine reads: the model first."""
        return (self.model, *(adapter.model for adapter in self.adapters))

    @property
    def has_api(self) -> bool:
        """A host of a group that is not its head has none."""
        return self.place is None or self.place.rank == 0

    def of(self, number: int) -> Target:
        """What a unit of the service starts: the whole, or as a service of its own the replica of that number."""
        found = next((replica for replica in self.replicas if replica.number == number), None)
        if found is None:
            return self
        settings = replace(self.settings, host=LOOPBACK, port=found.port, hold=MEMBER_HOLD, replicas=1)
        return replace(self, settings=settings, gpus=found.gpus, replicas=(), others=())
