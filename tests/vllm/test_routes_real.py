"""Every route of the real vLLM, with every optional one switched on: which answer without a key, and which to whom."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from installer.base.assets import RUNTIME
from tests.kit.boot.machine import STORE

OPEN = {"/health", "/ping"}
# Everything that an inference key reaches, by name: a route that a new vLLM brings along makes this test fail,
# so that somebody decides whether it belongs here or to the guard's ADMIN_ROUTES.
INFERENCE = {
    "/version", "/tokenize", "/detokenize", "/tokenizer_info", "/invocations", "/v1/models", "/v1/systemone",
    "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses",
    "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/chat/completions/render", "/v1/messages/render", "/v1/completions/render", "/v1/responses/render",
    "/v1/chat/completions/derender", "/v1/completions/derender", "/inference/v1/generate", "/generative_scoring",
    "/v1/realtime", "/v1/audio/transcriptions", "/v1/audio/translations", "/pooling", "/classify", "/v1/embeddings",
    "/v2/embed", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank",
}  # fmt: skip


@pytest.fixture(scope="module")
def routes(cpu_engine: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    python = STORE / "engines" / cpu_engine / "bin/python"
    script = Path(__file__).with_name("routes.py")
    command = [python, "-B", script, RUNTIME, tmp_path_factory.mktemp("run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 60
    return found


def test_no_route_but_two_answers_without_a_key(routes: list[dict[str, Any]]) -> None:
    answering = {route["path"] for route in routes if route["plain"] != ["401"]}
    assert answering == OPEN


def test_no_spelling_or_method_gets_around_the_guard(routes: list[dict[str, Any]]) -> None:
    assert {route["path"]: route["tricks"] for route in routes if route["tricks"] != [401]} == {}


def test_every_route_has_a_level_on_purpose(routes: list[dict[str, Any]]) -> None:
    admin = {route["path"] for route in routes if route["roles"]}
    assert {route["path"] for route in routes} - admin - INFERENCE - OPEN == {"/metrics", "/load"}
    assert {"/sleep", "/pause", "/collective_rpc", "/adapters", "/v1/load_lora_adapter", "/docs"} <= admin


def test_operational_routes_take_no_lesser_key(routes: list[dict[str, Any]]) -> None:
    given = {json.dumps(route["roles"]) for route in routes if route["roles"]}
    assert given == {json.dumps({"metrics": 403, "inference": 403})}
