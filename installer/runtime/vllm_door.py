"""A replica's door for the gateway of this host: a socket at a path, which costs both of them less than its port does.

Root makes it before a start, in a directory of its own, where nobody else can put a link or another socket in its
place. The engine gets the descriptor, beside the port's, and what becomes of the one becomes of the other: systemd
keeps it (vllm_hold.py), callers wait in its queue, and the next engine takes it over. Stdlib only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from multiprocessing import util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_hold, vllm_port
    from installer.runtime.vllm_port import TRY_LATER, Refused
else:
    import vllm_hold
    import vllm_port
    from vllm_port import TRY_LATER, Refused

PLACE = "DOOR"  # variables: where it lies, in the unit of a replica;
DESCRIPTOR = "LAUNCHER_DOOR"  # and of an engine, the socket itself
LOOK_EVERY = 0.02  # seconds

# Of a netlink socket to the kernel, as in sock_diag(7).
SOCK_DIAG, BY_FAMILY, DUMP, LAST = 4, 20, 0x301, (2, 3)
LISTENING, SHOW_VFS, VFS = 1 << 10, 2, 1

log = logging.getLogger("vllm.guard")


# Root, before a start


def make(place: str) -> None:
    """Unless there is one that systemd has kept, with all who wait there.

    Only the gateway may come, and the service itself, whose group that is: in a path's queue there is room or there
    is not, and who fills it would have the gateway hold the replica for down.
    """
    if is_open(place) and is_kept(place):
        return
    os.umask(0o022)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        os.chown(place, -1, os.stat(vllm_port.runtime_directory()).st_gid)
        os.chmod(place, 0o660)
        vllm_hold.forget(vllm_hold.DOOR)
        vllm_hold.keep(vllm_hold.DOOR, door.fileno())


def is_open(place: str) -> bool:
    """Whether somebody listens at the socket that lies there itself; no link is followed."""
    if not os.path.lexists(place) or not stat.S_ISSOCK(os.lstat(place).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(place)
        except BlockingIOError:  # so many wait there already
            return True
        except OSError:
            return False
        return True


def is_kept(place: str) -> bool:
    """Whether systemd has it and nobody else: an engine may have given its own to somebody who listens on."""
    made = set(listening_at(place))
    return bool(made) and made <= vllm_port.held_by_systemd() and not vllm_port.is_shared(made)


def listening_at(place: str) -> Iterator[str]:
    """By the kernel's word: into the names that /proc/net/unix shows anybody can write lines of his own."""
    status = os.lstat(place)
    there = (status.st_ino & 0xFFFFFFFF, os.major(status.st_dev) << 20 | os.minor(status.st_dev))
    asked = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, LISTENING, 0, SHOW_VFS, 0xFFFFFFFF, 0xFFFFFFFF)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(asked), BY_FAMILY, DUMP, 1, 0) + asked)
        while True:
            said = kernel.recv(1 << 16)
            while said:
                length, kind = struct.unpack_from("=IH", said)
                if kind in LAST:
                    return
                if vfs_of(said[32:length]) == there:
                    yield f"socket:[{struct.unpack_from('=I', said, 20)[0]}]"
                said = said[aligned(length) :]


def vfs_of(attributes: bytes) -> tuple[int, ...]:
    """inode and device of the path that a socket is bound to; nothing for one without."""
    while attributes:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == VFS:
            return struct.unpack_from("=II", attributes, 4)
        attributes = attributes[aligned(length) :]
    return ()


def aligned(length: int) -> int:
    return length + 3 & ~3


# The launcher


def take(*, is_wanted: bool) -> int | None:
    """What was made for this start, or kept since one before it; from now on it is ours to keep."""
    found = vllm_hold.kept(vllm_hold.DOOR)
    if not found and PLACE in os.environ:
        raise Refused("systemd has handed over no door for the gateway", TRY_LATER)
    if found and not is_wanted:
        vllm_hold.forget(vllm_hold.DOOR)
    return found[0] if found else None


# The engine


def hand_on() -> None:
    """To each API server, where there are several: `multiprocessing` starts them, and hands on nothing else."""
    if DESCRIPTOR not in os.environ:
        return
    door, spawn = int(os.environ[DESCRIPTOR]), util.spawnv_passfds
    os.set_inheritable(door, False)

    def spawn_with_it(path: bytes, words: Sequence[Any], descriptors: Sequence[int]) -> int:
        return spawn(path, words, (*descriptors, door))

    util.spawnv_passfds = spawn_with_it  # type: ignore[assignment]


def answer(scope: MutableMapping[str, Any]) -> asyncio.Future[None] | None:
    """Called at the start of the application: who comes by the door is answered as soon as who comes by the port.

    What is touched of the web server is looked for: where a version lacks something, the gateway finds the door
    closed, and a line in the journal says why.
    """
    if DESCRIPTOR not in os.environ:
        return None
    server = getattr(getattr(scope.get("app"), "state", None), "server", None)
    if not all(hasattr(server, name) for name in ("started", "config", "server_state", "lifespan")):
        log.warning("the door for the gateway stays closed: this web server is not one that is known")
        return None
    return asyncio.ensure_future(_open(server, socket.socket(fileno=os.dup(int(os.environ[DESCRIPTOR])))))


async def _open(server: Any, door: socket.socket) -> None:
    try:
        await _listen(server, door)
    except Exception as error:  # of whatever kind: nobody waits for this to end
        log.error("the door for the gateway stays closed: %r", error)


async def _listen(server: Any, door: socket.socket) -> None:
    while not server.started:
        await asyncio.sleep(LOOK_EVERY)
    config = server.config
    if getattr(server, "peer_loads", None):  # vLLM's way with several API servers: the one with least to do takes it
        door.listen(vllm_hold.backlog())
        door.setblocking(False)
        server._track(server._accept(door))
        return

    def protocol() -> Any:
        return config.http_protocol_class(
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )

    # Long: a burst that found it full would cost the replica its place.
    more: dict[str, Any] = {"sock": door, "backlog": vllm_hold.backlog()}
    if sys.version_info >= (3, 13):
        more["cleanup_socket"] = False  # or at its end it would try to take the path away, and fail
    server.servers.append(await asyncio.get_running_loop().create_unix_server(protocol, **more))
