"""An engine seen from outside by the watcher: its processes, its log's telling lines, its HTTP. Only stdlib."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import select
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_hold
    from installer.runtime.vllm_systemd import descendants, say, stat
    from installer.runtime.vllm_words import Words
else:
    import vllm_hold
    from vllm_systemd import descendants, say, stat

PROBE = "/v1/completions?probe"
# What answers of the model can be asked for; the first that this model gives at all is the one.
QUESTIONS: tuple[tuple[str, dict[str, object]], ...] = (
    (PROBE, {"prompt": "Hi", "max_tokens": 1, "temperature": 0}),
    ("/v1/embeddings?probe", {"input": "Hi"}),
    ("/pooling?probe", {"input": "Hi"}),
    ("/classify?probe", {"input": "Hi"}),
)
SPARE = 8  # descriptors; with fewer left a process is short of them


class Vllm:
    """The engine seen from outside: its processes, its log's telling lines, its HTTP interface."""

    def __init__(self, words: Words, pid: int, host: str, listener: int, mark: int, key: str) -> None:
        self.words, self.pid = words, pid
        self._born = self._birth(pid)
        self._listener = socket.socket(fileno=listener)
        self._mark = mark  # the backlog that our side listens with; another one is the server's
        self._inode = str(os.fstat(listener).st_ino)
        self.port: int = self._listener.getsockname()[1]
        self.is_listening = threading.Event()
        self._host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        self._key = key
        self._stages = os.path.join(os.environ["RUNTIME_DIRECTORY"].partition(":")[0], "stages")
        self._question = 0
        self.refuses_us = False  # the guard does not know our own key any more
        self.refusal = ""  # what it said where it refused to answer anything at all
        self.model = ""

    @staticmethod
    def _birth(pid: int) -> str:
        return (stat(pid) or [""] * 20)[19]

    def is_running(self) -> bool:
        return self._born != "" and self._birth(self.pid) == self._born

    def children(self) -> set[int]:
        """Every process that descends from its main process."""
        return descendants(self.pid)

    def traffic(self) -> int:
        """Bytes that all processes have read and written: what moves while a start is silent."""
        total = 0
        for pid in {self.pid, *self.children()}:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/io") as file:
                total += sum(int(n) for n in re.findall(r"^(?:[rw]char|read_bytes): (\d+)", file.read(), re.MULTILINE))
        return total

    def log_lines(self) -> list[str]:
        with contextlib.suppress(OSError), open(self._stages, errors="replace") as file:
            return file.read().splitlines()
        return []

    def lacks_descriptors(self) -> bool:
        """Whether one of its processes has so many files open that it can hardly open another."""
        for pid in {self.pid, *self.children()}:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/limits") as file:
                limit = re.search(r"^Max open files +(\d+)", file.read(), re.MULTILINE)
                if limit and len(os.listdir(f"/proc/{pid}/fd")) > int(limit[1]) - SPARE:
                    return True
        return False

    def worked(self) -> int:
        """Ticks of processor time that the main process has used."""
        return sum(map(int, (stat(self.pid) or ["0"] * 13)[11:13]))

    def signal(self, number: signal.Signals) -> None:
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def await_listening(self) -> None:
        """Until then nobody is asked anything: a question would wait in the queue with all others."""
        while self._is_ours():
            time.sleep(0.05)
        self._listener.close()  # or a service that stops would go on listening
        self.is_listening.set()

    def turn_away(self) -> None:
        """Reset whoever connects before the engine listens itself: to callers it looks as if nobody listened yet."""
        self._listener.setblocking(False)
        while self._is_ours():
            if select.select([self._listener], [], [], 0.1)[0] and self._is_ours():
                with contextlib.suppress(OSError), self._listener.accept()[0] as caller:
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._listener.close()  # or a service that stops would go on listening
        self.is_listening.set()

    def _is_ours(self) -> bool:
        """Whether the socket is still as our side set it up; who serves on it listens anew."""
        return (vllm_hold.queue(self._listener) or (0, self._mark))[1] == self._mark

    def is_the_listener(self) -> bool:
        """Whether the socket that the launcher made still listens; as long as it does, nobody else can.

        Asked with a connection open, it tells whose that is: a socket that was closed does not come back.
        """
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(OSError), open(table) as file:
                next(file)
                # The kernel shows those that listen first, and there may be very many of the others.
                for row in itertools.takewhile(lambda row: row[3] == "0A", map(str.split, file)):
                    if row[9] == self._inode:
                        return True
        return False

    def ask(
        self, method: str, path: str, patience: float, *, body: object = None, key: bool = True
    ) -> tuple[int, bytes]:
        """Status and body; (0, b"") where no answer came."""
        headers = {"Authorization": f"Bearer {self._key}"} if key else {}
        headers |= {"Content-Type": "application/json"} if body else {}
        connection = http.client.HTTPConnection(self._host, self.port, timeout=patience)
        try:
            connection.connect()
            if key and not self.is_the_listener():
                say(f"port {self.port} is not ours any more: no key was sent there", 3)
                return 0, b""
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def is_guarded(self) -> bool | None:
        """Whether a request without a key is refused; None while there is no server."""
        status, _ = self.ask("GET", "/is-this-guarded", 10, key=False) if self.is_listening.is_set() else (0, b"")
        return status == 401 if status else None

    def answers(self, patience: float) -> bool:
        """Whether the model itself answers a smallest possible request."""
        if not self.model:
            status, body = self.ask("GET", "/v1/models", min(patience, 5))
            if status != 200:
                return False
            self.model = json.loads(body)["data"][0]["id"]
        refusals = []
        for path, question in QUESTIONS[self._question :] + QUESTIONS[: self._question]:
            status, body = self.ask("POST", path, patience, body={"model": self.model, **question})
            if status not in (400, 404, 405, 501):
                self.refuses_us = status == 401
                return status == 200
            self._question = (self._question + 1) % len(QUESTIONS)
            refusals.append(f"{status} {body[:300].decode(errors='replace')}")
        self.refusal = refusals[0]
        return False

    def is_dead(self) -> bool:
        return self.ask("GET", "/health", 2)[0] == 503

    def metrics(self, pattern: re.Pattern[str]) -> list[str]:
        status, body = self.ask("GET", "/metrics", 5)
        return pattern.findall(body.decode(errors="replace")) if status == 200 else []
