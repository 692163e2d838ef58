"""Who holds connections to the real vLLM's web server and asks for nothing is not waited for, and takes nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from installer.base.assets import RUNTIME
from tests.kit.boot.machine import STORE


def test_connections_that_ask_for_nothing_are_bounded_and_others_left_alone(cpu_engine: str, tmp_path: Path) -> None:
    """What the bounds rest on in the web server is there: with another one this test fails."""
    python = STORE / "engines" / cpu_engine / "bin/python"
    command = [python, "-B", Path(__file__).with_name("connections.py"), RUNTIME, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "nothing": "closed",
        "half a head": "closed",
        "a head byte by byte": "closed",
        "half a second head": "200, closed",
        "the body of a refused request": "401, closed",
        "a slow answer": "HTTP/1.1 200 OK",
        "a websocket": "101, slow",
        "a crowd": "200, few left",
    }, done.stderr
    assert "connections of 1 addresses that asked for nothing" in done.stdout + done.stderr
