"""Without a key nothing but the two open routes answers through the gateway, in whatever shape the request comes."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from installer.spec.settings import Settings
from tests.kit.gateway import HAPROXY, PATIENCE, Gateway, gateway
from tests.kit.guarded import KEY, OPEN, Guarded, guarded
from tests.runtime.test_gateway import are_up, eventually, is_closed
from tests.runtime.test_guard import TRICKS

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS, ACK = 1, 4, 1


@dataclass
class Pair:
    gateway: Gateway
    engine: Guarded

    def ask(self, text: bytes) -> bytes:
        """Raw, and all that comes back until one of the two has enough."""
        with socket.create_connection(("127.0.0.1", self.gateway.port), timeout=PATIENCE) as client:
            client.sendall(text)
            try:
                return b"".join(iter(lambda: client.recv(65536), b""))
            except ConnectionError:
                return b""

    def has_reached(self) -> set[str]:
        return {path for _, path in json.loads(self.engine.reached())}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with guarded() as engine, gateway(Settings(service="q"), [engine.port], starts=False) as made:
        soon = {"timeout http-request 30s": "timeout http-request 300ms",
                "timeout http-keep-alive 5s": "timeout http-keep-alive 100ms"}  # fmt: skip
        made.configure([engine.port], soon)
        made.start()
        eventually(lambda: are_up(made, 1))
        yield Pair(made, engine)


@pytest.fixture(scope="module")
def patient(pair: Pair) -> Iterator[Pair]:
    """The same engine for whom an answer is meant, however long both take to the end of the request."""
    with gateway(Settings(service="q"), [pair.engine.port]) as made:
        eventually(lambda: are_up(made, 1))
        yield Pair(made, pair.engine)


def get(path: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    lines = (b"%s %s %s" % (method, path, version), b"Host: h", b"Connection: close", *headers, b"", b"")
    return b"\r\n".join(lines)


def test_the_open_routes_answer_and_a_key_opens_the_others(patient: Pair) -> None:
    """So that what follows could fail."""
    key = b"Authorization: Bearer " + KEY.encode()
    assert b" 200 " in patient.ask(get(b"/health"))[:15]
    assert b" 200 " in patient.ask(get(b"/v1/opened", key))[:15]
    assert b" 401 " in patient.ask(get(b"/v1/models"))[:15]
    assert {"/health", "/v1/opened"} <= patient.has_reached()
    assert h2(patient, [(":method", "GET"), (":path", "/v1/by-h2"), ("authorization", f"Bearer {KEY}")])
    assert "/v1/by-h2" in patient.has_reached()


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "CONNECT", "TRACE", "PRI", "get"])
def test_no_spelling_or_method_opens_a_route(pair: Pair, method: str) -> None:
    before = pair.has_reached()
    for path in (*TRICKS, "/v1/models", "/%2e%2e/v1/models", "/health%2f..%2fv1/models", "/health?/../v1/models",
                 "/health#/v1/models", "h:80", "/health\t/v1/models", "/health%00", "/health%0a", "/v1/models;/health",
                 "http://h/v1/models", "https://h//v1/models", "/./v1/models", "/ping/../v1/models"):  # fmt: skip
        pair.ask(get(path.replace("\n", "%0A").encode(), method=method.encode()))
        h2(pair, [(":method", method), (":path", path.replace("\n", "%0A"))])
    assert pair.has_reached() - before <= set(OPEN)


SMUGGLED = {
    "length and chunks": (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and length": (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": (b"Content-Length: 0", b"Content-Length: 38"),
    "a list of lengths": (b"Content-Length: 0, 38",),
    "a signed length": (b"Content-Length: +0",),
    "a hexadecimal length": (b"Content-Length: 0x0",),
    "a long length": (b"Content-Length: 18446744073709551616",),
    "another coding": (b"Transfer-Encoding: xchunked",),
    "two codings": (b"Transfer-Encoding: chunked, identity",),
    "identity, then chunks": (b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
    "a blank before the colon": (b"Transfer-Encoding : chunked",),
    "a tab after the colon": (b"Transfer-Encoding:\tchunked",),
    "a vertical tab": (b"Transfer-Encoding: \x0bchunked",),
    "a folded line": (b"Transfer-Encoding:", b" chunked"),
    "a line feed alone": (b"X: y\nTransfer-Encoding: chunked",),
    "a carriage return alone": (b"X: y\rTransfer-Encoding: chunked",),
    "a zero byte": (b"X: y\0", b"Transfer-Encoding: chunked"),
    "capitals": (b"TRANSFER-ENCODING: ChUnKeD",),
    "no name": (b": x", b"Transfer-Encoding: chunked"),
    "upgrade": (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 777"),
    "upgrade to h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "expect": (b"Expect: 100-continue", b"Content-Length: 0"),
    "hop by hop": (b"Connection: x-forwarded-for, content-length", b"Content-Length: 0"),
    "a large length": (b"Content-Length: 20000",),
    "a large length, hop by hop": (b"Connection: content-length, x-vllm-conversation", b"Content-Length: 20000"),
}  # fmt: skip


LARGE = b"x" * 20000  # goes by the process that keeps the large
BODIES = {
    "nothing": HIDDEN,
    "an end": b"0\r\n\r\n" + HIDDEN,
    "an end with a trailer": b"0\r\nX: y\r\n\r\n" + HIDDEN,
    "an end with an extension": b"0;x\r\n\r\n" + HIDDEN,
    "a large chunk and an end": b"4e20\r\n" + LARGE + b"\r\n0\r\n\r\n" + HIDDEN,
    "a large body": LARGE + HIDDEN,
}


@pytest.mark.parametrize("shape", SMUGGLED)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_request_hides_in_another(pair: Pair, shape: str, body: bytes) -> None:
    before = pair.has_reached()
    lines = (b"POST /health HTTP/1.1", b"Host: h", *SMUGGLED[shape], b"", b"")
    pair.ask(b"\r\n".join(lines) + body)
    assert pair.has_reached() - before <= set(OPEN)


def test_a_hidden_one_without_a_key_is_asked_for_one_even_if_it_is_found(patient: Pair) -> None:
    """Two requests on one connection are two requests: the key of the first is not the second's."""
    first = b"\r\n".join((b"GET /v1/first HTTP/1.1", b"Host: h", b"Authorization: Bearer " + KEY.encode(), b"", b""))
    answer = patient.ask(first + HIDDEN)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"401"]
    assert "/v1/models" not in patient.has_reached()


