"""Callers of a real unit through restarts, crashes and changes: none of them is refused, and a stop means stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.life import (
    SERVICE,
    ask,
    cli,
    engine_pid,
    is_up,
    main_pid,
    processes,
    serves,
    standin,
    taken,
    unit,
    until,
)
from tests.kit.load import Plan, load

UNIT = f"/etc/systemd/system/{SERVICE}.service"
FAULTS = f"/var/cache/{SERVICE}/standin"
DROP_IN = f"{UNIT}.d/override.conf"
AT_ONCE = "RestartSec=0\n"  # not after five seconds, in which nothing happens

IN_FLIGHT = ("500", "RemoteDisconnected", "ConnectionResetError", "IncompleteRead", "BrokenPipeError")

WORDS = 20
RESTARTS = int(os.environ.get("RESTARTS", "6"))  # one more than the unit's start limit; 20 by hand
# Asks again and again, several at once, each time on a new connection; tells at the end of its input what came back.
LOAD = """
import collections, http.client, json, sys, threading
seen, over = collections.Counter(), threading.Event()
def client():
    while not over.is_set():
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=300)
            body = json.dumps({"model": "builtin:tiny", "prompt": "Hi", "max_tokens": 4})
            headers = {"Authorization": "Bearer " + sys.argv[1], "Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            seen[str(answer.status)] += 1
        except Exception as error:
            seen[type(error).__name__] += 1
        over.wait(0.05)
threads = [threading.Thread(target=client) for _ in range(8)]
[thread.start() for thread in threads]
print("asking", flush=True)
sys.stdin.read()
over.set()
[thread.join() for thread in threads]
print(json.dumps(seen))
"""

# Has the socket that a service listens with, as if its engine had given it away.
ACCOMPLICE = """
import ctypes, os, sys
pid, port = sys.argv[1:]
rows = [line.split() for line in open("/proc/net/tcp")]
(inode,) = (row[9] for row in rows if row[3] == "0A" and row[1].endswith(f":{int(port):04X}"))
folder = f"/proc/{pid}/fd"
(number,) = (each for each in os.listdir(folder) if os.readlink(f"{folder}/{each}") == f"socket:[{inode}]")
PIDFD_GETFD = 438
assert ctypes.CDLL(None).syscall(PIDFD_GETFD, os.pidfd_open(int(pid)), int(number), 0) > 0
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def key(machine: Machine, standin_wheels: Path) -> str:
    return cli(machine, "deploy", *standin(standin_wheels)).key


@pytest.fixture(autouse=True)
def _it_serves_before_and_after(machine: Machine, key: str) -> Iterator[None]:
    machine.run("systemctl", "reset-failed", SERVICE, check=False)
    serves(machine, key)
    yield
    until("it serves again", lambda: is_up(machine), machine)
    serves(machine, key)
    until("supervisor, watcher, vLLM, its engine", lambda: len(processes(machine)) == 4, machine)
    assert unit(machine, "NFileDescriptorStore") == {"NFileDescriptorStore": "2"}


@contextlib.contextmanager
def asked(machine: Machine, key: str, *, may_fail: tuple[str, ...] = ()) -> Iterator[None]:
    """All the while, requests: each of them is answered, but for what may be."""
    with machine.start("/usr/bin/python3", "-c", LOAD, key) as load:
        assert load.stdout is not None
        assert load.stdout.readline() == "asking\n"
        try:
            yield
        finally:
            said = load.communicate("", timeout=600)[0]
    seen = json.loads(said)
    assert set(seen) <= {"200", *may_fail}, f"{seen}\n{machine.evidence()}"
    assert seen["200"] > 0


@contextlib.contextmanager
def changed(machine: Machine, context: int, fault: str = "") -> Iterator[None]:
    """The unit says another context, and what goes wrong with it; afterwards again what it said before."""
    ours = machine.at(UNIT).read_text()
    text = re.sub(r"--max-model-len \d+", f"--max-model-len {context}", ours)
    more = f"[Service]\nEnvironment=VLLM_STANDIN={fault}\n{AT_ONCE}"
    machine.write(UNIT, text.replace("[Install]", f"{more}\n[Install]"))
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        machine.write(UNIT, ours)
        machine.run("systemctl", "daemon-reload")
        until("it is up", lambda: is_up(machine), machine)
        assert machine.run("systemctl", "reload", SERVICE, check=False).returncode == 0, machine.evidence()


def context(machine: Machine, key: str) -> int:
    return int(ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"])


def status_text(machine: Machine) -> str:
    return unit(machine, "StatusText")["StatusText"]


def named(machine: Machine, name: str) -> list[int]:
    return [pid for pid, line in processes(machine).items() if name in line]


def supervisors(machine: Machine) -> list[int]:
    return named(machine, "vllm_supervisor.py")


# Held


def test_a_restart_refuses_nobody(machine: Machine, key: str) -> None:
    with asked(machine, key):
        machine.run("systemctl", "restart", SERVICE)
        assert taken(machine) == ""


def test_many_restarts_in_a_row_cost_nobody_anything(machine: Machine, key: str) -> None:
    """New connections and clients that keep theirs, plain and streaming."""
    again = f"for i in $(seq {RESTARTS}); do systemctl restart {SERVICE}; done"
    with load(Plan(8000, key), machine.start) as running:
        running.wait_for(10)
        machine.shell(again)
        running.wait_for(10)
    seen = running.result
    print(f"asked {seen.asked}, failed {seen.failures}, longest wait {seen.longest_wait:.1f} s")
    assert seen.failures == {}, machine.evidence()


def test_an_answer_that_has_begun_comes_to_its_end_over_a_restart(machine: Machine, key: str) -> None:
    """Word by word on its old connection, while others wait for the next engine."""
    machine.write(FAULTS, "token-seconds=1")
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.sock = machine.connect(8000)
    body = json.dumps({"model": "builtin:tiny", "prompt": "Hi", "max_tokens": WORDS, "stream": True})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    began = answer.readline()
    machine.write(FAULTS, "hang")  # so that it is stopped in the middle of the answer
    restarting = machine.start("systemctl", "restart", SERVICE)
    until("it is stopping", lambda: unit(machine, "SubState")["SubState"].startswith("stop"), machine)
    machine.at(FAULTS).unlink()
    with asked(machine, key):
        said = began + answer.read()
    assert (said.count(b'"text"'), said.endswith(b"data: [DONE]\n\n")) == (WORDS, True), said
    assert restarting.wait(300) == 0


def test_a_stop_refuses_everybody_at_once(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", SERVICE)
    assert ":8000" not in machine.run("ss", "-Hltn").stdout
    assert unit(machine, "NFileDescriptorStore") == {"NFileDescriptorStore": "0"}
    machine.run("systemctl", "start", SERVICE)


@pytest.mark.parametrize("victim", ["vllm_supervisor.py", "vllm_listen.py", "VLLM::EngineCore"])
def test_a_crash_costs_only_what_was_under_way(machine: Machine, key: str, victim: str) -> None:
    """systemd waits before it starts the unit anew: meanwhile nobody but itself has the socket."""
    pid = main_pid(machine)
    machine.write(DROP_IN, "[Service]\nRestartSec=1h\n")
    machine.run("systemctl", "daemon-reload")
    told = ("503",) if victim == "VLLM::EngineCore" else ()  # by the web server, which outlives its engine for a moment
    with asked(machine, key, may_fail=(*IN_FLIGHT, *told)):
        (killed,) = (number for number, line in processes(machine).items() if victim in line)
        machine.run("kill", "-KILL", str(killed))
        until("it is down", lambda: unit(machine, "SubState")["SubState"] == "auto-restart", machine)
        assert taken(machine) == ""
        holder = cli(machine, "doctor", code=8).out
        assert "port 8000 is taken" not in holder
        machine.write(DROP_IN, f"[Service]\n{AT_ONCE}")
        machine.run("systemctl", "daemon-reload")  # by which the hour is over
        until("another main process", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine)
    machine.shell(f"rm -r {Path(DROP_IN).parent}; systemctl daemon-reload")


def test_a_socket_that_somebody_else_has_is_no_longer_the_service_s_own(machine: Machine, key: str) -> None:
    """He would take connections in the next engine's place, and its clients' keys."""
    accomplice = machine.start("/usr/bin/python3", "-c", ACCOMPLICE, str(main_pid(machine)), "8000")
    assert accomplice.stdout
    pid = accomplice.stdout.readline().strip()
    machine.run("systemctl", "restart", SERVICE, check=False)
    assert f"port 8000 is held by pid {pid} " in machine.journal("--unit", SERVICE, "--output=cat")
    accomplice.communicate()
    until("it is up without him", lambda: is_up(machine), machine)


def test_who_waits_for_a_start_that_is_given_up_is_told(machine: Machine, key: str) -> None:
    machine.write(FAULTS, "slow-start=1 die-at-start=1")
    machine.write(DROP_IN, f"[Service]\n{AT_ONCE}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
    seen = ask(machine, "GET", "/v1/models", key)
    assert (seen.status, seen.json["error"]["code"]) == (503, "starting")
    until("it has given up", lambda: unit(machine, "ActiveState")["ActiveState"] == "failed", machine)
    assert unit(machine, "NFileDescriptorStore") == {"NFileDescriptorStore": "0"}
    machine.at(FAULTS).unlink()
    machine.shell(f"rm -r {Path(DROP_IN).parent}; systemctl daemon-reload")
    machine.shell(f"systemctl reset-failed {SERVICE}; systemctl start {SERVICE}")


def test_who_waits_longer_than_is_asked_of_him_is_told(machine: Machine, key: str) -> None:
    machine.write(DROP_IN, "[Service]\nEnvironment=HOLD=1\n")
    machine.write(FAULTS, "stall=load")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "--no-block", SERVICE)
    until("it loads", lambda: status_text(machine).startswith("loading weights"), machine)
    assert ask(machine, "GET", "/v1/models", key).status == 503
    machine.at(FAULTS).unlink()
    until("it serves", lambda: is_up(machine), machine)
    machine.shell(f"rm {DROP_IN}; rmdir {Path(DROP_IN).parent}; systemctl daemon-reload; systemctl restart {SERVICE}")


# Handed over


def test_a_changed_unit_is_taken_over_by_a_reload(machine: Machine, key: str) -> None:
    before = unit(machine, "InvocationID", "NRestarts")
    with asked(machine, key), changed(machine, 2048):
        pid = main_pid(machine)
        machine.run("systemctl", "reload", SERVICE)
        assert main_pid(machine) != pid
        assert supervisors(machine) == [main_pid(machine)]
        assert context(machine, key) == 2048
        assert status_text(machine) == "serving builtin:tiny"
        assert unit(machine, "InvocationID", "NRestarts") == before
    assert context(machine, key) == 1024
    assert unit(machine, "InvocationID", "NRestarts") == before
    machine.run("systemctl", "restart", SERVICE)


def test_the_watchdog_goes_on_with_the_next_engine(machine: Machine, key: str) -> None:
    machine.write(DROP_IN, "[Service]\nWatchdogSec=8\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SERVICE)
    try:
        machine.write(FAULTS, "slow-start=12")
        with asked(machine, key), changed(machine, 2048):
            machine.run("systemctl", "reload", SERVICE)
            machine.at(FAULTS).unlink()
        assert unit(machine, "NRestarts") == {"NRestarts": "0"}
        pid = main_pid(machine)
        machine.run("kill", "-STOP", str(engine_pid(machine)))
        until("it is ended as hung", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine)
        assert unit(machine, "NRestarts") == {"NRestarts": "1"}
    finally:
        machine.shell(f"rm -r {Path(DROP_IN).parent}; systemctl daemon-reload; systemctl restart {SERVICE}")


def test_where_two_have_no_room_the_next_one_starts_when_the_other_is_gone(machine: Machine, key: str) -> None:
    machine.write("/etc/little", "MemAvailable:    1000000 kB\n")
    machine.write(DROP_IN, "[Service]\nBindReadOnlyPaths=/etc/little:/proc/meminfo\n")
    try:
        with asked(machine, key), changed(machine, 2048):
            machine.run("systemctl", "reload", SERVICE)
            assert context(machine, key) == 2048
            said = machine.journal(f"--unit={SERVICE}", "--lines=200")
            assert "too little for the next engine beside this one: it is started once this one is gone" in said
    finally:
        machine.shell(f"rm -r {Path(DROP_IN).parent}; systemctl daemon-reload; systemctl restart {SERVICE}")


@pytest.mark.parametrize(
    ("fault", "why"), [("import=die", "ended with status 1"), ("refuse-context=1500", "maximum model length is 1500")]
)
def test_a_change_that_fails_leaves_what_ran(machine: Machine, key: str, fault: str, why: str) -> None:
    pid = main_pid(machine)
    with asked(machine, key), changed(machine, 2048, fault):
        assert machine.run("systemctl", "reload", SERVICE, check=False).returncode != 0
        assert why in status_text(machine) or why in machine.journal(f"--unit={SERVICE}", "--lines=200")
        until("it serves", lambda: context(machine, key) == 1024, machine)
    assert main_pid(machine) == pid


@contextlib.contextmanager
def under_way(machine: Machine, stage: str) -> Iterator[subprocess.Popen[str]]:
    """In the middle of a change, which stands still there until the block ends."""
    with changed(machine, 2048):
        machine.write(FAULTS, {"prepares": "import=hang", "loads": "stall=load"}[stage])
        with machine.start("systemctl", "reload", SERVICE) as reload:
            if stage == "prepares":
                until("it imports", lambda: len(named(machine, "vllm_listen.py")) == 2, machine)
            else:
                until("it loads", lambda: status_text(machine).startswith("loading weights"), machine)
            try:
                yield reload
            finally:
                machine.shell(f"rm -f {FAULTS}")
                until("the reload is over", lambda: reload.poll() is not None, machine)
                until("it serves", lambda: is_up(machine), machine)


@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("prepares", "next vllm_supervisor.py"),
        ("prepares", "next vllm_listen.py"),
        ("prepares", "old vllm_watcher.py"),
        ("prepares", "old vllm_listen.py"),
        ("prepares", "old vllm_supervisor.py"),
        ("loads", "next vllm_supervisor.py"),
        ("loads", "next vllm_listen.py"),
        ("loads", "next vllm_watcher.py"),
        ("loads", "old vllm_supervisor.py"),
    ],
)
def test_whoever_is_killed_during_a_change_nobody_is_refused(
    machine: Machine, key: str, stage: str, victim: str
) -> None:
    """What answered at that time can answer no more; everybody else waits for what comes then."""
    old, (age, name) = set(processes(machine)), victim.split()
    flight = IN_FLIGHT if age == "old" else ()
    with asked(machine, key, may_fail=flight), under_way(machine, stage):
        (pid,) = [pid for pid in named(machine, name) if (pid in old) == (age == "old")]
        machine.run("kill", "-KILL", str(pid))
        until("it is gone", lambda: pid not in processes(machine), machine)


@pytest.mark.parametrize("what", ["daemon-reload", "daemon-reexec"])
def test_a_change_survives_a_manager_that_starts_anew(machine: Machine, key: str, what: str) -> None:
    with asked(machine, key), under_way(machine, "loads") as reload:
        machine.run("systemctl", what)
        machine.at(FAULTS).unlink()
        until("the reload is over", lambda: reload.poll() is not None, machine)
        until("the next one serves", lambda: context(machine, key) == 2048, machine)
        until("it is the main process", lambda: supervisors(machine) == [main_pid(machine)], machine)


def test_a_stop_in_the_middle_of_a_change_ends_all(machine: Machine, key: str) -> None:
    with under_way(machine, "loads"):
        machine.run("systemctl", "stop", SERVICE)
        assert processes(machine) == {}
        assert ":8000" not in machine.run("ss", "-Hltn").stdout
        machine.shell(f"rm -f {FAULTS}; systemctl start {SERVICE}")
        until("it serves", lambda: is_up(machine), machine)
