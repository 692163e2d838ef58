"""Replicas behind the gateway, from one to several and back, under requests: none of them fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from tests.booted.test_kill import cut
from tests.booted.test_look import as_nobody
from tests.kit import adapter
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO
from tests.kit.life import SERVICE, ask, cli, engine_pid, is_up, server_pid, serves, unit, until
from tests.kit.load import Plan, load

pytestmark = pytest.mark.root
MEMBERS = (f"{SERVICE}@1", f"{SERVICE}@2")
STREAMS = {"cut", "error"}  # how one fails that had begun: what had not is repeated
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
DOORS = "/run/vllm-install"
# Listens where a replica did, says that it is well, and tells what it is asked.
IMPOSTOR = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.requestline, flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_POST = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("listens", flush=True)
server.serve_forever()
"""
SCHEMA = json.loads((REPO / "docs/status-schema.json").read_text())


@pytest.fixture(autouse=True)
def _it_serves_before_and_after(machine: Machine, key: str) -> Iterator[None]:
    serves(machine, key)
    yield
    serves(machine, key)


@contextlib.contextmanager
def asked(machine: Machine, key: str, bulk: int = 0) -> Iterator[Lost]:
    """All the while, ten requests a second and clients that keep their connections: each is answered.

    But for streams that had begun when the gateway came to know that a member is lost, where the test says so.
    """
    lost = Lost()
    with load(Plan(8000, key, bulk=bulk), machine.start) as running:
        running.wait_for(10)
        yield lost
        running.wait_for(10)
    seen = running.result
    print(f"asked {seen.asked}, failed {seen.failed} {seen.failures}, longest wait {seen.longest_wait:.1f} s")
    assert seen.failed_since(lost.known_at) == {}, machine.evidence()
    assert {kind.split()[1] for kind in seen.failures} <= STREAMS, seen.failures


@dataclass
class Lost:
    known_at: float = 0.0

    def await_another_run(self, machine: Machine, number: int, before: str) -> None:
        """Of a member that was lost just now."""
        until("the gateway knows", lambda: is_known_lost(machine, number, before), machine)
        self.known_at = time.monotonic()
        until("another run is up", lambda: runs(machine)[number] != before and all_are_up(machine), machine)


@contextlib.contextmanager
def drop_in(machine: Machine, text: str) -> Iterator[None]:
    """Of the second member: gone afterwards, or one test that fails would fail those after it."""
    path = f"/etc/systemd/system/{MEMBERS[1]}.service.d/test.conf"
    machine.write(path, text)
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        machine.at(path).unlink()
        machine.run("systemctl", "daemon-reload")


def is_known_lost(machine: Machine, number: int, before: str) -> bool:
    return not all_are_up(machine) or runs(machine)[number] != before


def all_are_up(machine: Machine) -> bool:
    return gateway_asks(machine) == ["UP", "UP"]


def contexts(machine: Machine, key: str) -> list[int]:
    """What each member serves, asked directly."""
    ports = [port(machine, name) for name in MEMBERS]
    asked = (ask(machine, "GET", "/v1/models", key, port=port).json for port in ports)
    return [models["data"][0]["max_model_len"] for models in asked]


def port(machine: Machine, name: str) -> int:
    found = re.search(r"--port (\d+)", machine.at(f"/etc/systemd/system/{name}.service").read_text())
    assert found
    return int(found[1])


def runs(machine: Machine) -> list[str]:
    """Which run of each unit this is."""
    return [unit(machine, "InvocationID", service=name)["InvocationID"] for name in (SERVICE, *MEMBERS)]


def moment(machine: Machine, what: str, name: str) -> int:
    """When that happened to the unit last."""
    stamp = f"{what}TimestampMonotonic"
    return int(unit(machine, stamp, service=name)[stamp])


def active(machine: Machine) -> list[str]:
    return [unit(machine, "ActiveState", service=name)["ActiveState"] for name in (SERVICE, *MEMBERS)]


