"""`test --model` against the real vLLM: a throwaway server that leaves nothing, whether the tool is killed or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.booted.test_trial import LEFT, PID, kill, says, tool_in, waits_at
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import MODEL, until
from tests.kit.memory import LITTLE, share

# On the CPU the share is one of all memory, and these tests are not alone on the host.
SMALL = ("--engine", "cpu", "--gpu-util", share(LITTLE))
EVERY = ["models", "no-key", "wrong-key", "completion", "chat", "messages", "responses", "streaming", "cancel",
         "long-prompt"]  # fmt: skip


@pytest.fixture(scope="module")
def machine(cpu_engine: str) -> Iterator[Machine]:
    with Machine(network=True, store=True) as machine:
        yield machine


def passes(report: dict[str, Any]) -> None:
    """All that applies to a tiny model passed, and the figures are figures of a real answer."""
    outcomes = {outcome["name"]: outcome for outcome in report["tests"]}
    passed = [name for name, outcome in outcomes.items() if outcome["status"] == "passed"]
    assert [name for name in passed if name != "listens"] == EVERY, report
    assert {name for name, outcome in outcomes.items() if outcome["status"] == "skipped"} == {"tools", "image"}
    figures = outcomes["streaming"]["figures"]
    assert figures["tokens"] == 64
    assert figures["chunks"] > 8
    assert figures["first_token_seconds"] > 0


def left(machine: Machine) -> str:
    """The machine shares this host's network and processes of others listen there; so no look at listeners."""
    return machine.shell("\n".join(line for line in LEFT.splitlines() if not line.startswith("ss "))).stdout


def test_a_throwaway_server_goes_with_the_tool(machine: Machine) -> None:
    tool = tool_in(machine, "--model", MODEL, *SMALL)
    waits_at(tool, "compiling")
    kill(machine, "KILL")
    tool.communicate(timeout=300)
    until("nothing is left", lambda: left(machine) == "", machine)


def test_what_the_sandbox_says_becomes_no_path_of_root_s(machine: Machine) -> None:
    machine.shell("mkdir /root/precious; touch /root/precious/file")
    tool = tool_in(machine, "--model", MODEL, *SMALL)
    waits_at(tool, "compiling")
    says(machine, tool, '{"home": "/root/precious"}')
    kill(machine, "INT")
    _, err = tool.communicate(timeout=300)
    assert tool.returncode == 130, err
    machine.shell("rm /root/precious/file; rmdir /root/precious")


def test_a_throwaway_server_passes_and_goes(machine: Machine) -> None:
    before = snapshot(machine.root, ignore=[PID])
    tool = tool_in(machine, "--model", MODEL, *SMALL, "--max-len", "2k", "--json")
    out, err = tool.communicate(timeout=400)
    assert tool.returncode == 0, err
    passes(json.loads(out))
    assert left(machine) == ""
    assert difference(before, snapshot(machine.root, ignore=[PID])) == []
