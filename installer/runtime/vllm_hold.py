"""The listening socket that outlives the engine, and what becomes of those who wait in its queue.

systemd keeps the socket from one process to the next (FileDescriptorStoreMax=), and beside it a record of what must
not be forgotten between them. Who waits too long is told so: 503, in the API's form. Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import selectors
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_systemd import notify, own_unit, systemctl
else:
    from vllm_systemd import notify, own_unit, systemctl

SOCKET, DOOR, RECORD = "http", "door", "hold"  # by which systemd knows what it keeps
HOLDING = "holding"  # in the runtime directory: who waits, as long as somebody may
LONGEST = 3600
MOST_WAITING = 4095
SERVER_BACKLOG = 2048  # what vLLM's own server listens with
RECORD_SIZE = 4096

MOST_CALLERS = 256
HEAD_SIZE = 16 * 1024
HEAD_WITHIN = LEAVE_WITHIN = 2.0  # seconds
COME_BACK_AFTER = 10
PROBLEM = {"message": "the model is being loaded", "type": "service_unavailable", "param": None, "code": "starting"}
BODY = json.dumps({"error": PROBLEM}).encode()
ANSWER = (
    f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {COME_BACK_AFTER}\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
).encode() + BODY

SPANS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def limit() -> int:
    """Seconds that callers wait; 0 where they are not held. Unset it is 0: then nobody keeps a socket for us."""
    text = os.environ.get("HOLD", "0")
    if not text.isdecimal() or int(text) > LONGEST:
        raise ValueError(f"HOLD is not a number of seconds from 0 to {LONGEST}")
    return int(text)


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# What systemd keeps


def kept(name: str) -> list[int]:
    """What systemd has kept for this process under a name."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")[: int(os.environ.get("LISTEN_FDS") or 0)]
    return [number for number, each in enumerate(names, 3) if each == name]


def keep(name: str, descriptor: int) -> None:
    # Without FDPOLL=0 systemd would let go of a socket that it finds shut down, or so it says.
    notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])


def forget(name: str) -> None:
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def take(host: str, port: int, *, is_wanted: bool) -> socket.socket | None:
    """The socket that was kept, with all who wait there; one for another address is closed."""
    found = None
    for descriptor in kept(SOCKET):
        held = socket.socket(fileno=descriptor)
        if is_wanted and not found and is_at(held, host, port) and queue(held):
            found = held
        else:
            close(held)
            forget(SOCKET)
    if kept(RECORD) and not is_wanted:
        forget(RECORD)
    return found


def listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(backlog())
    return listener


