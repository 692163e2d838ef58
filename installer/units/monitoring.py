"""Where the key lies with which Prometheus reads the figures of every service; a new service gets it as well."""

from __future__ import annotations

from installer.base.host import Host
from installer.base.layout import MONITOR
from installer.spec import keys
from installer.spec.keys import Key

KEY = MONITOR / "key"
NAME, ROLE = "monitor", "metrics"


def key(host: Host) -> Key | None:
    """As a service knows it; None while nobody watches. Who may not read it sees that there is one."""
    if not host.exists(KEY):
        return None
    try:
        return Key(NAME, keys.digest(host.word(KEY)), ROLE)
    except PermissionError:
        return Key(NAME, keys.TO_BE_MADE, ROLE)
