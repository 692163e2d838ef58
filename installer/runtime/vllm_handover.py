"""What two supervisors of one service say to one another while the next engine takes the place of the one that runs.

    launcher reload    → the running one   {"is": "run", "run": DIGEST}     what would be started
                       ←                   {"is": "other"} with its socket, its key, its record; "same", or nothing
    the next one       →                   {"is": "switch", "keys": TEXT}   all that could be prepared is
                       ←                   {"is": "gone"}                   its engine, and all of its processes
                       →                   {"is": "done"}                   the next engine has answered
                       →                   {"is": "failed", "why": TEXT}    the next engine is gone

Either side takes the end of the connection for the death of the other. Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_systemd import rights
else:
    from vllm_systemd import rights

CONTROL = "control"  # in the runtime directory, where the running supervisor listens
PULSE = "."  # what the next supervisor says to its launcher all the while
LONGEST = 128 * 1024
MOST_DESCRIPTORS = 8


def send(connection: socket.socket, what: str, descriptors: Sequence[int] = (), **more: object) -> None:
    """To one that is gone nothing is said: that it is gone is heard where it is listened to."""
    with contextlib.suppress(OSError):
        words = json.dumps({"is": what, **more}).encode()
        connection.sendmsg([words], rights(descriptors) if descriptors else [])


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What was said; {} at the end of the connection."""
    with contextlib.suppress(OSError, ValueError):
        words, descriptors, _, _ = socket.recv_fds(connection, LONGEST, MOST_DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # as all others are; these come as the kernel makes them
        message = json.loads(words or b"{}")
        return (message if isinstance(message, dict) else {}), list(descriptors)
    return {}, []


def listen(runtime: str) -> socket.socket:
    """In the place of whoever listened there before; who looks there always finds a socket."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = os.path.join(runtime, f"{CONTROL}.{os.getpid()}")
    control.bind(place)
    control.listen(8)
    os.replace(place, os.path.join(runtime, CONTROL))
    return control


def connect(runtime: str) -> socket.socket | None:
    """To the running supervisor; None where it is of a kind that lets nobody take its place."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(30)
        connection.connect(os.path.join(runtime, CONTROL))
    except OSError:
        connection.close()
        return None
    return connection


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, when it was opened."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", credentials)
    return pid, user
