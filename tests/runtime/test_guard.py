"""The guard in front of a small ASGI application: who gets through, who does not, and what is said about it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer.base.assets import RUNTIME

LATER, BEFORE = "2999-01-01T00:00:00Z", "2001-01-01T00:00:00Z"
TRICKS = (
    "//v1/models", "/v1//models", "/v1/../invocations", "/%76%31/models", "/V1/Models", "/v1/models/",
    "http://elsewhere/v1/models", "/health/", "//health", "/health/../v1/models", "/HEALTH", "/ping/..", "", "*",
    "/health;x", "/health\n", "/metrics/../health/x", "\\health",
)  # fmt: skip


@pytest.fixture(scope="module")
def guard_module() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("vllm_guard", RUNTIME / "vllm_guard.py")
    assert spec
    assert spec.loader
    sys.modules["vllm_guard"] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(RUNTIME))
    spec.loader.exec_module(module)
    sys.path.remove(str(RUNTIME))
    yield module
    del sys.modules["vllm_guard"]


class Server:
    """The guard, a key file, and an application that answers 200 to whatever reaches it."""

    def __init__(self, module: Any, runtime: Path) -> None:
        self.module, self.runtime = module, runtime
        self.clock = time.monotonic()
        self.reached: list[dict[str, Any]] = []
        self.guard = module.Guard(self.application)

    async def application(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.reached.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"through"})

    def keys(self, *lines: str) -> None:
        """Each line is `NAME ROLE KEY EXPIRY`; written as the launcher does, in one step."""
        digested = []
        for line in lines:
            name, role, key, expiry = line.split()
            digested.append(f"{name} {role} {hashlib.sha256(key.encode()).hexdigest()} {expiry}\n")
        self.write("".join(digested))

    def write(self, text: str) -> None:
        (self.runtime / "new").write_text(text)
        (self.runtime / "new").replace(self.runtime / "keys")
        self.guard.keys._look_at = 0.0  # as if the moment for which the file is trusted had passed

    def ask(
        self, path: str = "/v1/models", *headers: tuple[str, str], method: str = "GET", kind: str = "http", **more: Any
    ) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            raise AssertionError("the guard reads no body")

        scope = {"type": kind, "path": path, "client": ("192.0.2.7", 4711), **more}
        scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers]
        if kind == "http":
            scope["method"] = method
        asyncio.run(_await(self.guard(scope, receive, send)))
        return sent

    def status(self, path: str = "/v1/models", key: str | None = None, **more: Any) -> int:
        headers = [("Authorization", f"Bearer {key}")] if key else []
        return int(self.ask(path, *headers, **more)[0]["status"])


async def _await(awaitable: Any) -> None:
    await awaitable


@pytest.fixture
def server(guard_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/run/another")
    server = Server(guard_module, tmp_path)
    server.keys("prom metrics k-metrics -", "default inference k-user -", "boss admin k-admin -")
    return server


# Levels


@pytest.mark.parametrize(
    ("path", "none", "metrics", "user", "admin"),
    [
        ("/health", 200, 200, 200, 200),
        ("/ping", 200, 200, 200, 200),
        ("/metrics", 401, 200, 200, 200),
        ("/load", 401, 200, 200, 200),
        ("/v1/models", 401, 403, 200, 200),
        ("/v1/chat/completions", 401, 403, 200, 200),
        ("/invocations", 401, 403, 200, 200),
        ("/tokenize", 401, 403, 200, 200),
        ("/something/of/tomorrow", 401, 403, 200, 200),
        ("/pause", 401, 403, 403, 200),
        ("/sleep", 401, 403, 403, 200),
        ("/collective_rpc", 401, 403, 403, 200),
        ("/v1/load_lora_adapter", 401, 403, 403, 200),
        ("/adapters/some-name", 401, 403, 403, 200),
        ("/inference/v1/abort_requests", 401, 403, 403, 200),
        ("/docs", 401, 403, 403, 200),
        ("/docs/oauth2-redirect", 401, 403, 403, 200),
        ("/openapi.json", 401, 403, 403, 200),
    ],
)
def test_each_route_has_its_level(server: Server, path: str, none: int, metrics: int, user: int, admin: int) -> None:
    answers = [server.status(path, key) for key in (None, "k-metrics", "k-user", "k-admin")]
    assert answers == [none, metrics, user, admin]
    assert len(server.reached) == answers.count(200)


@pytest.mark.parametrize("path", TRICKS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "BREW"])
def test_no_spelling_or_method_opens_a_route(server: Server, path: str, method: str) -> None:
    assert server.status(path, method=method) == 401
    assert server.status(path, "k-unknown", method=method) == 401
    assert not server.reached


@pytest.mark.parametrize("path", ["//pause", "/PAUSE", "/pause/", "/v1/../pause", "/./pause", "/pause/x", "\\pause"])
def test_an_odd_spelling_never_needs_less(server: Server, path: str) -> None:
    assert server.status(path, "k-user") == 403
    assert server.status(path, "k-admin") == 200


def test_a_root_path_changes_neither_way(server: Server) -> None:
    assert server.status("/api/health", root_path="/api") == 200
    assert server.status("/api/v1/models", root_path="/api") == 401
    assert server.status("/api/pause", "k-user", root_path="/api") == 403
    assert server.status("/health/pause", "k-user", root_path="/health") == 403
    assert server.status("/apihealth", root_path="/api") == 401


# Credentials


def test_both_kinds_of_header_are_understood(server: Server) -> None:
    for header in (("Authorization", "Bearer k-user"), ("AUTHORIZATION", "bearer  k-user "), ("X-API-Key", "k-user")):
        assert server.ask("/v1/messages", header)[0]["status"] == 200
    for header in (("Authorization", "k-user"), ("Authorization", "Basic k-user"), ("Authorization", "Bearer ")):
        assert server.ask("/v1/messages", header)[0]["status"] == 401


def test_two_answers_to_one_question_are_none(server: Server) -> None:
    good, bad, other = ("Authorization", "Bearer k-user"), ("Authorization", "Bearer k-no"), ("x-api-key", "k-no")
    for headers in ([good, bad], [bad, good], [good, other], [other, good], [("x-api-key", ""), good]):
        assert server.ask("/v1/models", *headers)[0]["status"] == 401
    assert server.ask("/v1/models", good, ("x-api-key", "k-user"))[0]["status"] == 200


def test_a_refusal_is_what_clients_expect(server: Server) -> None:
    start, body = server.ask()
    headers = dict(start["headers"])
    assert headers[b"www-authenticate"] == b"Bearer"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert json.loads(body["body"])["error"]["code"] == "invalid_api_key"


def test_a_key_expires_by_itself(server: Server) -> None:
    server.keys(f"old inference k-old {BEFORE}", f"new inference k-new {LATER}")
    assert server.status(key="k-old") == 401
    assert server.status(key="k-new") == 200


@pytest.mark.parametrize("asked_between", [True, False])
def test_a_clock_that_jumps_opens_for_no_expired_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, asked_between: bool
) -> None:
    wall, ticks = [1_000_000.0], [50.0]
    monkeypatch.setattr(server.module.time, "time", lambda: wall[0])
    monkeypatch.setattr(server.module.time, "monotonic", lambda: ticks[0])
    server.keys("soon inference k-soon 1970-01-12T13:47:40Z")  # 60 s from now
    assert server.status(key="k-soon") == 200
    wall[0], ticks[0] = wall[0] + 61, ticks[0] + 61
    if asked_between:
        assert server.status(key="k-soon") == 401
    wall[0] -= 3600  # set back
    assert server.status(key="k-soon") == 401
    server.keys("soon inference k-soon 1970-01-12T13:47:40Z")  # told anew, by today's clock
    assert server.status(key="k-soon") == 200
    wall[0] += 86400  # set forward
    assert server.status(key="k-soon") == 401


def test_a_huge_token_is_just_wrong(server: Server) -> None:
    assert server.status(key="k" * 1_000_000) == 401


# The key file


def test_keys_are_read_anew_while_running(server: Server) -> None:
    assert server.status(key="k-next") == 401
    server.keys("default inference k-next -")
    assert server.status(key="k-next") == 200
    assert server.status(key="k-user") == 401


def test_the_file_is_looked_at_seldom_but_soon(server: Server, guard_module: Any) -> None:
    began = time.monotonic()
    assert server.status(key="k-user") == 200
    soon = guard_module.LOOK_AGAIN
    assert began + soon <= server.guard.keys._look_at <= time.monotonic() + soon
    assert guard_module.LOOK_AGAIN <= 0.1


GOOD = f"good inference {hashlib.sha256(b'k-good').hexdigest()} -"
OLD = f"old inference {hashlib.sha256(b'k-user').hexdigest()}"  # the key that was valid before the damage
# What is wrong with the line beside a good one; the good one stays, and of this one nobody knows what was meant.
DAMAGED_LINES = {
    "unknown role": f"{OLD.replace('inference', 'emperor')} -",
    "no role": f"{OLD.replace(' inference', '')} -",
    "truncated": OLD[:40],
    "without expiry": OLD,
    "without expiry, with space": f"{OLD} ",
    "one word more": f"{OLD} - -",
    "bad digest": f"old inference {'g' * 64} -",
    "digest too short": f"{OLD[:-2]} -",
    "digest with a space": f"{OLD[:-2]}  -",
    "bad expiry": f"{OLD} tomorrow",
    "a day that does not exist": f"{OLD} 2999-02-30T00:00:00Z",
    "half an expiry": f"{OLD} 2999-01-01T00",
    "digits of another script": f"{OLD} ٢999-01-01T00:00:00Z",
    "NUL": f"{OLD}\0 -",
    "tabs": f"{OLD.replace(' ', chr(9))}\t-",
    "carriage return": f"{OLD} -\r",
    "blank": "",
    "a long line": "x" * 100_000,
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=list(DAMAGED_LINES))
def test_of_a_damaged_file_the_lines_that_can_be_read_are_valid(
    server: Server, caplog: pytest.LogCaptureFixture, line: str, order: str
) -> None:
    assert server.status(key="k-user") == 200
    server.write(f"{GOOD}\n{line}\n" if order == "after" else f"{line}\n{GOOD}\n")
    assert [server.status(key=key) for key in ("k-user", "k-good", None) * 3] == [401, 200, 401] * 3
    assert sum("cannot be read: the keys in them" in message for message in caplog.messages) == 1


def damage(place: Path, how: str) -> None:
    """The key file replaced by something that is none."""
    content = place.read_text()
    place.unlink()
    if how == "a directory":
        place.mkdir()
    elif how == "a FIFO":
        os.mkfifo(place, 0o600)
    elif how == "a FIFO that says keys":
        os.mkfifo(place, 0o600)
        os.write(os.open(place, os.O_RDWR), content.encode())  # open until the tests end, as a hostile process has it
    elif how == "a link":
        (place.parent / "elsewhere").write_text(content)
        place.symlink_to(place.parent / "elsewhere")
    elif how == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
    elif how == "binary":
        place.write_bytes(bytes(range(256)) * 64)
    elif how == "empty":
        place.touch()
    elif how == "10 MB":
        place.write_text(content + "#" * 10_000_000)
    elif how == "written by anybody":
        place.write_text(content)
        place.chmod(0o666)
    elif how == "of another owner":
        place.write_text(content)
        os.chown(place, 65534, 65534)
    else:
        assert how == "missing"


ROOT_ALONE = [pytest.param("of another owner", marks=pytest.mark.root)]


@pytest.mark.parametrize(
    "how",
    ["missing", "a directory", "a FIFO", "a FIFO that says keys", "a link", "a socket", "binary", "empty", "10 MB",
     "written by anybody",
     *ROOT_ALONE],
)  # fmt: skip
def test_without_a_key_file_that_is_one_nobody_gets_in(
    server: Server, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    assert server.status(key="k-user") == 200
    damage(server.runtime / "keys", how)
    server.guard.keys._look_at = 0.0
    assert [server.status(key=key) for key in ("k-user", "k-admin", "")] == [401, 401, 401]
    assert server.status("/health") == 200
    told = [line for line in caplog.messages if "no key is valid" in line or "cannot be read" in line]
    assert len(told) == 1, "said once, not at each request"


def test_a_file_that_is_whole_again_is_in_force_at_once(server: Server) -> None:
    damage(server.runtime / "keys", "missing")
    server.guard.keys._look_at = 0.0
    assert server.status(key="k-user") == 401
    server.keys("default inference k-user -")
    assert server.status(key="k-user") == 200


def test_without_a_runtime_directory_there_is_no_guard(guard_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with pytest.raises(KeyError):
        guard_module.Guard(None)


def test_no_key_is_kept_in_memory(server: Server) -> None:
    assert server.status(key="k-user") == 200
    assert all(len(digest) == 32 for digest in server.guard.keys.by_digest)
    assert "k-user" not in repr(server.guard.keys.__dict__)


# Other kinds of request


def test_websockets_need_a_key(server: Server) -> None:
    denied = server.ask("/v1/realtime", kind="websocket")
    assert [message["type"] for message in denied] == ["websocket.close"]
    extended = server.ask("/health", kind="websocket", extensions={"websocket.http.response": {}})
    assert [message["type"] for message in extended] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert extended[0]["status"] == 401
    assert not server.reached
    server.ask("/v1/realtime", ("Authorization", "Bearer k-user"), kind="websocket")
    assert len(server.reached) == 1


def test_options_passes_as_preflight_only(server: Server) -> None:
    origin, wanted = ("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")
    assert server.ask("/v1/models", origin, wanted, method="OPTIONS")[0]["status"] == 200
    for headers in ([], [origin], [wanted]):
        assert server.ask("/v1/models", *headers, method="OPTIONS")[0]["status"] == 401
    assert server.ask("/v1/models", origin, wanted, method="GET")[0]["status"] == 401


def test_the_lifespan_passes_and_nothing_unknown_does(server: Server) -> None:
    server.ask(kind="lifespan")
    assert len(server.reached) == 1
    server.ask(kind="something-new", method_of="x")
    assert len(server.reached) == 1


def test_the_applications_own_coroutine_is_returned(server: Server) -> None:
    """No wrapper: streams are untouched because nothing stands between application and server."""
    marker = object()
    guard = server.module.Guard(lambda scope, receive, send: (marker, scope, receive, send))
    scope = {"type": "http", "path": "/v1/models", "method": "GET", "headers": [(b"x-api-key", b"k-user")]}
    receive, send = object(), object()
    result = guard(scope, receive, send)
    assert result[0] is marker
    assert result[1] is scope
    assert result[2] is receive
    assert result[3] is send


# Behind a gateway


@pytest.fixture
def behind(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("HEAR_OUT", "0.1")
    server.guard = server.module.Guard(server.application)
    return server


def pieces(*texts: bytes, ends: bool = True) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(texts, 1):
        yield {"type": "http.request", "body": text, "more_body": not ends or number < len(texts)}


def answered(server: Server, body: Iterator[dict[str, Any]], path: str = "/v1/models", length: bytes = b"9") -> int:
    sent = list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return next(body, None) or await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", length)]
    scope = {"type": "http", "path": path, "method": "POST", "client": ("192.0.2.7", 1), "headers": headers}
    asyncio.run(_await(server.guard(scope, receive, send)))
    return int(sent[0]["status"])


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 401), ("/health", 200)])
def test_who_shows_no_key_is_answered_when_the_request_is_over(behind: Server, path: str, status: int) -> None:
    body = pieces(b"one", b"two", b"three")
    assert answered(behind, body, path) == status
    assert next(body, None) is None, "it was read"
    assert answered(behind, iter([{"type": "http.disconnect"}]), path) == status
    assert answered(behind, iter([]), path, length=b"0") == status


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_and_who_does_not_come_to_an_end_is_cut_off(behind: Server, path: str) -> None:
    reached = len(behind.reached)
    assert answered(behind, pieces(b"one", ends=False), path) == 408
    assert answered(behind, pieces(*[b"x" * (1 << 20)] * 65), path) == 408, "nor who sends without measure"
    assert len(behind.reached) == reached


def test_without_a_gateway_no_connection_is_kept_for_that(server: Server) -> None:
    assert server.ask("/v1/models", ("Content-Length", "9"), method="POST")[0]["status"] == 401


# The journal


def test_a_refusal_is_one_line_without_the_token(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.status("/v1/models\nroot: \x1b[31mforged", "k-secret-token")
    server.status("/pause", "k-user")
    server.keys(f"old inference k-old {BEFORE}")
    server.status("/v1/models", "k-old")
    server.status()
    assert caplog.messages == [
        "refused GET '/v1/models\\nroot: \\x1b[31mforged' from 192.0.2.7: an unknown key",
        "refused GET '/pause' from 192.0.2.7: the key default, whose role does not allow it",
        "refused GET '/v1/models' from 192.0.2.7: the expired key old",
        "refused GET '/v1/models' from 192.0.2.7: no key",
    ]


def test_a_flood_of_refusals_is_counted_not_written(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5000):
        server.guard.refusals.note({"path": "/x", "method": "GET", "headers": []}, "no key")
    assert 10 <= len(caplog.messages) <= 12
    server.guard.refusals._at -= 60  # a minute goes by
    server.status()
    hidden = 5000 - (len(caplog.messages) - 1)
    assert caplog.messages[-1].endswith(f"({hidden} more since the last such line)")
