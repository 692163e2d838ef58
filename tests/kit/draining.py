"""A web server with the guard and without a model that is asked to end, and its clients: uvicorn alone, or vLLM's own.

Run as a script by the Python that has the web server. Arguments: which server, the runtime folder, a folder for keys,
seconds that replace the drain's own, and two listening sockets. Says what it begins; answers once its input says so.
With a socket alone it imports vLLM's web server, which takes ten seconds, and then becomes one server after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

KEY = "sk-1"
LARGE = 64 << 20  # bytes of an answer that no buffer of the kernel holds
PATIENT = 300  # seconds until something that should have happened will not


class Client:
    def __init__(self, listener: socket.socket) -> None:
        self.socket = socket.socket(listener.family)
        self.socket.settimeout(PATIENT)
        self.socket.connect(listener.getsockname())
        self.file = self.socket.makefile("rb")

    def ask(self, path: str, key: str = KEY) -> Client:
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        return self

    def head(self) -> tuple[int, dict[str, str]]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = self.head()
        if "content-length" in headers:
            return status, headers, self.file.read(int(headers["content-length"]))
        return status, headers, b"".join(iter(self.chunk, b""))

    def chunk(self) -> bytes:
        length = int(self.file.readline(), 16)
        return self.file.read(length + 2)[:-2]

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def is_closed(self) -> bool:
        """Waits for whatever comes."""
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True


class Imported:
    """A process of vLLM's Python that has its web server imported: a server that is started is a fork of it."""

    def __init__(self, python: Path, home: Path) -> None:
        self.control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self.process = subprocess.Popen(
                [python, "-B", __file__, str(its.fileno())], pass_fds=[its.fileno()], stdin=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
            )  # fmt: skip

    def __enter__(self) -> Imported:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self.process.wait()

    def start(self, words: list[str], listeners: list[int], environment: Mapping[str, str]) -> Fork:
        (its_input, to), (said, its_output) = os.pipe(), os.pipe()
        message = json.dumps({"words": words, "environment": environment}).encode()
        socket.send_fds(self.control, [message], [*listeners, its_input, its_output])
        os.close(its_input)
        os.close(its_output)
        return Fork(self.control, to, said)


