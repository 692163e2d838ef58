"""The real vLLM's web server is asked to end: were something missing that the drain rests on, this would fail."""

from __future__ import annotations

import ast
import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from tests.kit.boot.machine import STORE
from tests.kit.drain_scenarios import LONG, SCENARIOS, Start, leaves_who_comes_now_in_the_queue
from tests.kit.draining import Draining, Imported

UPGRADE = (
    "GET /socket HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
)
RESTARTS = 1012  # the code of a websocket's end


@pytest.fixture(scope="module")
def imported(cpu_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    with Imported(STORE / "engines" / cpu_engine / "bin/python", tmp_path_factory.mktemp("home")) as imported:
        yield imported


@pytest.fixture
def start(request: pytest.FixtureRequest, imported: Imported, tmp_path: Path) -> Start:
    which, by_door = getattr(request, "param", ("vllm", False))
    return lambda drain, **seconds: Draining(imported, which, RUNTIME, tmp_path, drain, by_door=by_door, **seconds)


@pytest.mark.parametrize("start", [("vllm", False), ("vllm", True)], ids=["port", "door"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_a_server_that_is_asked_to_end(scenario: Callable[[Start], None], start: Start) -> None:
    scenario(start)


@pytest.mark.parametrize(
    "start", [("vllm, several", False), ("vllm, several", True)], ids=["port", "door"], indirect=True
)
def test_one_of_several_takes_nobody_out_of_the_queue_any_more(start: Start) -> None:
    """They accept in a way of their own."""
    leaves_who_comes_now_in_the_queue(start)


def test_a_websocket_is_told_that_the_server_restarts(start: Start) -> None:
    with start(LONG, IDLE_FOR=0.1, HEAD_WITHIN=0.1) as server:
        client = server.client()
        client.socket.sendall(UPGRADE.encode())
        assert client.head()[0] == 101
        server.terminate()
        frame = client.file.read(4)
        assert (frame[0] & 15, int.from_bytes(frame[2:4], "big")) == (8, RESTARTS)
        assert server.end() == 0


def test_whether_the_engine_is_dead_can_be_asked(cpu_engine: str) -> None:
    (source,) = (STORE / "engines" / cpu_engine).glob("lib/python3*/site-packages/vllm/v1/engine/async_llm.py")
    tree = ast.parse(source.read_text())
    client = next(each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "AsyncLLM")
    errored = next(each for each in client.body if isinstance(each, ast.FunctionDef) and each.name == "errored")
    assert [ast.unparse(each) for each in errored.decorator_list] == ["property"]
