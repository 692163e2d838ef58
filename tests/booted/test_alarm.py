"""An admin is told by a real systemd, of failures and changes, whoever listens; and no word of a client leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.booted.test_look import watched
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import SERVICE, cli, is_gone, main_pid, serves, standin, unit, until

HOOK = "/var/tmp/hook"
FAULTS = f"/var/cache/{SERVICE}/standin"
KEY = "q7Xw2_Vb9.Lm4+Zt8Kp1Rs6Hd3"
PROMPT = "the-patient-is-called-Miller"
# Answers as the file beside it says: a status, or nothing at all.
SERVER = f"""
import http.server, json, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        how = open("{HOOK}.how").read().strip()
        with open("{HOOK}." + ("came" if self.path.startswith("/T0") else "logs"), "ab") as file:
            file.write(body + b"\\n")
        if how == "silent":
            time.sleep(3600)
        self.send_response(int(how))
        self.send_header("Location", "http://127.0.0.1:7999/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *words): ...
http.server.ThreadingHTTPServer(("127.0.0.1", 7999), Handler).serve_forever()
"""
# A command of the admin's: what it got, and who it is, goes into the journal.
PROGRAM = """#!/bin/sh
logger -t told-by-command "uid $(id -u) word $1 $(cat)"
touch /etc/written 2>/dev/null && logger -t told-by-command "it can write"
exit 0
"""


class Told(NamedTuple):
    machine: Machine
    key: str
    server: subprocess.Popen[str]

    def answers(self, how: str) -> None:
        self.machine.write(f"{HOOK}.how", how)

    @property
    def came(self) -> list[dict[str, Any]]:
        path = self.machine.at(f"{HOOK}.came")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def news(self, kind: str) -> list[str]:
        return [news["text"] for message in self.came for news in message["news"] if news["kind"] == kind]

    def until(self, kind: str, words: str) -> None:
        until(f"{kind}: {words}", lambda: any(words in text for text in self.news(kind)), self.machine)


@pytest.fixture(scope="module")
def told(standin_wheels: Path) -> Iterator[Told]:
    with Machine() as machine:
        bare = snapshot(machine.root)
        machine.write(f"{HOOK}.how", "200")
        machine.write("/opt/tell", PROGRAM, 0o755)
        server = machine.start(sys.executable, "-c", SERVER)
        key = cli(machine, "deploy", *standin(standin_wheels)).key
        pid = main_pid(machine)
        cli(machine, "set", "NOTIFY_URL=http://127.0.0.1:7999/T0/very-secret", "NOTIFY_COMMAND=/opt/tell '$(id)'")
        assert main_pid(machine) == pid, "nothing is started anew for it"
        yield Told(machine, key, server)
        os.killpg(server.pid, signal.SIGKILL)
        machine.shell(f"rm -f {HOOK}* /opt/tell")
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare, [SERVICE])


def test_the_change_that_began_it_is_told_to_both(told: Told) -> None:
    told.until("changed", ": proved")
    until("the command is told", lambda: "uid " in told.machine.journal("--identifier=told-by-command"), told.machine)
    said = told.machine.journal("--identifier=told-by-command", "--output=cat")
    assert not said.startswith("uid 0 "), "a user who is nobody"
    assert "word $(id) {" in said, "no shell read it"
    assert "it can write" not in said


def test_a_failure_is_told_with_what_doctor_says_and_no_word_of_a_client(told: Told) -> None:
    machine = told.machine
    cli(machine, "set-apikey", "--name", "kunde", "-", stdin=KEY)
    told.until("changed", "set-apikey kunde: proved")
    words = f"torch.OutOfMemoryError: CUDA out of memory. {KEY} prompt: {PROMPT}"
    machine.write(f"/var/cache/{SERVICE}/last-words", f"ValueError: {PROMPT} {KEY}\n{words}\n")
    machine.write(f"/etc/systemd/system/{SERVICE}.service.d/once.conf", "[Service]\nRestart=no\n")
    machine.write(FAULTS, "last-words")
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE} || :")
    told.until("failed", "qwen3vl failed, and is not started again by itself")
    message = next(each for each in told.came if each["findings"])
    doctor = cli(machine, "doctor", "--json", code=8).json
    assert message["findings"][0]["id"] == doctor["findings"][0]["id"]
    assert PROMPT in json.dumps(doctor), "the line that shows it is for who may see it"
    everything = machine.at(f"{HOOK}.came").read_text() + machine.journal("--identifier=told-by-command")
    assert KEY not in everything
    assert PROMPT not in everything
    machine.shell(f"rm -r /etc/systemd/system/{SERVICE}.service.d {FAULTS}; systemctl daemon-reload")
    machine.run("systemctl", "restart", SERVICE)
    until("it serves", lambda: unit(machine, "ActiveState")["ActiveState"] == "active", machine)
    machine.run("systemctl", "start", f"vllm-alarm@{SERVICE}.service")
    told.until("recovered", "it serves again")


def test_a_change_that_is_undone_is_told(told: Told) -> None:
    cli(told.machine, "set", "VLLM_ARGS=--additional-config last-words", code=6)
    told.until("undone", "did not come up")
    serves(told.machine, told.key)


@pytest.fixture
def impatient(told: Told) -> Iterator[None]:
    """Who tells waits three seconds instead of thirty."""
    (program,) = told.machine.at("/opt/vllm-install/runtime").glob("*/vllm_notify.py")
    ours = program.read_text()
    program.write_text(ours.replace("WITHIN = 30 ", "WITHIN = 3 "))
    yield
    program.write_text(ours)


@pytest.mark.parametrize("how", ["500", "302", "silent"])
def test_one_that_does_not_take_it_is_said_and_counted(told: Told, impatient: None, how: str) -> None:
    machine = told.machine
    told.answers(how)
    before = cli(machine, "alarm", "--json").json["failures"]
    done = cli(machine, "alarm", "--test", code=1)
    assert "one of two did not take the message" in done.err
    assert cli(machine, "alarm", "--json").json["failures"] == before + 1
    said = machine.journal("--unit", f"vllm-notify@{SERVICE}.service")
    assert ("longer than 3 s" if how == "silent" else f"answers {how}") in said or "timed out" in said
    assert "very-secret" not in said
    assert "one of two did not take the message" in machine.journal("--unit", SERVICE)
    told.answers("200")


def test_all_services_are_on_one_screen(told: Told) -> None:
    assert SERVICE in watched(told.machine, 100, "list", "active, serving")
