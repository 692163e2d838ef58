"""Several hosts that serve as one: which they are, and what is under way with them. Its record lies on each of them.

The record with the highest epoch is the one that is true: a host that has an older one was away when a change ended,
and is led to what the others have.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace

from installer.base.errors import Refused
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.spec import values
from installer.spec.record import UNREADABLE, read_as

VERSION = 2
LONGEST = 1 << 20  # bytes of a record


@dataclass(frozen=True)
class Peer:
    """A host of the group."""

    name: str  # by which all others reach it
    machine: str = ""  # its machine-id: another name of the same host is no second one
    out: bool = False  # nobody changes it until it is taken back
    address: str = ""  # by which the gateways of the others reach its own, where they answer for one another

    def __post_init__(self) -> None:
        values.host_name(self.name)  # ssh is given it, and any host of the group may have written it down
        if self.address:
            values.address(self.address)


@dataclass(frozen=True)
class Joint:
    """A change of all hosts that has not ended."""

    id: str
    what: str
    first: bool = False  # the service was not on this host before
    of_keys: bool = False
    done: bool = False  # this host has been changed, and it was proved


@dataclass(frozen=True)
class Ended:
    """How the last change of all hosts ended."""

    id: str
    what: str
    kept: bool


@dataclass(frozen=True)
class Group:
    id: str
    peers: tuple[Peer, ...]
    mode: str = values.REPLICAS
    epoch: int = 0
    change: Joint | None = None
    ended: Ended | None = None

    @property
    def serving(self) -> tuple[Peer, ...]:
        """Those that are not taken out."""
        return tuple(peer for peer in self.peers if not peer.out)

    def ending(self, *, kept: bool) -> Group:
        """The record after the change that is under way."""
        assert self.change is not None, "there is a change to end"
        ended = Ended(self.change.id, self.change.what, kept)
        return replace(self, epoch=self.epoch + 1, change=None, ended=ended)


def to_data(group: Group) -> dict[str, object]:
    return {"version": VERSION, **asdict(group)}


def of_data(data: object) -> Group:
    """Of a newer version as much as is understood. Raises what is UNREADABLE."""
    return read_as(Group, data)


def load_group(host: Host, layout: Layout) -> Group | None:
    """None of a service that is on this host alone."""
    try:
        text = host.read_of(layout.group_file, (0, os.geteuid()), LONGEST)
        if text is None:
            return None
        data = json.loads(text)
        if data["version"] > VERSION:
            raise ValueError(tr("it was written by a newer version of vllm-install"))
        return of_data(data)
    except (*UNREADABLE, Strange, IsADirectoryError) as error:
        raise Refused(
            tr("{path} cannot be read: {reason}", path=layout.group_file, reason=error),
            tr("to go on with this host alone, move it away: mv {path} /root/", path=layout.group_file),
        ) from None


def save_group(host: Host, layout: Layout, group: Group) -> None:
    host.write(layout.group_file, json.dumps(to_data(group), indent=2) + "\n")
