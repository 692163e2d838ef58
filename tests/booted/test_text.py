"""Hostile neighbours and models around a real unit: they steer no terminal, and write nothing in the unit's name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, cli, is_up, standin, unit, until

HOME = f"/var/cache/{SERVICE}"
SAID = "two\n<2>forged\x1b[2J\x1b]0;mine\x07\u202e"
# Listens where the service wants to; its name and its arguments are whatever a local user likes.
HOLDER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 8000))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        cli(machine, "deploy", *standin(standin_wheels))
        machine.write(f"/opt/{SAID}", HOLDER)
        yield machine


def lines_of_the_unit(machine: Machine) -> list[dict[str, object]]:
    machine.run("journalctl", "--sync")
    shown = machine.run("journalctl", f"--unit={SERVICE}", "--output=json", "--all").stdout
    return [json.loads(line) for line in shown.splitlines()]


def text_of(entry: dict[str, object]) -> str:
    message = entry["MESSAGE"]
    return bytes(message).decode(errors="replace") if isinstance(message, list) else str(message)


def is_harmless(text: str) -> None:
    assert text
    assert [code for code in ("\x1b", "\x07", "\u202e", "hunter2") if code in text] == []


def on_a_terminal(machine: Machine, *words: str) -> str:
    command = " ".join([sys.executable, "-m", "installer", *words])
    shown = machine.run(
        "script", "--quiet", "--return", "--command", command, "/dev/null", env={"TERM": "xterm"}, check=False
    )
    return shown.stdout


def test_a_local_user_on_our_port_says_nothing_in_our_name(machine: Machine) -> None:
    machine.run("systemctl", "stop", SERVICE)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with machine.start(*nobody, sys.executable, f"/opt/{SAID}", "--password", "hunter2") as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        machine.run("systemctl", "start", SERVICE, check=False)
        machine.run("journalctl", "--sync")
        is_harmless(unit(machine, "StatusText")["StatusText"])
        is_harmless(machine.run("systemctl", "status", SERVICE, check=False).stdout)
        for verb in ("status", "doctor", "logs"):
            shown = machine.cli(verb, check=False)
            is_harmless(shown.stdout + shown.stderr)
        assert "is held by pid" in machine.cli("logs", check=False).stdout
        holder.kill()
    entries = lines_of_the_unit(machine)
    assert not [entry for entry in entries if text_of(entry).startswith("forged") or entry.get("PRIORITY") == "2"]
    ours = [entry for entry in entries if "is held by pid" in text_of(entry)]
    assert {entry["PRIORITY"] for entry in ours} == {"3"}, "what ends a start is an error, for who asks the journal"
    assert {entry["SYSLOG_IDENTIFIER"] for entry in ours} == {SERVICE}
    machine.run("systemctl", "reset-failed", SERVICE)
    machine.run("systemctl", "start", SERVICE)
    until("it serves", lambda: is_up(machine), machine)


def test_what_vllm_prints_has_no_priority_of_its_own(machine: Machine) -> None:
    """As it prints a model_type that transformers does not know: word for word, in the middle of a traceback."""
    machine.write(f"{HOME}/standin", "last-words")
    machine.write(f"{HOME}/last-words", f"INFO {SAID}\n<2>forged: failed\n")
    machine.run("systemctl", "restart", SERVICE)
    machine.shell(f"rm {HOME}/standin {HOME}/last-words")
    entries = lines_of_the_unit(machine)
    assert not [entry for entry in entries if entry.get("PRIORITY") == "2"]
    assert [text_of(entry) for entry in entries if text_of(entry).startswith("<2>forged: failed")]
    for words in ((), ("-a",), ("-o", "cat"), ("-n", "100", "--all"), ("-o", "verbose", "-a")):
        is_harmless(machine.cli("logs", *words).stdout)
        shown = on_a_terminal(machine, "logs", *words)
        assert "forged" in shown or not words
        assert [code for code in ("\x1b[2J", "\x1b]0", "\x07", "\u202e") if code in shown] == []
    is_harmless(machine.cli("doctor", check=False).stdout)
