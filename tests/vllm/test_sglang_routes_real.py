"""Every route of the real SGLang and every flag: which answer without a key, which to whom, and what it is told."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from installer.base.assets import RUNTIME
from tests.kit.boot.machine import SGLANG_STORE

HERE = Path(__file__).parent
OPEN = {"/health", "/ping"}
METRICS = {"/metrics", "/v1/loads"}
# What an inference key reaches, by name. A route that a new SGLang brings along needs an admin's, until somebody
# decides that it belongs here and into the guard's list.
INFERENCE = {
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model:path}", "/v1/embeddings",
    "/v1/classify", "/v1/rerank", "/v1/score", "/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize",
    "/v1/responses", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/audio/transcriptions", "/v1/realtime", "/generate", "/encode", "/classify",
    "/parse_function_call", "/separate_reasoning", "/model_info", "/get_model_info", "/ready", "/health_generate",
}  # fmt: skip


@pytest.fixture(scope="module")
def python(sglang_wheels: Path) -> Path:
    (engine,) = (SGLANG_STORE / "engines").iterdir()
    return engine / "bin/python"


@pytest.fixture(scope="module")
def routes(python: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    command = [python, "-B", HERE / "sglang_routes.py", RUNTIME, tmp_path_factory.mktemp("run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 80
    return found


def test_no_route_but_two_answers_without_a_key(routes: list[dict[str, Any]]) -> None:
    assert {route["path"] for route in routes if route["plain"] != [401]} == OPEN


def test_no_spelling_or_method_gets_around_the_guard(routes: list[dict[str, Any]]) -> None:
    assert {route["path"]: route["tricks"] for route in routes if route["tricks"] != [401]} == {}


def test_whatever_is_not_inference_takes_no_lesser_key(routes: list[dict[str, Any]]) -> None:
    reached = {
        key: {r["path"] for r in routes if r["roles"][key] not in (401, 403)} for key in ("metrics", "inference")
    }
    assert reached == {"metrics": METRICS | OPEN, "inference": INFERENCE | METRICS | OPEN}


def test_the_flags_of_sglang_are_those_of_its_own_parser(python: Path) -> None:
    done = subprocess.run([python, HERE / "sglang_flags.py"], capture_output=True, text=True, check=True)
    text = json.dumps(json.loads(done.stdout.splitlines()[-1]), indent=1) + "\n"
    if os.environ.get("GOLDEN") == "write":
        (RUNTIME / "sglang_flags.json").write_text(text)
    assert (RUNTIME / "sglang_flags.json").read_text() == text
