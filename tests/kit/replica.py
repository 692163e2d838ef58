"""A stand-in for a replica behind the gateway: answers as an engine does, and dies, hangs or refuses when told to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Awaitable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kit.boot.surroundings import held_port

POISON = b"POISON"  # in a request: the engine dies of it
WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455
HUGE = b"HUGE"  # asks for more than any buffer holds


def door_of(port: int) -> Path:
    """Where the gateway asks the replica of that port; a socket's path has at most 107 letters."""
    return Path(tempfile.gettempdir()) / f"vllm-install-{port}.sock"


class Replica:
    """On a port of its own and by a door; use as a context manager. What it is to do is set from outside, later on."""

    def __init__(self, name: str = "r1") -> None:
        self.name = name
        self.delay = 0.0  # seconds before an answer
        self.stands_still = False  # and answers nobody until it does not any more
        self.gap = 0.0  # seconds between two pieces of a stream
        self.status = 200
        self.is_healthy = True
        self.health = 200  # what it says while it is
        self.fails_checks = 0  # so many more, and no longer
        self.holds = 0.0  # seconds after which who waits for its engine is told to come again
        self.asked: list[bytes] = []  # heads and bodies of all requests but checks
        self.busy = self.most_busy = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.AbstractServer] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._place, self.port = held_port()

    def __enter__(self) -> Replica:
        self._thread.start()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        door_of(self.port).unlink(missing_ok=True)
        self._place.close()

    def start(self) -> None:
        self._do(self._start())

    def die(self) -> None:
        """As by SIGKILL: nobody listens, and who was there is cut off."""
        self._do(self._die())

    def start_anew(self, seconds: float) -> None:
        """As by SIGKILL, where the listening socket is kept: who was there is cut off, who comes is held so long."""
        self.holds = seconds
        self._do(self._cut())

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _start(self) -> None:
        door = door_of(self.port)
        door.unlink(missing_ok=True)
        self._servers = [
            await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=8 << 20, backlog=2048),
            await asyncio.start_unix_server(self._serve, door, limit=8 << 20, backlog=2048),
        ]

    async def _die(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []
        await self._cut()

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._servers:  # it came in the moment of the death
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await read_body(head, reader)
                if self.holds:
                    await asyncio.sleep(self.holds)
                    await self._say(writer, 503, b'{"error": {"code": "starting"}}')
                    return
                if head.startswith(b"GET /health "):
                    fails = not self.is_healthy or self.fails_checks > 0
                    self.fails_checks = max(0, self.fails_checks - 1)
                    await self._say(writer, 503 if fails else self.health, b"")
                    continue
                self.asked.append(head + body)
                if key := re.search(rb"\r\nsec-websocket-key: (\S+)", head, re.IGNORECASE):
                    await self._echo(key[1], reader, writer)
                    return
                await self._counted(self._answer(writer, body))
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _counted(self, answer: Awaitable[None]) -> None:
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        try:
            await answer
        finally:
            self.busy -= 1

    async def _answer(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        if POISON in body:
            await self._die()
            return
        await asyncio.sleep(self.delay)
        while self.stands_still:
            await asyncio.sleep(0.01)
        if HUGE in body:
            await self._say(writer, 200, b"x" * (64 << 20))
        elif self.status != 200:
            await self._say(writer, self.status, b'{"error": {"message": "as told"}}')
        elif b'"stream": true' in body:
            await self._stream(writer)
        else:
            text = {"choices": [{"message": {"content": "x"}}], "replica": self.name, "length": len(body)}
            await self._say(writer, 200, json.dumps(text).encode())

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in (*(b'data: {"choices": []}\n\n' for _ in range(5)), b"data: [DONE]\n\n"):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(self.gap)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _echo(self, key: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From here on it is no HTTP any more."""
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET, usedforsecurity=False).digest())
        writer.write(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n")
        writer.write(b"sec-websocket-accept: %s\r\n\r\n" % accept)
        while said := await reader.read(4096):
            writer.write(said)
            await writer.drain()

    async def _say(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nx-replica: {self.name}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()


async def read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


@contextlib.contextmanager
def replicas_on(count: int) -> Iterator[list[Replica]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Replica(f"r{number}")) for number in range(1, count + 1)]
