"""The load that other tests judge a service by: what it asks, what it counts as failed, and what its figures are."""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kit.load import KEPT, NEW, OK, Plan, Result, Seen, load

WHOLE = b'{"choices": [{"text": "x"}]}'
EVENT = b'data: {"choices": [{"text": "x"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def plain(body: bytes = WHOLE, status: int = 200, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def streamed(*events: bytes) -> bytes:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


def good(request: dict[str, object]) -> bytes:
    return streamed(EVENT, DONE) if request["stream"] else plain()


class Server(socketserver.ThreadingTCPServer):
    """Answers each request with what `answer` makes of it; None resets the connection, an empty answer closes it."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[dict[str, object]], bytes | None] = good
        self.requests: list[tuple[dict[str, str], dict[str, object]]] = []
        self.connections = 0
        self.arrived = threading.Semaphore(0)

    def shutdown_request(self, request: Any) -> None:
        """At once: an orderly end of the one direction would come before any reset."""
        self.close_request(request)

    @property
    def plan(self) -> Plan:
        return Plan(self.server_address[1], "sk-mine", rate=50, keep=0, pause=0.01, patience=20, model="any")


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.connections += 1
        while self.rfile.readline():
            headers = {}
            while line := self.rfile.readline().decode().strip():
                headers[line.partition(":")[0].lower()] = line.partition(":")[2].strip()
            body = json.loads(self.rfile.read(int(headers["content-length"])))
            self.server.requests.append((headers, body))
            self.server.arrived.release()
            answer = self.server.answer(body)
            if answer is None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if not answer:
                return
            self.wfile.write(answer)
            if headers["connection"] == "close":
                return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def result(plan: Plan, count: int = 6) -> Result:
    with load(plan) as running:
        running.wait_for(count)
    return running.result


def test_who_answers_all_fails_none(server: Server) -> None:
    seen = result(server.plan)
    assert (seen.failed, seen.failures) == (0, {})
    assert seen.asked == len(server.requests) == server.connections
    assert {one.kind for one in seen.seen} == {NEW}
    assert sum(body["stream"] for _, body in server.requests) == (seen.asked + 1) // 2, "they take turns"
    for headers, body in server.requests:
        assert (headers["authorization"], headers["connection"]) == ("Bearer sk-mine", "close")
        assert (body["model"], body["max_tokens"]) == ("any", 16)


def test_a_client_that_keeps_its_connection_asks_again_and_again(server: Server) -> None:
    plan = Plan(server.plan.port, "sk-mine", rate=0.01, keep=2, pause=0.01)
    seen = result(plan, 20)
    assert seen.failed == 0
    kept = [one for one in seen.seen if one.kind == KEPT]
    assert len(kept) >= 15
    assert {one.got for one in kept} == {len(plain()), len(streamed(EVENT, DONE))}
    assert len({one.port for one in kept}) == 2
    assert server.connections == 2 + len(seen.seen) - len(kept)


def test_a_connection_that_the_server_closed_in_order_is_opened_anew(server: Server) -> None:
    server.answer = lambda request: plain(more="Connection: close\r\n") if not request["stream"] else good(request)
    seen = result(Plan(server.plan.port, "sk-mine", rate=1, keep=2, pause=0.01), 20)
    assert seen.failed == 0
    assert server.connections > 5


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (plain(status=500), "500"),
        (plain(status=503), "503"),
        (plain(b"{}"), "cut"),
        (plain(b'{"error": "no"}'), "error"),
        (streamed(EVENT), "cut"),
        (streamed(EVENT, b'data: {"error": {"message": "it died"}}\n\n', DONE), "error"),
        (streamed(EVENT, DONE)[:-20], "cut"),
        (b"", "closed"),
        (None, "reset"),
        (b"nonsense\r\n\r\n", "garbled"),
    ],
)  # fmt: skip
def test_what_is_no_whole_answer_has_failed(server: Server, answer: bytes | None, what: str) -> None:
    server.answer = lambda request: answer
    seen = result(server.plan)
    assert (seen.failed, seen.failures) == (seen.asked, {f"new: {what}": seen.asked})
    assert {one.got for one in seen.seen} == {len(answer or b"")}
    assert {one.is_cut_off for one in seen.seen} == {bool(answer) and not what.isdigit()}


def test_a_kept_connection_that_breaks_is_told_apart(server: Server) -> None:
    answers = iter([good, good])
    server.answer = lambda request: next(answers, lambda _: None)(request)
    seen = result(Plan(server.plan.port, "sk-mine", rate=0.01, keep=1, pause=0.01), 6)
    assert "kept: reset on a kept connection" in seen.failures


def test_nobody_there_is_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    seen = result(Plan(port, "sk-mine", rate=50, keep=0))
    assert seen.failures == {"new: refused": seen.asked}


def test_who_is_patient_no_longer_than_it_was_told_has_failed(server: Server) -> None:
    go_on = threading.Event()
    server.answer = lambda request: go_on.wait() and good(request)
    try:
        seen = result(Plan(server.plan.port, "sk-mine", rate=50, keep=0, patience=0.1))
    finally:
        go_on.set()
    assert seen.failures == {"new: timeout": seen.asked}


def test_those_who_wait_when_it_ends_are_waited_for_and_no_answer_holds_up_the_next_question(server: Server) -> None:
    go_on = threading.Event()
    server.answer = lambda request: go_on.wait() and good(request)
    with load(server.plan) as running:
        for _ in range(10):
            assert server.arrived.acquire(timeout=60)
        assert running.result.asked == 0
        go_on.set()
    assert running.result.failed == 0
    assert running.result.asked == len(server.requests) >= 10


def test_its_figures() -> None:
    seen = [Seen(NEW, float(n), 0.5, OK) for n in range(10)]
    seen += [Seen(NEW, 9.0, 8.5, OK), Seen(KEPT, 3.0, 12.0, "503"), Seen(NEW, 3.0, 0.1, "refused")]
    found = Result(tuple(seen))
    assert (found.asked, found.failed) == (13, 2)
    assert found.failures == {"kept: 503": 1, "new: refused": 1}
    assert (found.latency(0.5), found.latency(1), found.longest_wait) == (0.5, 8.5, 12.0)
    assert found.failed_since(2.5) == {"kept: 503": 1, "new: refused": 1}
    assert found.failed_since(3.5) == {}
    assert found.gap == 8.0, "nobody was answered well from 9.5 to 17.5"
    assert found.to_json()["failed"] == 2


def test_figures_of_nothing() -> None:
    assert Result(()).to_json() == {
        "asked": 0, "failed": 0, "failures": {}, "p50": 0.0, "p99": 0.0, "max": 0.0, "longest_wait": 0.0, "gap": 0.0,
    }  # fmt: skip


def test_a_load_that_breaks_is_no_result() -> None:
    with pytest.raises(AssertionError, match="the load ended with 1"), load(Plan(1, "k", rate=0)):
        pass