class Fork:
    """What is used here of subprocess.Popen."""

    def __init__(self, control: socket.socket, to: int, said: int) -> None:
        self.control, self.pid = control, int(control.recv(100))
        self.returncode: int | None = None
        self.stdin, self.stdout = os.fdopen(to, "w"), os.fdopen(said)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Its parent waits for nobody before it is asked to, so that the pid is its own until then."""
        if self.returncode is None:
            self.control.send(b"wait")
            self.returncode = int(self.control.recv(100))
        return self.returncode

    def communicate(self) -> None:
        self.stdin.close()
        self.stdout.close()
        self.wait()


class Draining:
    """The server as its clients and its parent see it. The parent listens, too: it holds the queue.

    Clients come by its port, or by its door: they meet the same.
    """

    def __init__(
        self, python: Imported | str, server: str, runtime: Path, keys: Path, drain: str, *, by_door: bool = False,
        **seconds: float,
    ) -> None:  # fmt: skip
        self.port, self.door = socket.create_server(("127.0.0.1", 0), backlog=64), socket.socket(socket.AF_UNIX)
        self.door.bind("")  # at a name that the kernel makes up, and no file
        self.door.listen(64)
        self.listener = self.door if by_door else self.port
        start = python.start if isinstance(python, Imported) else partial(start_with, python)
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(keys), "DRAIN": drain, "RUNTIME_DIRECTORY": str(keys)}
        words = [server, str(runtime), str(keys), json.dumps(seconds)]
        self.process: Fork | subprocess.Popen[str] = start(words, [self.port.fileno(), self.door.fileno()], environment)
        self.timer = threading.Timer(PATIENT, self.process.kill)
        self.said: list[str] = []
        self.last_word = "close" if server.startswith("vllm") else None  # h11 closes after the answer without a word

    def __enter__(self) -> Draining:
        self.timer.start()
        self.until("serving")
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.process.kill()
        self.process.communicate()
        self.port.close()
        self.door.close()

    def client(self) -> Client:
        return Client(self.listener)

    def kept(self) -> Client:
        """A client that has had an answer, on a connection that stays open."""
        client = self.client().ask("/plain")
        assert client.answer()[0] == 200
        return client

    def begun(self, path: str) -> Client:
        client = self.client().ask(path)
        self.until(f"begun {path}")
        return client

    def until(self, words: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if words in line:
                return
        raise AssertionError(f"it ended before it said {words!r}: {''.join(self.said)}")

    def terminate(self) -> None:
        self.process.terminate()
        self.until("draining")

    def release(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdout
        self.said += self.process.stdout.readlines()
        return self.process.wait()


def start_with(
    python: str, words: list[str], listeners: list[int], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-B", __file__, *words, *map(str, listeners)], pass_fds=listeners, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


class Application:
    """Answers that begin and then wait to be released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.state = SimpleNamespace(engine_client=None)
        self.routes: list[object] = []  # which vLLM lists

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            threading.Thread(target=self.read, args=(asyncio.get_running_loop(),), daemon=True).start()
            await send({"type": "lifespan.startup.complete"})
            asyncio.get_running_loop().call_later(0, print, "serving")
            await receive()
        elif scope["type"] == "websocket":
            await self.talk(receive, send)
        elif scope["path"] == "/who":
            said = json.dumps([scope["client"][0], scope["scheme"]]).encode()
            length = [(b"content-length", b"%d" % len(said))]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": said})
        else:
            await self.answer(scope["path"], send)

    def read(self, loop: asyncio.AbstractEventLoop) -> None:
        sys.stdin.readline()
        loop.call_soon_threadsafe(self.released.set)

    async def answer(self, path: str, send: Any) -> None:
        async def say(body: bytes, more: bool) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        print("begun", path)
        if path == "/slow":
            await self.released.wait()
        length = {"/stream": [], "/large": [(b"content-length", b"%d" % LARGE)]}.get(path, [(b"content-length", b"2")])
        await send({"type": "http.response.start", "status": 200, "headers": length})
        if path == "/stream":
            await say(b"one", True)
            await self.released.wait()
            await say(b"two", True)
        await say({"/stream": b"", "/large": b"x" * LARGE}.get(path, b"ok"), False)

    async def talk(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await self.released.wait()
        await send({"type": "websocket.send", "text": "said"})
        await receive()


def outermost(application: Application, guard: Any) -> Any:
    """As Starlette does, whose middleware finds the application in the scope."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = application
        await guard(scope, receive, send)

    return called


async def serve(which: str, application: Application, app: Any, listener: socket.socket) -> None:
    if which.startswith("uvicorn"):
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, http="h11", log_level="warning"))
        shown = {"uvicorn": server, "uvicorn, without servers": SimpleNamespace(server_state=server.server_state)}
        application.state.server = shown.get(which)
        await server.serve(sockets=[listener])
        return
    from vllm.entrypoints.launchers.launcher import serve_http  # type: ignore[import-not-found]

    app.state, app.routes = application.state, application.routes
    peers = ([0, 0], 0) if which == "vllm, several" else None
    await serve_http(app, sock=listener, peer_loads=peers, host="127.0.0.1", port=0, log_level="warning")


def fork_servers(control: socket.socket) -> None:
    importlib.import_module("uvloop")
    importlib.import_module("vllm.entrypoints.launchers.launcher")
    while True:
        message, fds, _, _ = socket.recv_fds(control, 65536, 4)
        if not message:
            return
        if pid := os.fork():
            for fd in fds:
                os.close(fd)
            control.send(str(pid).encode())
            if control.recv(100):
                control.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        else:
            control.close()
            become(json.loads(message), *fds)


def become(task: dict[str, Any], port: int, door: int, its_input: int, its_output: int) -> NoReturn:
    status = 1
    try:
        for old, new in ((its_input, 0), (its_output, 1), (its_output, 2)):
            os.dup2(old, new)
        os.environ.update(task["environment"])
        which, runtime, keys, seconds = task["words"]
        main(which, runtime, keys, seconds, str(port), str(door))
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def main(which: str, runtime: str, keys: str, seconds: str, port: str, door: str) -> None:
    sys.path.insert(0, runtime)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import vllm_door  # type: ignore[import-not-found]
    import vllm_drain  # type: ignore[import-not-found]
    import vllm_guard  # type: ignore[import-not-found]

    os.environ[vllm_door.DESCRIPTOR] = door
    vars(vllm_drain).update(json.loads(seconds))
    logging.getLogger("vllm.guard").setLevel(logging.INFO)
    logging.getLogger("vllm.guard").addHandler(logging.StreamHandler(sys.stdout))
    Path(keys, "keys").write_text(f"default inference {hashlib.sha256(KEY.encode()).hexdigest()} -\n")
    Path(keys, "keys").chmod(0o600)

    async def run() -> None:
        application = Application()
        app = outermost(application, vllm_guard.Guard(application))
        await serve(which, application, app, socket.socket(fileno=int(port)))

    loop: Any = importlib.import_module("uvloop") if which.startswith("vllm") else asyncio
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        loop.run(run())


if __name__ == "__main__":
    if len(sys.argv) == 2:
        fork_servers(socket.socket(fileno=int(sys.argv[1])))
    else:
        main(*sys.argv[1:])
