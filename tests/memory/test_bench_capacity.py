"""The bench that holds predicted beside reported memory: every case has its turn, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.kit.boot.surroundings import REPO

CONFIGS = REPO / "tests/fixtures/configs"
GIB = 1024**3


def bench(tmp_path: Path, *words: str, standin: str = "") -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, output and data of a run that finds the stand-in where vLLM would be."""
    described = tmp_path / "vllm-0.32.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    data = tmp_path / "data.json"
    h200 = ("--memory", str(143771 * 1024**2))
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.capacity", "--json", data, "--logs", tmp_path / "logs", *h200, *words],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": f"{REPO / 'tests/kit/standin'}:{tmp_path}", "VLLM_STANDIN": standin},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, json.loads(data.read_text())


def test_every_case_has_its_own_share_and_one_that_fails_stops_none(tmp_path: Path) -> None:
    cases = (f"{CONFIGS / 'qwen3-8b'}@0.17", f"{tmp_path / 'nowhere'}@.3", str(CONFIGS / "gpt-oss-20b"))
    code, said, runs = bench(tmp_path, "--share", "0.5", *cases)
    assert code == 1
    assert [(run["name"], run["share"]) for run in runs] == [("qwen3-8b", 0.17), ("nowhere", 0.3), ("gpt-oss-20b", 0.5)]
    first, missing, last = runs
    # As the stand-in prints it: 4 GiB, and tokens for 28 requests.
    assert first["reported"]["available"] == last["reported"]["available"] == 4 * GIB
    assert first["reported"]["tokens"] == 28 * 16384
    assert first["off"] == first["predicted"]["kv_tokens"] / (28 * 16384) - 1
    assert first["predicted"]["available_kv_bytes"] < 8 * GIB < 40 * GIB < last["predicted"]["available_kv_bytes"]
    assert "No such file" in missing["failure"]
    assert "2 of 3 measured" in said
    assert f"{first['off']:+.1%}" in said
    assert "Available KV cache memory" in (tmp_path / "logs/qwen3-8b@0.17.log").read_text()


def test_a_start_ends_with_the_last_word_about_memory(tmp_path: Path) -> None:
    code, said, _ = bench(tmp_path, str(CONFIGS / "qwen3-8b"), standin="stall=capture")
    assert code == 0, said
    assert "Capturing" not in (tmp_path / "logs/qwen3-8b@0.92.log").read_text()


def test_a_server_that_dies_is_said(tmp_path: Path) -> None:
    code, said, (run,) = bench(tmp_path, str(CONFIGS / "qwen3-8b"), standin="die-at-start=1")
    assert code == 1
    assert "Engine core initialization failed" in run["failure"]
    assert "0 of 1 measured" in said


def test_a_server_without_end_costs_its_own_time_only(tmp_path: Path) -> None:
    both = (str(CONFIGS / "qwen3-8b"), str(CONFIGS / "qwen3-32b"))
    budget = ("--budget", "18", "--least", "6", "--most", "7")
    _, said, runs = bench(tmp_path, *budget, *both, standin="stall=load")
    assert [run["name"] for run in runs] == ["qwen3-8b"]
    assert runs[0]["failure"] == "no time left before vLLM reported"
    assert "Starting to load model" in (tmp_path / "logs/qwen3-8b@0.92.log").read_text()
    assert f"{CONFIGS / 'qwen3-32b'}: no time left" in said