def gateway_asks(machine: Machine) -> list[str | None]:
    """What the gateway holds each member for."""
    said = machine.cli("status", "--json", check=False).stdout
    return [member["gateway"] for member in json.loads(said)["members"]]


def test_from_one_to_two_no_request_fails(machine: Machine, key: str) -> None:
    with asked(machine, key):
        cli(machine, "set", "REPLICAS=2")
    assert active(machine) == ["active"] * 3
    assert contexts(machine, key) == [1024, 1024]
    assert ask(machine, "GET", "/v1/models", port=port(machine, MEMBERS[1])).status == 401
    assert cli(machine, "deploy", "--json").changes == []


def test_a_change_goes_one_member_at_a_time_and_no_request_fails(machine: Machine, key: str) -> None:
    """An adapter among it: the gateway may send whoever asks for it to either."""
    before = runs(machine)
    adapter.write(machine.at("/srv/adapters/sql"))
    with asked(machine, key):
        cli(machine, "set", "MAX_MODEL_LEN=2048", "LORA=sql=/srv/adapters/sql")
    assert contexts(machine, key) == [2048, 2048]
    for at in (8000, *(port(machine, name) for name in MEMBERS)):
        served = ask(machine, "GET", "/v1/models", key, port=at).json["data"]
        assert [model["id"] for model in served] == ["builtin:tiny", "sql"]
        answer = ask(machine, "POST", "/v1/completions", key, {"model": "sql", "prompt": "Hi", "max_tokens": 2}, at)
        assert answer.status == 200, answer
    assert [now == then for now, then in zip(runs(machine), before, strict=True)] == [True, False, False]


def test_what_fails_in_the_second_member_is_undone_in_the_first(machine: Machine, key: str) -> None:
    fault = "[Service]\nEnvironment=VLLM_STANDIN=refuse-context=2048\n"
    with drop_in(machine, fault), asked(machine, key):
        said = cli(machine, "set-context", "4096", code=6).err
    assert "this GPU fits 2048" in said or "the service is back at 2048" in said
    back, out = (moment(machine, *which) for which in (("ActiveEnter", MEMBERS[1]), ("InactiveEnter", MEMBERS[0])))
    assert back < out, "who failed serves again before the other makes way"
    assert contexts(machine, key) == [2048, 2048]
    assert cli(machine, "deploy", "--json").changes == []


@pytest.mark.parametrize("bulk", [0, 20 << 10, 300 << 10])
def test_one_member_that_is_killed_costs_what_it_was_answering_at_most(machine: Machine, key: str, bulk: int) -> None:
    before = runs(machine)[1]
    with asked(machine, key, bulk) as lost:
        machine.run("kill", "-KILL", str(engine_pid(machine, MEMBERS[0])))
        lost.await_another_run(machine, 1, before)


def test_one_member_that_hangs_is_ended_and_costs_what_it_was_answering_at_most(machine: Machine, key: str) -> None:
    """Its web server goes on and says that all is well: the watcher sees that nothing moves."""
    with drop_in(machine, "[Service]\nWatchdogSec=10\n"):
        with asked(machine, key):
            machine.run("systemctl", "restart", MEMBERS[1])
        before = runs(machine)[2]
        with asked(machine, key) as lost:
            machine.run("kill", "-STOP", str(engine_pid(machine, MEMBERS[1])))
            lost.await_another_run(machine, 2, before)


