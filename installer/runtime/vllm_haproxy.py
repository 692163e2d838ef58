"""HAProxy's runtime socket: a command, and its answer. It lies in a directory of HAProxy's own user. Stdlib only."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import Sequence

SOCKET = "haproxy.sock"  # in the runtime directory
ANSWERS_WITHIN = 5.0  # seconds
LONGEST = 1 << 20  # bytes of an answer


def worker(path: str) -> int:
    """The pid of the worker that answers there; 0 where none does."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pid: (\d{1,9})$", ask(path, "show info"), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def began(stat: Sequence[str]) -> float:
    """When a process did, as time.time() counts: by what its line in /proc says from field 3 on.

    What HAProxy says of its age are whole seconds, and too few where it was kept from the processor.
    """
    ticks = int(stat[19]) if len(stat) > 19 else 0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def ask(path: str, command: str, within: float = ANSWERS_WITHIN) -> str:
    """One command and its whole answer, at the end of which HAProxy closes the connection."""
    end, answer = time.monotonic() + within, bytearray()
    with connect(path, within) as connection:
        connection.sendall(f"{command}\n".encode())
        while chunk := receive(connection, end):
            answer += chunk
            if len(answer) > LONGEST:
                raise OSError("its answer has no end")
    return answer.decode(errors="replace")


def receive(connection: socket.socket, end: float) -> bytes:
    connection.settimeout(max(0.001, end - time.monotonic()))
    return connection.recv(65536)


def connect(path: str, within: float) -> socket.socket:
    """To the socket that lies there itself: its directory's owner could have put a link to another one."""
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.stat(os.path.dirname(path)).st_uid:
            raise OSError(f"{path} is not its runtime socket")
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(within)
            connection.connect(f"/proc/self/fd/{handle}")
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(handle)
