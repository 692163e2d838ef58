"""What clients of a server meet, also when it is asked to end: the same of uvicorn alone and of vLLM's own."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.kit.draining import KEY, LARGE, Draining

Start = Callable[..., Draining]  # takes DRAIN and the seconds that replace those of vllm_drain
LONG, NEVER = "600", 600.0
AT_ONCE = {"IDLE_FOR": 0.0, "HEAD_WITHIN": 0.0, "SETTLE": 0.0, "LOOK_EVERY": 0.001}


def believes_the_gateway_about_who_asks(start: Start) -> None:
    with start(LONG, **AT_ONCE) as server:
        client = server.client()
        told = f"Authorization: Bearer {KEY}\r\nX-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https"
        client.socket.sendall(f"GET /who HTTP/1.1\r\nHost: h\r\n{told}\r\n\r\n".encode())
        assert json.loads(client.answer()[2]) == ["10.1.2.3", "https"]


def finishes_what_was_begun(start: Start) -> None:
    with start(LONG, **AT_ONCE) as server:
        slow, stream = server.begun("/slow"), server.begun("/stream")
        assert stream.head()[0] == 200
        assert stream.chunk() == b"one"
        server.terminate()
        server.release()
        status, headers, body = slow.answer()
        assert (status, headers.get("connection"), body) == (200, server.last_word, b"ok")
        assert (stream.chunk(), stream.chunk()) == (b"two", b"")
        assert slow.is_closed()
        assert stream.is_closed()
        assert server.end() == 0
        assert "drained in" in server.said[-1]


def answers_who_still_asks_and_says_that_it_was_the_last(start: Start) -> None:
    with start(LONG, IDLE_FOR=NEVER, HEAD_WITHIN=NEVER) as server:
        kept, refused, probe = server.kept(), server.kept(), server.kept()
        assert probe.ask("/health").answer()[0] == 200
        server.terminate()
        status, headers, body = kept.ask("/plain").answer()
        assert (status, headers["connection"], body) == (200, "close", b"ok")
        status, headers, body = probe.ask("/health", "").answer()
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        assert json.loads(body)["error"]["code"] == "stopping"
        assert refused.ask("/plain", "sk-wrong").answer()[0] == 401
        assert kept.is_closed()
        assert probe.is_closed()
        refused.close()
        assert server.end() == 0


def is_not_held_up_by_who_asks_nothing(start: Start) -> None:
    with start(LONG, IDLE_FOR=0.1, HEAD_WITHIN=0.2) as server:
        kept, silent, half, second = server.kept(), server.client(), server.client(), server.kept()
        half.socket.sendall(b"GET /plain HTTP/1.1\r\nX-Slow: ")
        second.socket.sendall(b"GET /plain HTTP/1.1\r\nX-Slow: ")
        server.terminate()
        assert all(client.is_closed() for client in (kept, silent, half, second))
        assert server.end() == 0
        assert "drained in" in server.said[-1]


def gives_a_head_time_to_arrive(start: Start) -> None:
    with start(LONG, IDLE_FOR=0.0, HEAD_WITHIN=NEVER) as server:
        new, kept = server.client(), server.kept()
        for client in (new, kept):
            client.socket.sendall(b"GET /plain HTTP/1.1\r\nHost: h\r\n")
        server.kept()  # what was sent before is read before
        server.terminate()
        for client in (new, kept):
            client.socket.sendall(b"Authorization: Bearer sk-1\r\n\r\n")
            assert client.answer()[2] == b"ok"
        assert server.end() == 0


def leaves_who_comes_now_in_the_queue(start: Start) -> None:
    with start(LONG, IDLE_FOR=0.1, HEAD_WITHIN=0.1) as server:
        slow = server.begun("/slow")
        server.terminate()
        late = server.client().ask("/plain")
        server.release()
        assert slow.answer()[0] == 200
        assert server.end() == 0
        taken, peer = server.listener.accept()
        assert peer == late.socket.getsockname()
        assert taken.recv(100).startswith(b"GET /plain")
        assert "begun /plain\n" not in server.said
        taken.close()


def sends_the_last_byte_to_a_slow_reader(start: Start) -> None:
    with start(LONG, **AT_ONCE) as server:
        large = server.begun("/large")
        assert large.head()[0] == 200
        server.terminate()
        assert sum(len(part) for part in iter(lambda: large.file.read(1 << 20), b"")) == LARGE
        assert server.end() == 0


def ends_in_time_whoever_waits(start: Start) -> None:
    with start("0") as server:
        slow = server.begun("/slow")
        server.terminate()
        assert slow.is_closed()
        assert server.end() == 0
        assert "1 answers are cut off" in server.said[-1]


SCENARIOS: tuple[Callable[[Start], None], ...] = (
    believes_the_gateway_about_who_asks,
    finishes_what_was_begun,
    answers_who_still_asks_and_says_that_it_was_the_last,
    is_not_held_up_by_who_asks_nothing,
    gives_a_head_time_to_arrive,
    leaves_who_comes_now_in_the_queue,
    sends_the_last_byte_to_a_slow_reader,
    ends_in_time_whoever_waits,
)