def test_whoever_takes_the_port_of_a_member_that_is_stopped_is_asked_nothing(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", MEMBERS[1])
    left = machine.shell(f"ls {DOORS}/*.sock").stdout
    assert left == f"{DOORS}/{MEMBERS[0]}.sock\n", "nor is anybody who had the other"
    taker = machine.start(*NOBODY, "/usr/bin/python3", "-c", IMPOSTOR, str(port(machine, MEMBERS[1])))
    assert taker.stdout
    assert taker.stdout.readline() == "listens\n"
    for _ in range(20):
        assert ask(machine, "GET", "/v1/models", key).status == 200
    assert gateway_asks(machine) == ["UP", "DOWN"]
    os.killpg(taker.pid, signal.SIGKILL)
    assert taker.communicate()[0] == ""
    machine.run("systemctl", "start", MEMBERS[1])
    until("all are up", lambda: all_are_up(machine), machine)


def test_nobody_but_the_gateway_fills_the_queue_of_a_member(machine: Machine, key: str) -> None:
    """It would hold the member for down: by a path there is room at once or there is none."""
    knock = f"import socket; socket.socket(socket.AF_UNIX).connect('{DOORS}/{MEMBERS[1]}.sock')"
    done = machine.run(*NOBODY, "/usr/bin/python3", "-c", knock, check=False)
    assert "PermissionError" in done.stderr
    assert gateway_asks(machine) == ["UP", "UP"]


def test_what_is_done_to_the_name_is_done_to_all(machine: Machine, key: str) -> None:
    before = runs(machine)
    machine.run("systemctl", "restart", SERVICE)
    until("all are up", lambda: active(machine) == ["active"] * 3, machine)
    assert not set(before) & set(runs(machine))
    machine.run("systemctl", "stop", SERVICE)
    until("all are down", lambda: active(machine) == ["inactive"] * 3, machine)
    machine.run("systemctl", "start", SERVICE)
    until("all are up", lambda: active(machine) == ["active"] * 3, machine)


def test_a_change_that_is_cut_off_anywhere_is_settled_by_the_next_command(machine: Machine, key: str) -> None:
    words = ("set", "MAX_MODEL_LEN=1024")
    planned = [change["kind"] for change in cli(machine, *words, "--dry-run", "--json").changes]
    drained, renewed = planned.index("drain") + 1, len(planned) - planned[::-1].index("restart")
    for number, left in ((drained, [2048, 2048]), (renewed, [1024, 1024])):
        cut(machine, f"done:{number}", *words)
        assert contexts(machine, key) == left
        assert "cut off" in cli(machine, "set-context", "2048").err
        assert contexts(machine, key) == [2048, 2048]
        assert cli(machine, "deploy", "--json").changes == []


def test_from_two_to_one_no_request_fails_and_nothing_is_left(machine: Machine, key: str) -> None:
    with asked(machine, key):
        cli(machine, "set", "REPLICAS=1", "LORA=")
    shutil.rmtree(machine.at("/srv/adapters"))
    assert active(machine) == ["active", "inactive", "inactive"]
    assert not list(machine.at("/etc/systemd/system").glob(f"{SERVICE}@*"))
    assert cli(machine, "deploy", "--json").changes == []


# Keys, and what shows a service: on two again


@pytest.fixture(scope="module")
def two(machine: Machine, key: str) -> Machine:
    cli(machine, "set", "REPLICAS=2")
    return machine


def opens(machine: Machine, key: str) -> list[int]:
    """How each member answers it directly, and the gateway."""
    ports = (*(port(machine, name) for name in MEMBERS), 8000)
    return [ask(machine, "GET", "/v1/models", key, port=port).status for port in ports]


def test_a_key_is_rotated_and_revoked_on_both_and_no_request_fails(two: Machine, key: str) -> None:
    old = cli(two, "set-apikey", "--name", "leaked").key
    with asked(two, key):
        for _ in range(3):
            new = cli(two, "set-apikey", "--name", "leaked").key
            assert (opens(two, old), opens(two, new)) == ([401] * 3, [200] * 3)
            old = new
        cli(two, "keys", "revoke", "leaked")
        assert opens(two, old) == [401] * 3
    assert cli(two, "deploy", "--json").changes == []


def test_a_member_that_is_down_has_the_keys_of_now_when_it_comes_back(two: Machine, key: str) -> None:
    leaked = cli(two, "set-apikey", "--name", "leaked").key
    two.run("systemctl", "stop", MEMBERS[1])
    cli(two, "keys", "revoke", "leaked")
    new = cli(two, "set-apikey", "--name", "new").key
    two.run("systemctl", "start", MEMBERS[1])
    until("it is up", lambda: is_up(two, MEMBERS[1]), two)
    assert [opens(two, each) for each in (leaked, new)] == [[401] * 3, [200] * 3]


def test_a_member_that_hangs_keeps_no_leaked_key_and_takes_no_new_one(two: Machine, key: str) -> None:
    leaked, pid = cli(two, "set-apikey", "--name", "leaked").key, server_pid(two, MEMBERS[1])
    two.run("kill", "-STOP", str(pid))
    try:
        assert "the keys are as they were" in cli(two, "set-apikey", "--name", "more", code=6).err
        assert "keys revoke leaked is in force and stays so" in cli(two, "keys", "revoke", "leaked", code=6).err
        assert ask(two, "GET", "/v1/models", leaked, port=port(two, MEMBERS[0])).status == 401
    finally:
        two.run("kill", "-CONT", str(pid))
    until("it answers", lambda: opens(two, key) == [200] * 3, two)
    assert opens(two, leaked) == [401] * 3
    assert not {"leaked", "more"} & {line.split()[0] for line in cli(two, "keys").out.splitlines()}


def test_what_shows_a_service_shows_a_member_that_was_killed(two: Machine, key: str) -> None:
    shown = json.loads(cli(two, "status", "--json").out)
    jsonschema.validate(shown, SCHEMA)
    assert [(each["ready"], each["gateway"]) for each in shown["members"]] == [(True, "UP")] * 2
    assert "nothing is wrong" in cli(two, "doctor").out
    code, out, err = as_nobody(two, "status", "--json")
    assert (code, json.loads(out)["listening"], json.loads(out)["members"][0]["gateway"]) == (0, True, None), err
    assert "send no key" not in as_nobody(two, "client-config", "--format", "env")[2]
    drop_in = f"/etc/systemd/system/{MEMBERS[0]}.service.d/dead.conf"
    two.write(drop_in, "[Service]\nRestart=no\n")
    two.shell(f"systemctl daemon-reload; systemctl kill --signal=KILL {MEMBERS[0]}")
    shown = until("it is seen", lambda: seen_dead(two), two)
    jsonschema.validate(shown, SCHEMA)
    assert (shown["ready"], shown["stage"]) == (True, "1 of 2 replicas serve")
    assert re.search(r"^ *replica 1  failed \(", cli(two, "status").out, re.MULTILINE)
    assert f"  {MEMBERS[0]} " in cli(two, "list").out
    found = json.loads(cli(two, "doctor", "--json", code=8).out)["findings"]
    assert [each["cause"] for each in found if each["cause"].startswith(f"{MEMBERS[0]}: ")]
    assert not [each["cause"] for each in found if each["cause"].startswith(f"{MEMBERS[1]}: ")]
    cli(two, "test", "--member", "2")
    cli(two, "test")
    two.at(drop_in).unlink()
    two.shell(f"systemctl daemon-reload; systemctl reset-failed {MEMBERS[0]}; systemctl start {MEMBERS[0]}")
    said = cli(two, "logs", "-n", "2000").out
    assert all(f"{name}[" in said for name in (SERVICE, *MEMBERS))


def seen_dead(machine: Machine) -> dict[str, Any] | None:
    shown = json.loads(machine.cli("status", "--json").stdout)
    return dict(shown) if shown["members"][0]["active"].startswith("failed") else None


def test_doctor_finds_a_member_that_was_left_out_and_a_deploy_brings_it_back(two: Machine, key: str) -> None:
    drain = "haproxy.drain(Host(), Layout('qwen3vl'), 1, 0)"
    imports = "from installer.base.host import Host; from installer.base.layout import Layout"
    two.run(sys.executable, "-c", f"{imports}; from installer.units import haproxy; {drain}")
    found = json.loads(cli(two, "doctor", "--json", code=8).out)["findings"]
    assert [(each["id"], each["commands"]) for each in found if each["severity"] == "fault"] == [
        ("replica-out", [f"sudo vllm-install deploy --service {SERVICE}"])
    ]
    cli(two, "deploy")
    assert "fault" not in cli(two, "doctor").out
