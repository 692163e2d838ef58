"""Bounds on connections that ask for nothing: without them anybody who can connect could use up vLLM's descriptors.

The web server (uvicorn) gives an idle connection five seconds after an answer, and one that never ends the head of its
first request all the time in the world. What is touched of it is looked for, never relied on: where a version lacks
something, its connections are left alone, and a test says so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import time
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

log = logging.getLogger("vllm.guard")

HEAD_WITHIN = 20.0  # seconds for the head of a request; of a huge one over a slow line too
LOOK_EVERY = 1.0
TELL_EVERY = 60.0
SEARCHED = 64  # connections of an address that are looked at for one to close
BUSY = SimpleNamespace(response_complete=False)  # where it cannot be told
THIS_HOST = ("127.0.0.1", 0)
AT_MOST = 65536  # descriptors of a process that are reckoned with, were there no limit


class Connection:
    """One connection, as far as it is known here: since when it has been sending the head of which request."""

    __slots__ = ("address", "cycle", "protocol", "since", "transport")

    def __init__(self, protocol: Any, transport: Any) -> None:
        self.protocol, self.transport = protocol, transport
        self.address = group(transport.get_extra_info("peername"))
        self.cycle: Any = None
        self.since = time.monotonic()

    def is_over(self) -> bool:
        """Closed, or taken over by the protocol of a websocket, whose request is under way."""
        return bool(self.transport.is_closing()) or self.transport.get_protocol() is not self.protocol

    def is_too_slow(self, now: float) -> bool:
        cycle = getattr(self.protocol, "cycle", BUSY)
        if not asks_nothing(self.protocol) or is_between_requests(self.protocol):
            self.since = now
        elif self.cycle is not cycle:
            self.cycle, self.since = cycle, now
        return now - self.since > HEAD_WITHIN


def asks_nothing(protocol: Any) -> bool:
    """Between two requests, or in the head of one."""
    cycle = getattr(protocol, "cycle", BUSY)
    return cycle is None or bool(cycle.response_complete)


def is_between_requests(protocol: Any) -> bool:
    """Without the web server's own timer for idle connections it is in the head of a request."""
    return getattr(protocol, "timeout_keep_alive_task", None) is not None


class Connections:
    """All connections of one web server: together at most a quarter of the descriptors, of one address a sixteenth.

    Beyond, whoever has asked for nothing for longest makes room. Requests under way are not counted against anybody,
    because they have shown a key; only beyond half of the descriptors nobody is let in any more.
    """

    def __init__(self) -> None:
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], AT_MOST)
        self.full, self.most, self.each = limit // 2, limit // 4, limit // 16
        self.all: dict[Any, Connection] = {}
        self.by_address: dict[str, dict[Any, Connection]] = {}
        self._closed: dict[str, int] = {}
        self._tell_at = 0.0

    @classmethod
    def bound(cls, scope: MutableMapping[str, Any]) -> None:
        """Called at the start of the application, which is before the web server listens."""
        server = getattr(getattr(scope.get("app"), "state", None), "server", None)
        config: Any = getattr(server, "config", None)
        protocol = getattr(config, "http_protocol_class", None)
        if not isinstance(protocol, type):
            log.warning("connections are not bounded: this web server is not one that is known")
            return
        connections = cls()
        config.http_protocol_class = connections.counted(protocol)
        asyncio.get_running_loop().call_later(LOOK_EVERY, connections.look)

    def counted(self, protocol: Any) -> type:
        """Only the begin and the end of a connection pass through here; a request costs nothing more."""
        made, lost = self._made, self._lost

        class Counted(protocol):  # type: ignore[misc]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if getattr(self, "client", THIS_HOST) is None:
                    self.client = THIS_HOST  # by the door; whom the gateway names is believed, as by the port
                made(self, transport)

            def connection_lost(self, error: Exception | None) -> None:
                lost(self)
                super().connection_lost(error)

        return Counted

    def _made(self, protocol: Any, transport: Any) -> None:
        new = Connection(protocol, transport)
        of_address = self.by_address.setdefault(new.address, {})
        self.all[protocol] = of_address[protocol] = new
        if len(of_address) > self.each:
            self._make_room(of_address)
        elif len(self.all) > self.most and not self._make_room(self.all) and len(self.all) > self.full:
            self._close(new)

    def _lost(self, protocol: Any) -> None:
        if known := self.all.pop(protocol, None):
            of_address = self.by_address[known.address]
            del of_address[protocol]
            if not of_address:
                del self.by_address[known.address]

    def _make_room(self, among: dict[Any, Connection]) -> bool:
        """Close the oldest that asks for nothing; those that were busy are looked at last the next time."""
        for _ in range(min(SEARCHED, len(among))):
            protocol = next(iter(among))
            if among[protocol].is_over():
                self._lost(protocol)
                return True
            if asks_nothing(protocol):
                self._close(among[protocol])
                return True
            among[protocol] = among.pop(protocol)
        return False

    def _close(self, connection: Connection) -> None:
        self._lost(connection.protocol)
        connection.transport.abort()
        self._closed[connection.address] = self._closed.get(connection.address, 0) + 1

    def look(self) -> None:
        now = time.monotonic()
        for connection in list(self.all.values()):
            if connection.is_over():
                self._lost(connection.protocol)
            elif connection.is_too_slow(now):
                self._close(connection)
        if self._closed and now >= self._tell_at:
            self._tell(now)
        asyncio.get_running_loop().call_later(LOOK_EVERY, self.look)

    def _tell(self, now: float) -> None:
        worst, count = max(self._closed.items(), key=lambda item: item[1])
        total, addresses = sum(self._closed.values()), len(self._closed)
        log.warning(
            "closed %d connections of %d addresses that asked for nothing; %d of them from %s; %d are open",
            total, addresses, count, worst, len(self.all),
        )  # fmt: skip
        self._closed, self._tell_at = {}, now + TELL_EVERY


def group(peer: object) -> str:
    """Whom a connection belongs to: this host, an IPv4 address, or an IPv6 network, in which one host has many."""
    if not peer or not isinstance(peer, tuple):  # by a path
        return "this host"
    text = str(peer[0])
    try:
        address: Any = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "unknown"
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return "this host"
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
