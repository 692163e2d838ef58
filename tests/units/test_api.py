"""What is sent to a model server and what is made of its answers, on real sockets."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from installer.units import api
from installer.units.api import ONLY_HERE, Answer, Api, NoAnswer
from tests.kit.certificates import certificate, signed

STREAM = b'data: {"choices": [1]}\n: a comment\n\ndata:  [DONE] \n'


class Asked(BaseHTTPRequestHandler):
    """Says what it was asked; on /stream in events, on /slow nothing, on /broken no HTTP."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/slow":
            self.rfile.read(1)  # until the client hangs up
        elif self.path == "/broken":
            self.wfile.write(b"what?\r\n\r\n")
        elif self.path == "/stream":
            self.say(200, STREAM, "text/event-stream; charset=utf-8")
        else:
            heard = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            heard |= {ONLY_HERE: here} if (here := self.headers[ONLY_HERE]) else {}
            self.say(418, json.dumps({"how": self.command, **heard, "body": body.decode()}).encode(), "text/plain")

    do_GET = do_POST = answer

    def say(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def listening(family: socket.AddressFamily, address: str, files: tuple[Path, Path] | None = None) -> Iterator[int]:
    class Server(ThreadingHTTPServer):
        address_family = family

    with Server((address, 0), Asked) as server:
        if files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(socket.AF_INET, "127.0.0.1") as port:
        yield port


def test_a_request_has_the_key_and_the_body_and_the_answer_is_whole(port: int) -> None:
    asking = Api("127.0.0.1", port, "sk-1", 10)
    answer = asking.ask("POST", "/v1/x", {"prompt": "Hi"})
    assert (answer.status, answer.json()) == (
        418,
        {"how": "POST", "Authorization": "Bearer sk-1", "Content-Type": "application/json", "body": '{"prompt": "Hi"}'},
    )
    plain = asking.with_key(None).ask("GET", "/v1/x").json()
    assert (plain["how"], plain["Authorization"], plain["body"]) == ("GET", None, "")


def test_an_address_of_ipv6_is_asked_and_written_as_one() -> None:
    with listening(socket.AF_INET6, "::1") as port:
        asking = Api("::1", port, None, 10)
        assert asking.url == f"http://[::1]:{port}"
        assert asking.ask("GET", "/").status == 418


def test_the_url_says_whether_it_is_tls() -> None:
    assert Api("127.0.0.1", 8000, None, 1).url == "http://127.0.0.1:8000"
    assert Api("127.0.0.1", 8000, None, 1, certificate="x").url == "https://127.0.0.1:8000"


def test_events_come_as_they_are_and_comments_are_none(port: int) -> None:
    with Api("127.0.0.1", port, None, 10).stream("/stream", {}) as stream:
        events = list(stream.events())
    assert (stream.status, stream.kind) == (200, "text/event-stream")
    assert [event.data for event in events] == [b'{"choices": [1]}', b"[DONE]"]
    assert [event.json() for event in events] == [{"choices": [1]}, {}]
    assert 0 <= events[0].at <= events[1].at


def test_a_stream_is_asked_for_and_what_is_left_of_it_is_read(port: int) -> None:
    with Api("127.0.0.1", port, None, 10).stream("/other", {"n": 1}) as stream:
        assert json.loads(json.loads(stream.rest())["body"]) == {"n": 1, "stream": True}


def test_of_an_answer_without_end_only_so_much_is_read(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "LONGEST", 5)
    assert Api("127.0.0.1", port, None, 10).ask("GET", "/").body == b'{"how'


@pytest.mark.parametrize(
    ("path", "within", "said"),
    [
        ("/slow", 0.05, r"no answer from http://127\.0\.0\.1:\d+/slow within 0\.05 s"),
        ("/broken", 10, r"no answer from http://127\.0\.0\.1:\d+/broken: what\?"),
    ],
)
def test_who_gives_no_answer_is_named_with_the_reason(port: int, path: str, within: float, said: str) -> None:
    with pytest.raises(NoAnswer, match=f"^{said}"):
        Api("127.0.0.1", port, None, within).ask("GET", path)


def test_where_nobody_listens_the_reason_is_the_kernel_s() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NoAnswer, match=f"^no answer from http://127.0.0.1:{port}/x: Connection refused$"):
        Api("127.0.0.1", port, None, 10).ask("GET", "/x")


@pytest.mark.parametrize(
    ("listen", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1")]
)
def test_a_service_is_asked_on_this_host(listen: str, reached: str) -> None:
    assert api.local_address(listen) == reached


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        ("vllm:running 3\n", 3),
        ('vllm:running{engine="0"} 3.5\nvllm:running{engine="1"} 2\n', 5.5),
        ("vllm:running_more 3\n# vllm:running 4\n", None),
        ("vllm:running 0\n", 0),
        ("svllm:running 7\n", None),
        ("vllm:running NaN\n", None),
        ("vllm:running +Inf\n", None),
        ("vllm:running many\nvllm:running 2\n", None),
        ("vllm:running three\n", None),
        ("", None),
    ],
)
def test_a_gauge_is_the_sum_over_its_labels(metrics: str, value: float | None) -> None:
    assert api.gauge(metrics, "vllm:running") == value


def test_with_a_certificate_nobody_else_is_asked(tmp_path: Path) -> None:
    """By whatever name: the address is this host's own. What follows it in the file is not believed."""
    theirs, other = certificate(tmp_path, "elsewhere.example"), certificate(tmp_path, stem="other")
    with listening(socket.AF_INET, "127.0.0.1", theirs) as port:
        asking = Api("127.0.0.1", port, "sk-1", 10, certificate=theirs[0].read_text() + other[0].read_text())
        assert asking.url == f"https://127.0.0.1:{port}"
        assert asking.ask("GET", "/v1/x").json()["Authorization"] == "Bearer sk-1"
        with pytest.raises(NoAnswer, match="certificate"):
            Api("127.0.0.1", port, "sk-1", 10, certificate=other[0].read_text() + theirs[0].read_text()).ask(
                "GET", "/x"
            )
        with pytest.raises(NoAnswer):
            Api("127.0.0.1", port, "sk-1", 10).ask("GET", "/v1/x")


def test_a_certificate_that_another_signed_is_enough_by_itself(tmp_path: Path) -> None:
    theirs = signed(tmp_path, certificate(tmp_path, "An authority", stem="authority"))
    with listening(socket.AF_INET, "127.0.0.1", theirs) as port:
        asking = Api("127.0.0.1", port, "sk-1", 10, certificate=theirs[0].read_text())
        assert asking.ask("GET", "/v1/x").json()["Authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("body", ["[1]", "1", "null", "{", "\\xff"])
def test_an_answer_that_is_no_object_says_nothing(body: str) -> None:
    assert Answer(200, body.encode()).json() == {}


@pytest.mark.parametrize("only_here", [False, True])
def test_a_gateway_is_told_to_ask_nobody_but_its_own_host(port: int, only_here: bool) -> None:
    answer = Api("127.0.0.1", port, None, 10, only_here=only_here).ask("GET", "/v1/x").json()
    assert answer.get(ONLY_HERE) == ("1" if only_here else None)
