"""What takes something away asks first: without --yes and without a terminal nothing goes, and a no is a no."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import MODEL, cli, is_gone, main_pid, serves, standin

pytestmark = pytest.mark.root
DESTROYING = (("uninstall",), ("uninstall", "--purge"), ("eject",), ("prune",), ("models", "prune"))
# A terminal of its own for a command, as a person has one; what they type comes from our own stdin.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
Known = tuple[Machine, str]


@pytest.fixture(scope="module")
def host(standin_wheels: Path) -> Iterator[Known]:
    """A service, and an engine and weights that nobody needs."""
    with Machine() as machine:
        bare = snapshot(machine.root)
        key = cli(machine, "deploy", *standin(standin_wheels)).key
        machine.write("/opt/vllm-install/engines/0123456789abcdef/old", "")
        machine.write("/var/cache/vllm-install/hub/models--a--b/blobs/c", "")
        yield machine, key
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare)


@pytest.mark.parametrize("verb", DESTROYING, ids=" ".join)
@pytest.mark.parametrize("typed", ["", "n\n", "y\n"], ids=["nothing", "no", "yes"])
def test_without_a_terminal_nothing_goes(host: Known, verb: tuple[str, ...], typed: str) -> None:
    machine, key = host
    before, pid = snapshot(machine.root), main_pid(machine)
    refused = cli(machine, *verb, code=3, stdin=typed)
    assert "run the same command with --yes" in refused.err
    if typed == "y\n":
        error = json.loads(cli(machine, *verb, "--json", code=3, stdin=typed).out)["error"]
        assert (error["exit_code"], "--yes" in error["hint"]) == (3, True)
    assert difference(before, snapshot(machine.root)) == []
    assert main_pid(machine) == pid
    serves(machine, key)


@pytest.mark.parametrize("verb", DESTROYING, ids=" ".join)
def test_a_no_at_a_terminal_is_a_no(host: Known, verb: tuple[str, ...]) -> None:
    machine, key = host
    before, pid = snapshot(machine.root), main_pid(machine)
    done = machine.run(
        sys.executable, "-c", TERMINAL, sys.executable, "-m", "installer", *verb, stdin="n\n", check=False
    )
    assert "[y/N]" in done.stdout
    assert "the answer was no" in done.stdout
    assert done.returncode == 3, done
    assert difference(before, snapshot(machine.root)) == []
    assert main_pid(machine) == pid
    serves(machine, key)


def test_the_port_of_a_stopped_service_is_taken(host: Known, standin_wheels: Path) -> None:
    machine, _ = host
    machine.run("systemctl", "stop", "qwen3vl")
    other = (*standin(standin_wheels), "--service", "other")
    for verb in ("deploy", "plan"):
        refused = cli(machine, verb, *other, code=3)
        assert "port 8000 is taken: it is the port of the service qwen3vl" in refused.err
    assert cli(machine, "plan", *other, "--port", "8001", "--json").changes
    machine.run("systemctl", "start", "qwen3vl")
    assert cli(machine, "deploy", "--json").changes == []
    assert MODEL in cli(machine, "status").out
