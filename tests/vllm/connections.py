"""Run by an engine's Python: vLLM's own web server, with the guard and no model, meets clients that ask for nothing.

Prints what became of each kind as JSON. Arguments: the runtime folder, a folder for key digests.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
os.environ |= {"RUNTIME_DIRECTORY": sys.argv[2], "VLLM_LOGGING_LEVEL": "WARNING"}
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 4096))  # so that a hundred clients of this host are many

import uvloop  # noqa: E402
import vllm_connections  # noqa: E402
import vllm_guard  # noqa: E402
from fastapi import FastAPI, WebSocket  # noqa: E402
from vllm.entrypoints.launchers.launcher import serve_http  # noqa: E402

vllm_connections.HEAD_WITHIN, vllm_connections.LOOK_EVERY = 1.0, 0.1
KEY = b"Authorization: Bearer sk-1\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: h\r\n"
PATIENT = 120  # seconds until a client takes a connection for open that should have been closed
app = FastAPI()


@app.get("/health")
async def health() -> None:
    pass


@app.get("/slow")
async def slow() -> str:
    await asyncio.sleep(3)
    return "slow"


@app.websocket("/socket")
async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await asyncio.sleep(3)
    await websocket.send_text("slow")


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENT)

    def ask(self, head: bytes) -> str:
        self.socket.sendall(head)
        return self.socket.recv(65536).partition(b"\r\n")[0].decode()

    def end(self, drip: bytes = b"") -> str:
        """How it ends for a client that sends these bytes, one after the other, and for ever."""
        self.socket.settimeout(0.05)
        until = time.monotonic() + PATIENT
        while time.monotonic() < until:
            try:
                if drip:
                    self.socket.sendall(drip)
                if not self.socket.recv(65536):
                    return "closed"
            except TimeoutError:
                continue
            except OSError:
                return "closed"
        return "open"


def after(head: bytes, drip: bytes = b"") -> Callable[[int], str]:
    def run(port: int) -> str:
        client = Client(port)
        client.socket.sendall(head)
        return client.end(drip)

    return run


def second_head(port: int) -> str:
    client = Client(port)
    first = client.ask(GET + b"\r\n")
    client.socket.sendall(GET)
    return f"{first.split()[1]}, {client.end()}"


def body_of_a_refused_one(port: int) -> str:
    client = Client(port)
    first = client.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
    return f"{first.split()[1]}, {client.end(b'x')}"


def slow_answer(port: int) -> str:
    return Client(port).ask(b"GET /slow HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n")


def websocket(port: int) -> str:
    client = Client(port)
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22
    )
    first = client.ask(b"GET /socket HTTP/1.1\r\nHost: h\r\n" + KEY + upgrade + b"==\r\n\r\n")
    return f"{first.split()[1]}, {client.socket.recv(100)[2:].decode()}"


def crowd(port: int) -> str:
    """Far more than are let in at once, and meanwhile one that asks."""
    held = [Client(port) for _ in range(1000)]
    for client in held:
        with contextlib.suppress(OSError):  # closed already, where it took long to get here
            client.socket.sendall(GET)
    answered = Client(port).ask(GET + b"\r\n").split()[1]
    open_ = sum(client.socket.fileno() >= 0 and not is_closed(client) for client in held)
    return f"{answered}, {'few' if open_ <= 2048 // 16 else open_} left"


def is_closed(client: Client) -> bool:
    client.socket.setblocking(False)
    try:
        return client.socket.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


KINDS: dict[str, Callable[[int], str]] = {
    "nothing": after(b""),
    "half a head": after(GET),
    "a head byte by byte": after(b"GET / HTTP/1.1\r\nX: ", b"x"),
    "half a second head": second_head,
    "the body of a refused request": body_of_a_refused_one,
    "a slow answer": slow_answer,
    "a websocket": websocket,
    "a crowd": crowd,
}


def ask_all(port: int) -> None:
    found: dict[str, Any] = {}
    try:
        for name, kind in KINDS.items():
            found[name] = kind(port)
    except Exception as error:
        found[name] = repr(error)
    print(json.dumps(found), flush=True)
    os._exit(0)


async def main() -> None:
    Path(sys.argv[2], "keys").write_text(f"default inference {hashlib.sha256(b'sk-1').hexdigest()} -\n")
    Path(sys.argv[2], "keys").chmod(0o600)
    app.add_middleware(vllm_guard.Guard)  # type: ignore[arg-type]
    app.state.engine_client = None
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    threading.Thread(target=ask_all, args=(listener.getsockname()[1],), daemon=True).start()
    await serve_http(app, sock=listener, host="127.0.0.1", port=0, log_level="warning", timeout_keep_alive=5)


uvloop.run(main())
