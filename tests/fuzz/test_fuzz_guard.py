"""Requests that no client in good faith sends, before the guard; and key files that no launcher wrote."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.hostile import TEXT
from tests.runtime.test_guard import LATER, TRICKS, Server
from tests.runtime.test_guard import guard_module as guard_module

KEY, METRICS = "sk-inference-0123456789", "sk-metrics-0123456789"
ROUTES = (
    "/v1/models",
    "/v1/chat/completions",
    "/invocations",
    "/tokenize",
    "/metrics",
    "/load",
    "/sleep",
    "/collective_rpc",
    "/update_weights",
    "/docs",
    "/openapi.json",
    "/v1/load_lora_adapter",
    "/health",
    "/ping",
    "/version",
    "/nowhere",
    *TRICKS,
)
SPELLINGS = (
    "/",
    "//",
    "/..",
    "/.",
    "%2f",
    "%2e",
    ";",
    "?",
    "#",
    "\\",
    " ",
    "\t",
    "\n",
    "\0",
    ".json",
    "K",
    "ſ",
    "İ",
    "\u212a",
)
PATHS = st.lists(st.one_of(st.sampled_from(ROUTES), st.sampled_from(SPELLINGS), TEXT), min_size=1, max_size=5).map(
    "".join
)
OPEN = ("/health", "/ping")
TOKENS = st.one_of(
    TEXT, st.sampled_from((KEY[:-1], KEY + "x", KEY.upper(), "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()))
)


@pytest.fixture(scope="module")
def server(guard_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_DIRECTORY", str(runtime))
        server = Server(guard_module, runtime)
        server.keys(f"default inference {KEY} -", f"watch metrics {METRICS} {LATER}")
        yield server


def status(sent: list[dict[str, Any]]) -> int:
    return int(sent[0].get("status", 403 if sent[0]["type"] == "websocket.close" else 0))


@given(
    PATHS,
    st.sampled_from(("GET", "POST", "OPTIONS", "PUT", "\x1b[2J")),
    st.sampled_from(("http", "websocket")),
    TEXT,
    TOKENS,
)
@settings(max_examples=500)
@example("/health\n", "GET", "http", "", "")
@example("/v1/models", "GET", "http", "\nforged\x1b[2J", "")
def test_without_a_key_nothing_but_health_is_reached(
    server: Server, path: str, method: str, kind: str, client: str, token: str
) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("vllm.guard")
    log.addHandler(handler)
    server.reached.clear()
    server.guard.refusals = server.module.Refusals()  # none of them is hidden for being one of many
    header = ("authorization", f"Bearer {token}") if token.isascii() else ("x-api-key", "none")
    try:
        sent = server.ask(path, header, method=method, kind=kind, client=(client, 1))
    finally:
        log.removeHandler(handler)
    if path not in OPEN or kind != "http":
        assert server.reached == [], path
        assert status(sent) in (401, 403)
    for line in said:
        assert line.isprintable(), ascii(line)  # it goes into the journal as it is
        assert len(token) < 16 or token in client + path or token not in line


@given(PATHS)
@settings(max_examples=300)
def test_a_key_for_inference_reaches_no_route_of_an_admin(server: Server, path: str) -> None:
    """However it is spelt: what a router could take for such a route is not handed on."""
    server.reached.clear()
    server.ask(path, ("authorization", f"Bearer {KEY}"))
    for scope in server.reached:
        routed = scope["path"]
        assert not any(routed == r or routed.startswith(r + "/") for r in server.module.ADMIN_ROUTES), routed


LINES = st.lists(
    st.one_of(
        TEXT,
        st.sampled_from(
            (
                "default inference",
                f"default inference {hashlib.sha256(KEY.encode()).hexdigest()} -",
                f"x root {hashlib.sha256(KEY.encode()).hexdigest()} -",
                f"x inference {hashlib.sha256(KEY.encode()).hexdigest()} 2001-01-01T00:00:00Z",
            )
        ),
    ),
    max_size=4,
)


@given(LINES)
@settings(max_examples=200)
def test_a_damaged_key_file_opens_for_nobody_else(server: Server, lines: list[str]) -> None:
    text = "\n".join(lines)
    path = server.runtime / "keys"
    path.write_bytes(text.encode(errors="replace"))
    server.guard.keys._look_at = 0.0
    server.guard.keys._seen = (0,)
    server.reached.clear()
    assert status(server.ask("/v1/models", ("authorization", "Bearer sk-of-nobody-0123456789"))) == 401
    assert server.reached == []