@pytest.mark.parametrize(
    "more",
    [
        [("transfer-encoding", "chunked")],
        [("content-length", "0")],
        [("content-length", "5")],
        [("content-length", "0"), ("content-length", "38")],
        [("x", "y\r\nTransfer-Encoding: chunked")],
        [("x\r\nTransfer-Encoding: chunked\r\ny", "z")],
        [("connection", "upgrade"), ("upgrade", "websocket")],
        [("host", "h\r\n\r\nGET /v1/models HTTP/1.1")],
        [(":path", "/v1/models")],
        [(":path", "/health HTTP/1.1\r\nHost: h\r\n\r\nGET /v1/models")],
        [(":method", "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\nGET")],
        [(":authority", "h\r\nX: y")],
        [(":scheme", "http://h/v1/models?")],
        [("cookie", "a\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n")],
    ],
)
@pytest.mark.parametrize("body", [b"", HIDDEN, b"0\r\n\r\n" + HIDDEN])
def test_nor_in_one_of_http_2(pair: Pair, more: list[tuple[str, str]], body: bytes) -> None:
    before = pair.has_reached()
    h2(pair, [(":method", "POST"), (":path", "/health"), *more], body)
    assert pair.has_reached() - before <= set(OPEN)


UNENDED = {
    "a length": b"Content-Length: 100000000\r\n\r\n" + b"x" * 60000,
    "chunks": b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"x" * 60000,
}
PREFLIGHT = b"Origin: http://h\r\nAccess-Control-Request-Method: POST\r\n"


@pytest.mark.parametrize("body", UNENDED)
@pytest.mark.parametrize(
    "head", [b"POST /v1/models HTTP/1.1\r\n", b"POST /health HTTP/1.1\r\n", b"OPTIONS /v1/x HTTP/1.1\r\n" + PREFLIGHT]
)
def test_who_shows_no_key_and_does_not_come_to_an_end_is_left(pair: Pair, head: bytes, body: str) -> None:
    """Beyond what the gateway holds back the guard waits; once answered, such a client would stay for ever."""
    before = pair.has_reached()
    with socket.create_connection(("127.0.0.1", pair.gateway.port), timeout=0.05) as client:
        client.sendall(head + b"Host: h\r\n" + UNENDED[body])
        eventually(lambda: is_closed(client, trickles=True))
    assert pair.has_reached() == before


def test_who_comes_to_an_end_with_a_wrong_key_is_told(patient: Pair) -> None:
    body = b"x" * 3_000_000
    wrong = (b"Authorization: Bearer wrong", b"Content-Length: %d" % len(body))
    answer = patient.ask(get(b"/v1/models", *wrong, method=b"POST") + body)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Incorrect or missing API key." in answer


# HTTP/2 by hand, because no library would send what an enemy sends


def h2(pair: Pair, headers: list[tuple[str, str]], body: bytes = b"") -> bytes:
    """One request; what came back, undecoded, until the stream or the connection ends."""
    given = {name for name, _ in headers}
    usual = [(name, text) for name, text in ((":scheme", "http"), (":authority", "h")) if name not in given]
    block = b"".join(b"\0" + literal(name) + literal(text) for name, text in (*usual, *headers))
    with socket.create_connection(("127.0.0.1", pair.gateway.port), timeout=PATIENCE) as client:
        client.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        client.sendall(frame(HEADERS, END_HEADERS | (0 if body else END_STREAM), 1, block))
        if body:
            client.sendall(frame(DATA, END_STREAM, 1, body))
        return answer_of(client)


def literal(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def answer_of(client: socket.socket) -> bytes:
    seen = b""
    with client.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            payload = file.read(int.from_bytes(head[:3], "big"))
            seen += head + payload
            if head[3] == SETTINGS and not head[4] & ACK:
                client.sendall(frame(SETTINGS, ACK, 0, b""))
            if head[3] in (3, 7) or (head[3] in (DATA, HEADERS) and head[4] & END_STREAM):
                break
    return seen