def is_at(held: socket.socket, host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        address = socket.getaddrinfo(host, port, held.family, socket.SOCK_STREAM)[0][4]
        return tuple(held.getsockname()[:2]) == tuple(address[:2])
    return False


def close(listener: socket.socket) -> None:
    """Those who wait are reset, whoever else has it. A door is shut for good; at a port who has it can listen again."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


class Record:
    """What is not to be forgotten between two processes: since when callers are held, and when the last starts were."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create(RECORD) if descriptor is None else descriptor

    def read(self) -> tuple[float | None, list[float]]:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(os.pread(self.descriptor, RECORD_SIZE, 0))
            since = found["since"]
            return None if since is None else float(since), [float(at) for at in found["starts"]]
        return None, []

    def write(self, since: float | None, starts: list[float]) -> None:
        text = json.dumps({"since": since, "starts": starts[-64:]})
        os.pwrite(self.descriptor, text.encode().ljust(RECORD_SIZE), 0)


# The queue


def backlog() -> int:
    """As long as the kernel allows, and never what a server would ask for: by the difference it is known to listen."""
    most = MOST_WAITING
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/net/core/somaxconn") as file:
        most = max(1, min(most, int(file.read()) - 1))
    return most - 1 if most == SERVER_BACKLOG else most


def queue(listener: socket.socket) -> tuple[int, int] | None:
    """How many wait and how many may, as TCP_INFO has it of a socket that listens: tcpi_unacked, tcpi_sacked."""
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    waiting, most = struct.unpack_from("II", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)
    return waiting, most


class Caller:
    """One who waited too long; `until` is when we stop caring."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.head = b""
        self.is_answered = False
        self.until = time.monotonic() + HEAD_WITHIN

    def read(self) -> bool:
        """Whether there is more to come."""
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not self.is_answered:
            self.head += data
            if b"\r\n\r\n" in self.head or len(self.head) > HEAD_SIZE:
                self.answer()
        return bool(data)

    def answer(self) -> None:
        """And read on: closed with something unread, the kernel would reset it, and the answer were lost."""
        self.is_answered, self.head = True, b""
        self.until = time.monotonic() + LEAVE_WITHIN
        with contextlib.suppress(OSError):
            self.connection.send(ANSWER)
            self.connection.shutdown(socket.SHUT_WR)


class Refusal:
    """Answers everybody in the queue with 503; who is slow to ask keeps nobody else from being answered."""

    def __init__(self, *listeners: socket.socket) -> None:
        self._listeners = listeners
        for listener in listeners:
            listener.setblocking(False)  # for all processes that have it, as every server does
        self._callers: dict[socket.socket, Caller] = {}  # in the order in which they came
        self._selector = selectors.DefaultSelector()

    def __bool__(self) -> bool:
        return bool(self._callers)

    def step(self, patience: float, *, accepts: bool = True) -> None:
        if accepts:
            self._accept()
        for key, _ in self._selector.select(patience):
            if not self._callers[key.data].read():
                self._part(key.data)
        for connection, caller in list(self._callers.items()):
            if time.monotonic() > caller.until and caller.is_answered:
                self._part(connection)
            elif time.monotonic() > caller.until:
                caller.answer()

    def finish(self, seconds: float) -> None:
        """Answer all who wait now, then those who come meanwhile, as long as there is time."""
        end = time.monotonic() + seconds
        self.step(0)
        while time.monotonic() < end and (self or select.select(self._listeners, [], [], 0)[0]):
            self.step(0.05)

    def _accept(self) -> None:
        for listener in self._listeners:
            self._accept_from(listener)

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(MOST_CALLERS):
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            connection.setblocking(False)
            if len(self._callers) >= MOST_CALLERS:
                oldest = next(iter(self._callers))
                self._callers[oldest].answer()
                self._part(oldest)
            self._callers[connection] = Caller(connection)
            self._selector.register(connection, selectors.EVENT_READ, connection)

    def _part(self, connection: socket.socket) -> None:
        del self._callers[connection]
        self._selector.unregister(connection)
        connection.close()


def refuse_all(*listeners: socket.socket) -> None:
    """Nobody will come to answer them: so they are told, and nobody can come after them."""
    Refusal(*listeners).finish(5)
    for listener in listeners:
        close(listener)


def refuse_kept() -> None:
    listeners = [socket.socket(fileno=descriptor) for name in (SOCKET, DOOR) for descriptor in kept(name)]
    refuse_all(*(each for each in listeners if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))


# What systemd will do next


def is_last(status: int, starts: list[float]) -> bool:
    """Whether systemd will not start the unit again after this end of it."""
    if status in (2, 78):  # RestartPreventExitStatus=
        return True
    shown = systemctl("show", "--property=Restart,StartLimitBurst,StartLimitIntervalUSec", own_unit())
    found = dict(line.partition("=")[::2] for line in shown.splitlines())
    burst, span = found.get("StartLimitBurst", ""), seconds(found.get("StartLimitIntervalUSec", ""))
    recent = [at for at in starts if at > now() - span]
    return found.get("Restart") == "no" or (burst.isdecimal() and 0 < int(burst) <= len(recent))


def seconds(span: str) -> float:
    """`1h 30min` as systemctl writes it."""
    return sum(float(number) * SPANS[name] for number, name in re.findall(r"([\d.]+)(us|ms|min|s|h|d|w)\b", span))
