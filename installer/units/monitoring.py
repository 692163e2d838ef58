"""Where the key lies with which Prometheus reads the figures of every service; a new service gets it as well.

Of a service on several hosts each host knows by its digest the key of every other: one Prometheus reads all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from installer.base.host import Host
from installer.base.layout import MONITOR
from installer.spec import keys
from installer.spec.keys import Key

KEY = MONITOR / "key"
NAME, ROLE = "monitor", "metrics"
OF = f"{NAME}-of-"  # another host, whose Prometheus reads here
OWN = re.compile(rf"{NAME}(-old(-\d+)?)?")  # of this host's Prometheus, and those that live on beside it for a while


def key(host: Host) -> Key | None:
    """As a service knows it; None while nobody watches. Who may not read it sees that there is one."""
    if not host.exists(KEY):
        return None
    try:
        return Key(NAME, keys.digest(host.word(KEY)), ROLE)
    except PermissionError:
        return Key(NAME, keys.TO_BE_MADE, ROLE)


def is_own(key: Key) -> bool:
    return key.role == ROLE and OWN.fullmatch(key.name) is not None


def watches(key: Key) -> bool:
    """Whether it is for a Prometheus: which of these a host has is no matter of the others of a group."""
    return is_own(key) or bool(others([key]))


def others(held: Iterable[Key]) -> frozenset[str]:
    """The names of those keys that are other hosts'."""
    return frozenset(key.name for key in held if key.role == ROLE and key.name.startswith(OF))


def name_of(host: str) -> str:
    """What the key of another host is called here: no two hosts alike, for no part of a host's name begins with a _."""
    return OF + host.lower().replace("_", "__").replace(".", "_")


def read_by(held: Iterable[Key], readers: Mapping[str, str | None]) -> tuple[Key, ...]:
    """The keys with those of these hosts by their digests, and of no other; None is a host that could not be asked."""
    now = {key.name: key for key in held}
    kept = {name_of(host) for host, digest in readers.items() if digest is None}
    gone = others(now.values()) - kept
    new = [keys.parse(f"{name_of(host)}:{ROLE}=sha256:{digest}") for host, digest in readers.items() if digest]
    return keys.in_order([*(key for name, key in now.items() if name not in gone), *new])
