"""Logs leave a real journal for a real journal-remote and a stand-in of Loki, each line once, whatever is killed."""

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

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import SERVICE, ask, cli, standin, unit, until

pytestmark = pytest.mark.root
REMOTE = Path("/usr/lib/systemd/systemd-journal-remote")
SHIPPER = "vllm-install-logs"
TAKEN, REMOTES = "/var/tmp/taken", "/var/tmp/of.journal"
KEY = "q7Xw2_Vb9.Lm4+Zt8Kp1Rs6Hd3"
PLANTED = f"planted {KEY} prompt: the-patient-is-called-Miller"
# Keeps what it takes, and takes nothing while the file beside that says another status.
LOKI = f"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = int(open("{TAKEN}.status").read())
        if status == 204:
            with open("{TAKEN}", "ab") as file:
                file.write(body + b"\\n")
        self.send_response(status)
        self.end_headers()
    def log_message(self, *words): ...
http.server.ThreadingHTTPServer(("127.0.0.1", 3100), Handler).serve_forever()
"""
LISTENING = ("ss", "--no-header", "--listening", "--tcp", "sport", "=", ":3100", "or", "sport", "=", ":19532")
# As root does in the name of the service.
SAY = f"""
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
    for text in sys.argv[1:]:
        entry = f"MESSAGE={{text}}\\nOBJECT_SYSTEMD_UNIT={SERVICE}.service\\n"
        journal.sendto(entry.encode(), "/run/systemd/journal/socket")
"""


class Sent(NamedTuple):
    machine: Machine
    bare: dict[str, str]
    servers: list[subprocess.Popen[str]]

    def listen(self) -> None:
        """Those who take logs, as processes of the machine, which end with it."""
        machine = self.machine
        servers = [machine.start(sys.executable, "-c", LOKI)]
        if REMOTE.exists():
            servers.append(machine.start(REMOTE, "--listen-http=19532", f"--output={REMOTES}", "--split-mode=none"))
        until("all listen", lambda: machine.run(*LISTENING).stdout.count("LISTEN") == len(servers), machine)
        self.servers[:] = servers

    def end(self) -> None:
        for server in self.servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()

    def say(self, *texts: str) -> None:
        self.machine.run(sys.executable, "-c", SAY, *texts)

    def answers(self, status: int) -> None:
        self.machine.write(f"{TAKEN}.status", str(status))

    def loki(self) -> list[str]:
        """The messages that it took."""
        path = self.machine.at(TAKEN)
        pushed = [json.loads(body) for body in path.read_text().splitlines()] if path.exists() else []
        return [
            json.loads(line)["message"] for body in pushed for each in body["streams"] for _, line in each["values"]
        ]

    def remote(self) -> list[dict[str, Any]]:
        shown = self.machine.run("journalctl", f"--file={REMOTES}", "--output=json", "--all").stdout
        return [json.loads(line) for line in shown.splitlines()]

    def times_that_it_waited(self) -> int:
        return self.machine.journal("--unit", SHIPPER).count("logs wait in the journal")


@pytest.fixture(scope="module")
def sent(standin_wheels: Path) -> Iterator[Sent]:
    with Machine() as machine:
        cli(machine, "deploy", *standin(standin_wheels))
        cli(machine, "set-apikey", "--name", "kunde", "-", stdin=KEY)
        sent = Sent(machine, snapshot(machine.root), [])
        sent.answers(204)
        sent.listen()
        yield sent
        sent.end()


@pytest.mark.skipif(not REMOTE.exists(), reason="scripts/host-packages machine installs it")
def test_a_real_journal_remote_has_what_service_and_systemd_say(sent: Sent) -> None:
    machine = sent.machine
    cli(machine, "monitor", "logs", "--to", "journal-remote", "http://127.0.0.1:19532")
    machine.run("logger", "of a stranger")
    sent.say(PLANTED)
    machine.run("systemctl", "reload", SERVICE)
    assert ask(machine, "GET", "/v1/models").status == 401
    until("it is there", lambda: any(str(each["MESSAGE"]).endswith(": no key") for each in sent.remote()), machine)
    found = sent.remote()
    texts = [each["MESSAGE"] for each in found]
    assert texts.count("planted [secret] prompt: [a request]") == 1
    assert "of a stranger" not in texts
    assert not any("_CMDLINE" in each for each in found)
    assert f"{SERVICE}.service" in {each.get("UNIT") for each in found}, "what systemd says of it"
    assert f"{SERVICE}.service" in {each.get("_SYSTEMD_UNIT") for each in found}, "what it says itself"


def test_what_is_not_taken_waits_and_comes_once_whatever_is_killed(sent: Sent) -> None:
    machine = sent.machine
    cli(machine, "monitor", "logs", "--to", "loki", "http://127.0.0.1:3100")
    sent.answers(503)
    sent.say(PLANTED)
    until("it waits", lambda: sent.times_that_it_waited() == 1, machine)
    machine.run("systemctl", "kill", "--signal=KILL", SHIPPER)
    later = [f"later-{number}" for number in range(30)]
    sent.say(*later)
    until("it waits again", lambda: sent.times_that_it_waited() == 2, machine)
    machine.cut_power()
    sent.end()
    machine.boot()
    sent.listen()
    until("it waits on", lambda: sent.times_that_it_waited() == 3, machine)
    sent.answers(204)
    until("all is taken", lambda: later[-1] in sent.loki(), machine)
    machine.run("systemctl", "kill", "--signal=KILL", SHIPPER)
    sent.say("the last")
    until("it goes on", lambda: "the last" in sent.loki(), machine)
    ours = ["planted [secret] prompt: [a request]", *later, "the last"]
    assert [text for text in sent.loki() if text in ours] == ours
    assert "called-Miller" not in machine.at(TAKEN).read_text()


def test_it_is_a_user_who_is_nobody_and_leaves_nothing(sent: Sent) -> None:
    machine = sent.machine
    assert cli(machine, "monitor", "logs").out == "logs go to http://127.0.0.1:3100 (loki)\n"
    assert machine.run("systemctl", "is-enabled", SHIPPER).stdout == "enabled\n"
    pid = unit(machine, "MainPID", service=SHIPPER)["MainPID"]
    assert machine.run("ps", "-o", "uid=", "-p", pid).stdout.strip() != "0"
    cli(machine, "monitor", "logs", "--off")
    assert cli(machine, "monitor", "logs").out == "logs stay on this host\n"
    machine.shell(f"rm -f {TAKEN}* {REMOTES}*")
    assert difference(sent.bare, snapshot(machine.root)) == []
