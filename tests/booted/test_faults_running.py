"""What goes wrong while a service runs: it goes on as it was, or is put back, and goes on serving."""

from __future__ import annotations

import itertools
import json
import re
import sys

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import MODEL, SERVICE, ask, cli, main_pid, serves, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
STATE = f"/var/lib/vllm-install/{SERVICE}/state.json"
HOME = f"/var/cache/{SERVICE}"  # of the service; the stand-in reads its faults there
ODD = """it's "50 %" ; $HOME ${x} %n #1 \\ é日"""


def as_it_was(machine: Machine, before: dict[str, str]) -> list[str]:
    """What differs beyond the record of what was tried."""
    return [
        line for line in difference(before, snapshot(machine.root, [HOME])) if not line.split()[1].startswith(STATE)
    ]


def goes_on(machine: Machine, key: str) -> None:
    serves(machine, key)
    assert ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"] == 1024
    assert cli(machine, "deploy", "--json").changes == []


# name -> (arguments, exit code, what is said); the service must not even notice
REFUSED = {
    "engine": (("--engine", "cuda"), 3, "NVIDIA"),
    "model": (("--model", "org/none"), 5, "org/none"),
    "directory": (("--model", "/srv/none"), 5, "/srv/none"),
    "version": (("--vllm-version", "0.99.0"), 4, "0.99.0"),
    "port": (("--port", "80"), 3, "port 80 needs a privilege"),
    "line end": (("--served-model-name", "a\nExecStart=/bin/sh"), 2, "line breaks"),
    "context": (("--context", "0"), 2, "context|max-model-len"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_change_is_not_even_noticed(machine: Machine, key: str, name: str) -> None:
    args, code, said = REFUSED[name]
    pid, before = main_pid(machine), snapshot(machine.root)
    done = cli(machine, "deploy", *args, code=code)
    assert re.search(said, done.err), done.err
    assert difference(before, snapshot(machine.root)) == []
    assert main_pid(machine) == pid
    serves(machine, key)


# name -> (what the stand-in does, arguments, what is said, and how it ends)
UNDONE = {
    "flag": (
        "",
        ("--", "--additional-config", "die-at-start=2"),
        "did not come up",
        f"{SERVICE}.service is back as it was",
    ),
    "context": ("refuse-context=2048", ("--context", "4096"), "set-context 2048", "the service is back at 1024"),
}


@pytest.mark.parametrize("name", UNDONE)
def test_a_change_that_does_not_serve_is_undone(machine: Machine, key: str, name: str) -> None:
    words, args, said, end = UNDONE[name]
    before = snapshot(machine.root, [HOME])
    machine.write(f"{HOME}/standin", words)
    try:
        done = cli(machine, "deploy", *args, code=6)
    finally:
        machine.at(f"{HOME}/standin").unlink()
    assert re.search(said, done.err), done.err
    assert end in done.err
    assert as_it_was(machine, before) == []
    assert json.loads(machine.at(STATE).read_text())["pending"] is None
    goes_on(machine, key)


POINTS = ("begin:1", "done:1", "effect:2:1", "done:2", "effect:3:2", "done:3")


# INT reaches the children of the command, too; TERM and HUP come by the same way, and are the same to it.
@pytest.mark.parametrize(("point", "signal"), [*itertools.product(POINTS, ("INT", "TERM")), ("done:2", "HUP")])
def test_an_interrupted_change_is_undone(machine: Machine, key: str, point: str, signal: str) -> None:
    before = snapshot(machine.root, [HOME])
    command = ("setsid", "--wait", sys.executable, "-m", "tests.kit.cut", signal, point, "deploy", "--context", "2048")
    done = machine.run(*command, check=False)
    assert done.returncode == 130, f"{done.stdout}\n{done.stderr}"
    assert f"interrupted by SIG{signal}" in done.stderr
    assert as_it_was(machine, before) == []
    goes_on(machine, key)


def test_an_edited_unit_is_shown_and_kept_until_told_otherwise(machine: Machine, key: str) -> None:
    pid, ours = main_pid(machine), machine.at(UNIT).read_text()
    machine.at(UNIT).write_text(ours.replace("[Service]\n", "[Service]\nNice=7\n"))
    before = snapshot(machine.root)
    for verb in ("plan", "deploy"):
        done = cli(machine, verb, code=3)
        assert f"{UNIT} was edited by hand" in done.err
        assert re.search(r"^ +\+Nice=7$", done.err, re.M), done.err
        assert "--discard-edits" in done.err
        assert f"systemctl edit {SERVICE}" in done.err
    assert difference(before, snapshot(machine.root)) == []
    cli(machine, "deploy", "--discard-edits")
    assert machine.at(UNIT).read_text() == ours
    assert main_pid(machine) == pid
    goes_on(machine, key)


def test_a_removed_unit_is_written_again(machine: Machine, key: str) -> None:
    machine.run("rm", UNIT)
    made = cli(machine, "deploy", "--json").json["api_key"]
    assert made, "the digests of the keys went with the unit, so a new key must be told"
    serves(machine, made)
    cli(machine, "set-apikey", "-", stdin=key)
    goes_on(machine, key)


def test_a_lost_probe_key_is_made_again(machine: Machine, key: str) -> None:
    pid = main_pid(machine)
    machine.run("rm", f"/var/lib/vllm-install/{SERVICE}/probe-key")
    cli(machine, "deploy")
    assert main_pid(machine) != pid, "the watcher would go on asking with the old one"
    goes_on(machine, key)


def test_a_port_taken_while_the_service_was_down_is_named(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", SERVICE)
    listen = "import socket; s = socket.create_server(('', 8000)); s.accept(); s.accept()"
    machine.run("systemd-run", "--quiet", "--unit=taker", "python3", "-c", listen)
    until("the port is taken", lambda: ":8000" in machine.run("ss", "-Hltn").stdout, machine)
    try:
        done = cli(machine, "deploy", code=3)
        assert re.search(r"port 8000 is taken: pid \d+ \(.*python.*\) of taker\.service", done.err), done.err
    finally:
        machine.run("systemctl", "stop", "taker")
    cli(machine, "deploy")
    goes_on(machine, key)


def test_odd_characters_arrive_as_they_are(machine: Machine, key: str) -> None:
    try:
        cli(machine, "deploy", "--served-model-name", ODD)
        assert ask(machine, "GET", "/v1/models", key).json["data"][0]["id"] == ODD
        assert cli(machine, "deploy", "--json").changes == []
        assert cli(machine, "status", "--json").json["model"] == ODD
    finally:
        cli(machine, "deploy", "--served-model-name", "")
    assert ask(machine, "GET", "/v1/models", key).json["data"][0]["id"] == MODEL
    goes_on(machine, key)


def test_a_damaged_record_is_reported_with_a_way_out(machine: Machine, key: str) -> None:
    pid, whole = main_pid(machine), machine.at(STATE).read_text()
    for damaged in ("{", whole[: len(whole) // 2], '{"version": 99}', "[]"):
        machine.at(STATE).write_text(damaged)
        for verb in ("status", "deploy"):
            done = machine.cli(verb, check=False)
            assert done.returncode in (1, 3), done
            assert STATE in done.stderr
            assert "help: " in done.stderr
            assert "Traceback" not in done.stderr
    machine.at(STATE).write_text(whole)
    assert main_pid(machine) == pid
    goes_on(machine, key)
