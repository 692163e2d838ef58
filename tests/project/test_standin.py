"""The stand-in behaves like vLLM where our product looks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from installer.families.vllm.metrics import read_requests
from installer.spec.soak import Requests
from tests.kit.standin.wheel import build_wheel

# A middleware such as the guard: refuses everything but /health.
MIDDLEWARE = """
class Closed:
    def __init__(self, app):
        self.app = app
    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] != "/health":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await self.app(scope, receive, send)
"""

Serve = Callable[..., "Server"]


class Server:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.log = ""

    def wait_started(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if "startup complete" in line:
                return
        raise AssertionError(self.log)

    def ask(self, path: str, body: object = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        return connection.getresponse()

    def engine(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        assert child.cmdline()[0] == "VLLM::EngineCore"
        return child

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=180)
        return self.process.returncode, self.log + output


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve(*flags, faults="…") starts the stand-in from its wheel."""
    wheel = build_wheel(tmp_path, name="vllm")
    (tmp_path / "closed.py").write_text(MIDDLEWARE)
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str, faults: str = "") -> Server:
        unpacked = tmp_path / "site"
        subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, unpacked], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "tiny", "--host", "127.0.0.1",
             "--port", str(port), *flags],
            env={"PYTHONPATH": f"{unpacked}:{tmp_path}", "HOME": str(tmp_path), "VLLM_STANDIN": faults},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return Server(process, port)

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # the engine, too, even when its server is gone
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_it_serves_plain_and_streamed(serve: Serve) -> None:
    server = serve("--max-model-len", "1024", "--some-flag-of-vllm", "x")
    server.wait_started()
    assert json.load(server.ask("/v1/models"))["data"][0]["max_model_len"] == 1024
    assert json.load(server.ask("/v1/chat/completions", {"max_tokens": 2}))["usage"]["completion_tokens"] == 2
    streamed = server.ask("/v1/completions", {"max_tokens": 3, "stream": True}).read()
    assert streamed.count(b"data: ") == 4
    assert b'vllm:generation_tokens_total{engine="0",model_name="tiny"} 5.0' in server.ask("/metrics").read()


def test_it_counts_its_answers_as_vllm_does(serve: Serve, tmp_path: Path) -> None:
    server = serve(faults="fail=2@now die-on-completion@later")
    server.wait_started()
    assert [server.ask("/v1/completions", {"max_tokens": 1}).status for _ in range(2)] == [200, 200]
    (tmp_path / "now").touch()
    statuses = [server.ask("/v1/completions", {"max_tokens": 1}).status for _ in range(4)]
    assert statuses == [200, 500, 200, 500]
    assert server.ask("/nowhere").status == 404
    found = read_requests(server.ask("/metrics").read().decode())
    assert found == Requests(7, 2), "of /health and /metrics vLLM counts none either"


def test_a_middleware_stands_before_every_route(serve: Serve) -> None:
    server = serve("--middleware", "closed.Closed")
    server.wait_started()
    assert server.ask("/health").status == 200
    assert [server.ask(path).status for path in ("/v1/models", "/metrics", "/version", "/nowhere")] == [401] * 4


def test_a_stop_lets_running_requests_finish(serve: Serve) -> None:
    server = serve("--shutdown-timeout", "20", faults="token-seconds=0.05")
    server.wait_started()
    response = server.ask("/v1/completions", {"max_tokens": 10, "stream": True})
    server.process.terminate()
    assert response.read().count(b"data: ") == 11
    assert server.end()[0] == 0


def test_a_dead_engine_ends_it_with_status_0(serve: Serve) -> None:
    server = serve()
    server.wait_started()
    server.engine().kill()
    status, log = server.end()
    assert (status, "EngineCore died" in log) == (0, True)


def test_a_stopped_engine_answers_health_and_nothing_else(serve: Serve) -> None:
    server = serve()
    server.wait_started()
    engine = server.engine()
    engine.suspend()
    response = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.5)
    response.request("POST", "/v1/completions", '{"max_tokens": 1}')
    with pytest.raises(TimeoutError):
        response.getresponse()
    assert server.ask("/health").status == 200
    assert b'num_requests_running{engine="0",model_name="tiny"} 1.0' in server.ask("/metrics").read()


@pytest.mark.parametrize(
    ("flags", "faults", "status", "says"),
    [
        (("--max-model-len", "8192"), "refuse-context=2048", 1, "estimated maximum model length is 2048"),
        ((), "die-at-start=0", 0, "Engine core initialization failed"),
        (("--no-such-flag",), "", 2, "unrecognized arguments"),
        ((), "die-on-completion", 0, "EngineCore died"),
    ],
)
def test_a_start_that_fails(serve: Serve, flags: tuple[str, ...], faults: str, status: int, says: str) -> None:
    server = serve(*flags, faults=faults)
    if faults == "die-on-completion":
        server.wait_started()
        server.ask("/v1/completions", {"max_tokens": 1})
    ended, log = server.end()
    assert ended == status
    assert says in log


def test_sigterm_is_not_heard_while_it_starts(serve: Serve) -> None:
    server = serve(faults="stall=load")
    assert server.process.stdout is not None
    while "Starting to load" not in server.process.stdout.readline():
        pass
    server.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.3)
    os.kill(server.process.pid, signal.SIGKILL)
    assert server.process.wait() == -signal.SIGKILL
