"""What SIGTERM means to a server whose callers wait for the next one: nobody is taken in, what was begun is finished.

vLLM's own way cuts off who is connected, and takes itself apart for seconds that nobody has any good of. What is
touched of the web server is looked for, never relied on: where a version lacks something, the stop is left to vLLM,
and a line in the journal says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from installer.runtime.vllm_connections import asks_nothing, is_between_requests
    from installer.runtime.vllm_systemd import seconds
else:
    from vllm_connections import asks_nothing, is_between_requests
    from vllm_systemd import seconds

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("vllm.guard")

SETTLE = 0.1  # seconds until everybody who was taken out of the queue shows among the connections
IDLE_FOR = 0.5  # seconds in which a client may still ask on a connection that it kept
HEAD_WITHIN = 2.0  # seconds for the rest of a head, or all of the first one: time for a lost packet to come again
LOOK_EVERY = 0.02
HEALTH_ROUTES = ("/health", "/ping")


class Drain:
    """The end of one API server; where there are several, each ends by itself."""

    def __init__(self, server: Any, engine: Any, begun: Callable[[], None]) -> None:
        self.server, self.engine, self.begun = server, engine, begun
        self.connections: set[Any] = server.server_state.connections
        self.task: asyncio.Future[None] | None = None

    @classmethod
    def armed(cls, scope: Scope, begun: Callable[[], None]) -> Drain | None:
        """Called at the start of the application: vLLM has a handler of SIGTERM in place then, and does not listen."""
        state = getattr(scope.get("app"), "state", None)
        server = getattr(state, "server", None)
        if not isinstance(getattr(getattr(server, "server_state", None), "connections", None), set):
            log.warning("a stop is left to vLLM: this web server is not one that is known")
            return None
        drain = cls(server, getattr(state, "engine_client", None), begun)
        try:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain.begin)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            log.warning("a stop is left to vLLM: %s", error)
        return drain

    def begin(self) -> None:
        if self.task is None:
            self.task = asyncio.ensure_future(self.run())

    async def run(self) -> None:
        """The process group goes with this process, so there is nothing to take apart."""
        try:
            self.begun()
            self.stop_accepting()
            await self.finish(seconds("DRAIN"))
        except Exception as error:  # of whatever kind: a stop must not fail
            log.error("the stop is left to vLLM: %r", error)
            os.kill(os.getpid(), signal.SIGINT)  # which vLLM and its web server take for the same
        else:
            os._exit(0)

    def stop_accepting(self) -> None:
        """Somebody else holds the listening socket as well: who connects from now on waits in its queue."""
        servers, tasks = list(self.server.servers), list(getattr(self.server, "_accept_tasks", ()))
        if not servers and not tasks:
            raise RuntimeError("nothing that listens was found")
        for server in servers:
            server.close()
        for task in tasks:
            if getattr(task.get_coro(), "__name__", "") != "_connect":  # that one has taken somebody out of the queue
                task.cancel()

    async def finish(self, patience: float) -> None:
        began, waited = time.monotonic(), 0.0
        log.info("draining: %d connections, %d with an answer under way", len(self.connections), self.count_owed())
        while [each for each in list(self.connections) if self.keeps(each, waited)] or waited < SETTLE:
            if waited >= patience:
                break
            await asyncio.sleep(LOOK_EVERY)
            waited = time.monotonic() - began
        if cut := self.count_owed():
            log.warning("drained for %.1f s, which is all the time there was: %d answers are cut off", waited, cut)
        else:
            log.info("drained in %.1f s", waited)
        for each in [each for each in self.connections if not hasattr(each, "cycle")]:
            each.shutdown()
        await asyncio.sleep(LOOK_EVERY)

    def count_owed(self) -> int:
        return sum(self.is_owed(each) for each in self.connections)

    def is_owed(self, connection: Any) -> bool:
        """An answer is under way, or in our own buffer, which would go with this process."""
        transport = getattr(connection, "transport", None)
        if transport is not None and transport.get_write_buffer_size():
            return True
        if transport is not None and transport.is_closing():
            return False
        return not asks_nothing(connection) if hasattr(connection, "cycle") else self.is_engine_busy()

    def is_engine_busy(self) -> bool:
        """On a websocket it cannot be told who waits for whom."""
        count = getattr(self.engine, "get_num_unfinished_requests", None)
        return count is not None and count() > 0

    def keeps(self, connection: Any, waited: float) -> bool:
        """Whether it is waited for. What asks for nothing is closed, with a reason where it is a websocket."""
        transport, is_plain = connection.transport, hasattr(connection, "cycle")
        if transport.is_closing():
            return self.is_owed(connection)
        if is_plain and not asks_nothing(connection):
            connection.shutdown()  # after this answer; with `Connection: close` where its head is not out yet
        elif self.is_owed(connection):
            return True
        elif waited >= (HEAD_WITHIN if is_plain and not is_between_requests(connection) else IDLE_FOR):
            transport.close() if is_plain else connection.shutdown()
        return True


def leaving(app: App) -> App:
    """The application for those who still ask: each answer is the last on its connection, and says so."""

    async def last(scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if scope["type"] != "http" or not scope.get("http_version", "1.1").startswith("1"):
            await app(scope, receive, send)
        elif scope["path"].removeprefix(scope.get("root_path") or "") in HEALTH_ROUTES:
            await refuse(say)
        else:
            await app(scope, receive, say)

    return last


async def refuse(send: Send) -> None:
    error = {"message": "This server is stopping.", "type": "service_unavailable", "param": None, "code": "stopping"}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"1"),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
