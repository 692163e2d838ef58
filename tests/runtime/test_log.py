"""The hooks into vLLM's log: what is copied for the watcher, and what stays out of the journal."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from installer.runtime import vllm_log


def test_stages_are_copied_to_a_file_that_stays_small(tmp_path: Path) -> None:
    handler = vllm_log.Stages(str(tmp_path / "stages"))
    logger = logging.Logger("vllm")
    logger.addHandler(handler)
    logger.info("Starting to load model %s...", "m")
    logger.info("a request for something private")
    try:
        raise ValueError("first line\nTo serve at least one request …")
    except ValueError:
        logger.exception("EngineCore failed to start.")
    lines = (tmp_path / "stages").read_text().splitlines()
    assert lines == ["INFO Starting to load model m...", "ERROR To serve at least one request …"]
    assert os.stat(tmp_path / "stages").st_mode & 0o777 == 0o600
    for _ in range(2000):
        logger.error("x" * 1000)
    assert os.stat(tmp_path / "stages").st_size <= handler.LIMIT + 500


def test_stages_never_disturb_the_server(tmp_path: Path) -> None:
    handler = vllm_log.Stages(str(tmp_path / "missing" / "stages"))
    handler.emit(logging.LogRecord("vllm", logging.ERROR, "", 0, "x", None, None))


def test_successful_probes_stay_out_of_the_access_log() -> None:
    quiet = vllm_log.QuietAccess(["/health"])

    def shown(path: str, status: int) -> bool:
        arguments = ("192.0.2.7:1", "GET", path, "1.1", status)
        return bool(quiet.filter(logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "", arguments, None)))

    assert not shown("/health", 200)
    assert shown("/health", 503)
    assert shown("/v1/models", 200)
    assert quiet.filter(logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "started", None, None))
