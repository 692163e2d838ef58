"""Files that systemd reads as root and hands to a service: they and the way to them have to be root's alone."""

from __future__ import annotations

import stat
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.base.trust import of_others


def exposed(host: Host, name: str, *, is_secret: bool = True) -> str:
    """Why it is not root's alone; whoever could put a link in its place would have the service get any file."""
    path = Path(name)
    try:
        if part := of_others(host, path):
            return tr("{path}: others than root can change {part}", path=path, part=part)
        if is_secret and stat.S_IMODE(host.at(path).stat().st_mode) & 0o077:
            return tr("{path}: others than root may read it", path=path)
    except OSError as error:
        return tr("{path}: {reason}", path=path, reason=error.strerror)
    return ""
