"""HAProxy's runtime socket: a command, and its answer. It lies in a directory of HAProxy's own user. Stdlib only."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time

SOCKET = "haproxy.sock"  # in the runtime directory
ANSWERS_WITHIN = 5.0  # seconds
LONGEST = 1 << 20  # bytes of an answer


def worker(path: str) -> tuple[int, int] | None:
    """Pid and age in seconds of the worker that answers there."""
    with contextlib.suppress(OSError):
        said = ask(path, "show info")
        pid, age = (re.search(rf"^{name}: (\d{{1,9}})$", said, re.MULTILINE) for name in ("Pid", "Uptime_sec"))
        return (int(pid[1]), int(age[1])) if pid and age else None
    return None


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
