"""A server that is asked to end, with uvicorn as it comes: what its clients meet, and where the stop is not ours."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from tests.kit.drain_scenarios import SCENARIOS, Start
from tests.kit.draining import Draining


@pytest.mark.parametrize("by_door", [False, True])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_a_server_that_is_asked_to_end(scenario: Callable[[Start], None], by_door: bool, tmp_path: Path) -> None:
    def start(drain: str, **seconds: float) -> Draining:
        return Draining(sys.executable, "uvicorn", RUNTIME, tmp_path, drain, by_door=by_door, **seconds)

    scenario(start)


@pytest.mark.parametrize(("what", "end"), [("uvicorn, unknown", -signal.SIGTERM), ("uvicorn, without servers", 0)])
def test_with_a_web_server_that_is_not_known_the_stop_is_its_own(what: str, end: int, tmp_path: Path) -> None:
    with Draining(sys.executable, what, RUNTIME, tmp_path, "600") as server:
        slow = server.begun("/slow")
        server.process.terminate()
        server.release()
        assert slow.answer()[2] == b"ok"
        assert server.end() == end
    (line,) = [line for line in server.said if "stop is left to vLLM" in line]
    assert ("AttributeError" in line) == ("without" in what)
