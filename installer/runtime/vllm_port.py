"""The port of a service, taken before anything else runs; or who has it, and with which status that is refused.

Stdlib only, because it runs on the engine's Python.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_hold
    from installer.runtime.vllm_systemd import command_of
else:
    import vllm_hold
    from vllm_systemd import command_of

BAD_CONFIGURATION = 78  # with RestartPreventExitStatus=: trying again would change nothing
BUSY = 75  # somebody else has the port; it may be free at the next try
TRY_LATER = 1
LOOKS = 3  # at who has a socket: what systemd starts just now has all that it has, for a moment
SYSTEMD_S = "/proc/1/"
MADE_UP = range(61184, 65520)  # users that systemd makes up for as long as a unit with DynamicUser= runs


class Refused(Exception):
    def __init__(self, message: str, status: int = BAD_CONFIGURATION) -> None:
        super().__init__(message)
        self.status = status


def runtime_directory() -> str:
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not directory:
        raise Refused("RUNTIME_DIRECTORY is not set: the unit needs RuntimeDirectory=")
    return directory


def listen(host: str, port: int) -> socket.socket:
    """From now on nobody else can, neither here nor on one of the addresses that this one covers; or who does."""
    try:
        return vllm_hold.listen(host, port)
    except OSError as error:
        raise not_free(host, port, error) from None


def not_free(host: str, port: int, error: OSError) -> Refused:
    if isinstance(error, PermissionError):
        return Refused(f"port {port} is not open to this user: take one above 1023")
    if error.errno == errno.EADDRINUSE:
        return Refused(f"port {port} is held by {holder(port)}", BUSY)
    return Refused(f"cannot listen on {host} port {port}: {error.strerror}", BUSY)


def is_kept(port: int) -> bool:
    """Whether all that listens there is the service's own: made by its user, and in systemd's hands alone."""
    user, made_by = str(os.stat(runtime_directory()).st_uid), set()
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            rows = [row for row in map(str.split, file) if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
            inodes |= {f"socket:[{row[9]}]" for row in rows}
            made_by |= {row[7] for row in rows}
    ours = {user, *map(str, MADE_UP)}  # a gateway that was here before this engine had such a one
    return made_by <= ours and bool(inodes) and inodes <= held_by_systemd() and not is_shared(inodes)


def held_by_systemd() -> set[str]:
    """Its sockets, as links in /proc show them; root alone may see them."""
    held = set()
    for link in glob.iglob(f"{SYSTEMD_S}fd/*"):
        with contextlib.suppress(OSError):
            held.add(os.readlink(link))
    return held


def is_shared(sockets: set[str]) -> bool:
    """Whether others have one, too: who got it of an engine that is gone would hear what the next one is told."""
    ours = (SYSTEMD_S, f"/proc/{os.getpid()}/")  # to which systemd might hand it in
    for look in range(LOOKS):
        time.sleep(0.1 * look)
        others = (link for link in glob.iglob("/proc/[0-9]*/fd/*") if not link.startswith(ours))
        if not any(leads_to(link, sockets) for link in others):
            return False
    return True


def leads_to(link: str, sockets: set[str]) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(link) in sockets
    return False


def holder(port: int) -> str:
    """Who listens there, or has a connection that goes out from there: the kernel takes the upper numbers for those."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            rows = (line.split() for line in file)
            inodes |= {row[9] for row in rows if row[1].endswith(f":{port:04X}")} - {"0"}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for link in sorted(glob.iglob("/proc/[0-9]*/fd/*"), key=lambda link: link.startswith(SYSTEMD_S)):
        if leads_to(link, sockets):
            pid = int(link.split("/")[2])
            return f"pid {pid} ({command_of(pid)})"
    return f"another user's process (to see it, as root: ss -atnp 'sport = :{port}')"
