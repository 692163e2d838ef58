"""A small HTTP/1.1 server for one ASGI application."""

import asyncio
import contextlib
import os
import socket
import time
import types
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


KEPT_FOR = 2.0  # seconds at a drain in which a client may still ask on a connection that it kept: once more


class Server:
    """Serves until told to drain; `busy` counts the requests under way, `open` the connections."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.busy = self.open = 0
        self.is_draining = False
        self._servers: list[asyncio.AbstractServer] = []

    async def listen(self, host: str, port: int) -> None:
        """And by the door for a gateway, where there is one."""
        self._servers.append(await asyncio.start_server(self._connection, host, port))
        if "LAUNCHER_DOOR" in os.environ:
            door = socket.socket(fileno=int(os.environ["LAUNCHER_DOOR"]))
            self._servers.append(await asyncio.start_unix_server(self._connection, sock=door))

    async def drain(self, patience: float) -> None:
        """Take no new connection; wait for the running requests, but not longer than `patience`."""
        self.is_draining = True
        for listener in (each for server in self._servers for each in server.sockets):
            asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.sleep(0.1)  # who was let in a moment ago has not asked yet; asyncio would drop him at a close
        for server in self._servers:
            server.close()
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._idle(), patience)

    async def _idle(self) -> None:
        end = time.monotonic() + KEPT_FOR
        while self.busy or (self.open and time.monotonic() < end):
            await asyncio.sleep(0.02)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is to be closed."""
        line = await reader.readline()
        if not line:
            return False
        method, target, _ = line.decode("latin-1").split()
        headers = []
        while line := (await reader.readline()).strip():
            name, _, text = line.partition(b":")
            headers.append((name.strip().lower(), text.strip()))
        found = dict(headers)
        body = await reader.readexactly(int(found.get(b"content-length", b"0")))
        path, _, query = target.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
            "headers": headers, "client": writer.get_extra_info("peername"),
            "server": writer.get_extra_info("sockname"),
        }  # fmt: skip
        send, is_last = _sender(writer), found.get(b"connection", b"").lower() == b"close"

        async def say(message: dict[str, Any]) -> None:
            nonlocal is_last
            if self.is_draining and message["type"] == "http.response.start":
                is_last = True
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        self.busy += 1
        try:
            await self.application(scope, _receiver(body), say)
        finally:
            self.busy -= 1
        return not is_last


def _receiver(body: bytes) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _sender(writer: asyncio.StreamWriter) -> Send:
    """Answers of unknown length go out in chunks, as they come."""
    chunked = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal chunked
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            chunked = not any(name.lower() == b"content-length" for name, _ in headers)
            headers += [(b"transfer-encoding", b"chunked")] if chunked else []
            writer.write(f"HTTP/1.1 {message['status']} -\r\n".encode())
            writer.write(b"".join(name + b": " + text + b"\r\n" for name, text in headers) + b"\r\n")
            return
        body = message.get("body", b"")
        if body:
            writer.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
        if chunked and not message.get("more_body"):
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    return send


async def start_up(application: Application, engine_client: object) -> None:
    """Tell the application that serving begins, through every middleware."""
    app = types.SimpleNamespace(state=types.SimpleNamespace(engine_client=engine_client))
    began = asyncio.Event()
    messages = [{"type": "lifespan.startup"}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "lifespan.startup.complete":
            began.set()

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "app": app}
    task = asyncio.ensure_future(application(scope, receive, send))
    await began.wait()
    task.cancel()
