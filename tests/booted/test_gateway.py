"""The gateway in its sandbox takes the socket of an engine and gives it back, and its death costs no replica."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from installer.base.layout import Layout
from installer.forms.venv import python_of
from installer.spec.settings import Settings
from installer.spec.target import Replica
from installer.units.gateway import gateway_files
from tests.kit.boot.machine import Machine
from tests.kit.life import until
from tests.kit.load import Plan, load
from tests.kit.targets import target

LAYOUT = Layout("q")
PLACE = Path("/opt/vllm-install/runtime/here")
SETTINGS = Settings(service="q", host="127.0.0.1", port=8000, replicas=2)
MOST_EXPOSED = 1.5
# An engine of a few lines, on the socket that systemd keeps for its port, or by a door.
SERVER = f"""
import http.server, json, os, shutil, signal, socket, sys, threading
sys.path.insert(0, "{PLACE}")
import vllm_hold, vllm_systemd
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(b"{{}}", "application/json")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            self.answer(b'data: {{"choices": []}}\\n\\ndata: [DONE]\\n\\n', "text/event-stream")
        else:
            self.answer(b'{{"choices": []}}', "application/json")
    def answer(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler, bind_and_activate=False)
server.socket.close()
if sys.argv[1] == "kept":
    server.socket = vllm_hold.take("127.0.0.1", 8000, is_wanted=True) or vllm_hold.listen("127.0.0.1", 8000)
    vllm_hold.keep(vllm_hold.SOCKET, server.socket.fileno())
else:
    os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
    server.socket = socket.socket(socket.AF_UNIX)
    server.socket.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o660)
    shutil.chown(sys.argv[1], group="{LAYOUT.user}")
    server.socket.listen(100)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
vllm_systemd.notify("READY=1")
server.daemon_threads = False
server.serve_forever()
server.server_close()
"""
UNIT = """\
[Unit]
{more}
[Service]
Type=notify
KillMode=mixed
FileDescriptorStoreMax=4
ExecStart=/usr/bin/python3 /opt/server.py {words}
"""


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    """A new one for each test."""
    return boot()


def lay_out(machine: Machine) -> str:
    """The files of a service with two replicas; gives the gateway's unit, which is not written yet."""
    for path in RUNTIME.glob("vllm_*"):
        machine.write(PLACE / path.name, path.read_text())
    machine.write("/opt/server.py", SERVER)
    machine.run("groupadd", "--system", LAYOUT.user)
    made = dataclasses.replace(target(SETTINGS), replicas=(Replica(1, 9001), Replica(2, 9002)))
    python = python_of(LAYOUT.engines / made.engine.id)
    machine.at(python).parent.mkdir(parents=True)
    machine.at(python).symlink_to("/usr/bin/python3")
    for number in (1, 2):
        more = UNIT.format(more="PartOf=q.service", words=LAYOUT.door(number))
        machine.write(f"/etc/systemd/system/q@{number}.service", more)
    for path, text in gateway_files(made, LAYOUT, PLACE).items():
        if path != LAYOUT.unit:
            machine.write(path, text)
    return gateway_files(made, LAYOUT, PLACE)[LAYOUT.unit]


def turn_into(machine: Machine, unit: str) -> None:
    machine.write(LAYOUT.unit, unit)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "--job-mode=ignore-dependencies", "q.service")


def shown(machine: Machine, unit: str, name: str) -> str:
    return machine.run("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()


def engines(machine: Machine) -> list[str]:
    return [shown(machine, f"q@{number}.service", "MainPID") for number in (1, 2)]


def anew(machine: Machine, before: list[str]) -> bool:
    return machine.shell("pgrep -o haproxy || true").stdout.split() not in ([], before)


def test_the_gateway_in_its_sandbox(machine: Machine) -> None:
    gateway = lay_out(machine)
    bare = UNIT.format(more="", words="kept")
    machine.write(LAYOUT.unit, bare)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "q@1.service", "q@2.service", "q.service")
    with load(Plan(8000, "sk-1", rate=20), machine.start) as running:
        running.wait_for(20)
        turn_into(machine, gateway)
        assert shown(machine, "q.service", "User") == "gw-q"
        running.wait_for(60)
        pids = engines(machine)
        haproxy = machine.shell("pgrep -o haproxy").stdout.split()
        machine.run("kill", "-KILL", *haproxy)
        until("HAProxy is back", lambda: anew(machine, haproxy), machine)
        back_at = time.monotonic()
        assert engines(machine) == pids
        running.wait_for(40)
        machine.shell("sed -i 's/timeout tunnel 1h/timeout tunnel 2h/' /etc/vllm-install/q.haproxy.cfg")
        machine.run("systemctl", "reload", "q.service")
        running.wait_for(40)
        turn_into(machine, bare)
        running.wait_for(40)
    failures = running.result.failures
    print(f"{running.result.asked} asked, {failures}, longest wait {running.result.longest_wait:.1f} s")
    cut = sum(failures.get(f"{kind}: {what}", 0) for kind in ("new", "kept") for what in ("cut", "reset", "closed"))
    assert running.result.failed == cut, failures
    assert running.result.failed_since(back_at) == {}, "those whom HAProxy had when it was killed, and no others"
    told = machine.shell("systemctl stop q.service; systemctl is-failed q.service || true").stdout.strip()
    assert told == "inactive"


def test_it_is_exposed_no_more_than_it_has_to_be(machine: Machine) -> None:
    machine.write(LAYOUT.unit, lay_out(machine))
    machine.run("systemctl", "daemon-reload")
    said = machine.run("systemd-analyze", "security", "--no-pager", "q.service").stdout
    print(said)
    found = re.search(r"Overall exposure level for q.service: ([\d.]+)", said)
    assert found
    assert float(found[1]) <= MOST_EXPOSED
