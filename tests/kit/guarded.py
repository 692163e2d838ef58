"""The guard on a real web server, around an application that tells whatever reaches it: a replica as far as keys go."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from installer.base.assets import RUNTIME
from tests.kit.boot.surroundings import free_port
from tests.kit.replica import door_of

KEY = "sk-inference-0123456789"
OPEN = ("/health", "/ping")
APPLICATION = f"""
import json, os, socket, sys
sys.path.insert(0, {str(RUNTIME)!r})
import uvicorn, vllm_guard
reached = []
async def application(scope, receive, send):
    path = scope["path"]
    body = json.dumps(reached).encode() if path == "/v1/reached" else b"through"
    if path != "/v1/reached":
        reached.append([scope["method"], path])
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}})
    await send({{"type": "http.response.body", "body": body}})
port, door = socket.create_server(("127.0.0.1", int(sys.argv[1]))), socket.socket(socket.AF_UNIX)
door.bind(sys.argv[2])
config = uvicorn.Config(vllm_guard.Guard(application), lifespan="off", interface="asgi3")
uvicorn.Server(config).run([port, door])
"""


class Guarded:
    def __init__(self, port: int) -> None:
        self.port = port

    def reached(self) -> str:
        """What came through so far, as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        connection.request("GET", "/v1/reached", headers={"Authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()


@contextlib.contextmanager
def guarded() -> Iterator[Guarded]:
    with tempfile.TemporaryDirectory() as folder:
        home, port = Path(folder), free_port()
        door = door_of(port)
        (home / "keys").write_text(f"default inference {hashlib.sha256(KEY.encode()).hexdigest()} -\n")
        process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, str(port), str(door)],
            env={**os.environ, "RUNTIME_DIRECTORY": folder, "HEAR_OUT": "0.5"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            made = Guarded(port)
            await_answer(made)
            yield made
        finally:
            process.kill()
            process.wait()
            door.unlink(missing_ok=True)


def await_answer(made: Guarded) -> None:
    end = time.monotonic() + 180
    while True:
        with contextlib.suppress(OSError):
            made.reached()
            return
        assert time.monotonic() < end
        time.sleep(0.05)
