"""What can happen to a service around vLLM: it refuses, fails or comes back by itself, and says why where one looks."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, ask, cli, is_up, main_pid, processes, serves, standin, taken, unit, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
DROP_IN = f"{UNIT}.d/override.conf"
FAULTS = f"/var/cache/{SERVICE}/standin"  # what the stand-in is told to do wrong
AT_ONCE = "RestartSec=0\n"  # not after five seconds, in which a test would look at nothing
OWN_KEY = "sk-pasted-in-by-hand-0123456789abcdefghij"


@pytest.fixture(autouse=True)
def _it_serves_before_and_after(machine: Machine, key: str) -> Iterator[None]:
    serves(machine, key)
    yield
    serves(machine, key)
    assert cli(machine, "deploy", "--json").changes == []
    machine.run("systemctl", "reset-failed", SERVICE)  # the start limit counts over all tests


@contextlib.contextmanager
def written(machine: Machine, path: str, text: str) -> Iterator[None]:
    """A file of the admin's, read by the manager; taken back afterwards."""
    old = machine.at(path).read_text() if machine.at(path).exists() else None
    machine.write(path, text)
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        gone = f"rm {path}; rmdir --ignore-fail-on-non-empty {Path(path).parent}"
        machine.write(path, old) if old is not None else machine.shell(gone)
        machine.run("systemctl", "daemon-reload")


def fails(machine: Machine, *verb: str) -> str:
    """What the unit's status line says when systemctl has failed."""
    assert machine.run("systemctl", *verb, SERVICE, check=False).returncode != 0, machine.evidence()
    return unit(machine, "StatusText")["StatusText"]


def comes_back(machine: Machine) -> None:
    """Without help: the cause is gone, and systemd tries again by itself; it has waited long enough by now."""
    with written(machine, f"{UNIT}.d/at-once.conf", f"[Service]\n{AT_ONCE}"):
        until("it serves again by itself", lambda: is_up(machine), machine)


@pytest.mark.parametrize("damage", ["sha256:abc", "sha256:" + "g" * 64, "short", ""])
def test_a_malformed_key_is_said_and_not_tried_again(machine: Machine, key: str, damage: str) -> None:
    ours = machine.at(UNIT).read_text()
    start = next(line for line in ours.splitlines() if line.startswith("ExecStart="))
    broken = re.sub(r"sha256:[0-9a-f]{64}", damage, start, count=1)
    with written(machine, UNIT, ours.replace(start, broken)):
        assert re.search(r"refused: --api-key number 1 is malformed: expected", fails(machine, "restart"))
        shown = unit(machine, "ActiveState", "SubState", "ExecMainStatus", "NRestarts")
        assert shown == {"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
        assert "is malformed" in machine.run("systemctl", "status", SERVICE, check=False).stdout
    machine.run("systemctl", "restart", SERVICE)


def test_a_key_pasted_into_the_unit_works_and_is_gone_from_the_processes(machine: Machine, key: str) -> None:
    ours = machine.at(UNIT).read_text()
    with written(machine, UNIT, re.sub(r"sha256:[0-9a-f]{64}", OWN_KEY, ours)):
        machine.run("systemctl", "restart", SERVICE)
        serves(machine, OWN_KEY)
        assert ask(machine, "GET", "/v1/models", key).status == 401
        running = processes(machine)
        assert len(running) >= 4, "the supervisor, vLLM, its engine, the watcher"
        assert not [line for line in running.values() if OWN_KEY in line]
        environment = machine.shell(f"cat {' '.join(f'/proc/{pid}/environ' for pid in running)}").stdout
        assert OWN_KEY not in environment
        assert OWN_KEY not in machine.journal("--output=export")
        machine.run("systemctl", "reload", SERVICE)
        serves(machine, OWN_KEY)
        assert OWN_KEY not in machine.journal("--output=export")
    machine.run("systemctl", "restart", SERVICE)


@contextlib.contextmanager
def full_run(machine: Machine) -> Iterator[None]:
    machine.shell("""
        used=$(df --output=used -B1 /run | tail -1)
        mount -o remount,size=$((used + 1048576)) /run
        dd if=/dev/zero of=/run/filler bs=4096 2>/dev/null || :
        """)
    try:
        yield
    finally:
        machine.shell("rm -f /run/filler; mount -o remount,size=20% /run")


def test_a_full_run_leaves_the_keys_as_they_were(machine: Machine, key: str) -> None:
    ours = machine.at(UNIT).read_text()
    pid, run = main_pid(machine), machine.run("ls", f"/run/{SERVICE}").stdout
    with written(machine, UNIT, re.sub(r"sha256:[0-9a-f]{64}", OWN_KEY, ours)), full_run(machine):
        fails(machine, "reload")
        serves(machine, key)
        assert ask(machine, "GET", "/v1/models", OWN_KEY).status == 401
        assert machine.run("ls", f"/run/{SERVICE}").stdout == run, "half a file was left"
        assert "cannot reload: [Errno 28] No space left on device" in machine.journal(f"--unit={SERVICE}")
    assert main_pid(machine) == pid


def test_a_start_with_a_full_run_says_so_and_succeeds_once_there_is_room(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", SERVICE)
    with full_run(machine):
        assert "No space left on device" in fails(machine, "start")
    comes_back(machine)


def test_a_missing_engine_is_named_and_put_back_by_deploy(machine: Machine, key: str) -> None:
    start = next(line for line in machine.at(UNIT).read_text().splitlines() if line.startswith("ExecStart="))
    engine = start.removeprefix("ExecStart=").partition("/bin/")[0]
    machine.run("mv", engine, f"{engine}.away")
    try:
        with written(machine, DROP_IN, f"[Service]\n{AT_ONCE}"):
            fails(machine, "restart")
            until("it has given up", lambda: unit(machine, "ActiveState")["ActiveState"] == "failed", machine)
            shown = machine.run("systemctl", "status", "--full", SERVICE, check=False).stdout
        assert re.search(rf"{engine}/bin/python .*status=203/EXEC", shown), shown
        missing = f"Failed to locate executable {engine}/bin/python: No such file or directory"
        assert 1 <= machine.journal(f"--unit={SERVICE}").count(missing) <= 5
    finally:
        machine.run("mv", f"{engine}.away", engine)
    cli(machine, "deploy")


@pytest.mark.parametrize("victim", ["vllm_supervisor.py", "vllm_listen.py", "VLLM::EngineCore"])
def test_whatever_the_kernel_kills_for_memory_it_comes_back(machine: Machine, key: str, victim: str) -> None:
    """The kernel picks any of them, and sends what we send here."""
    with written(machine, DROP_IN, f"[Service]\nWatchdogSec=10\n{AT_ONCE}"):
        machine.run("systemctl", "restart", SERVICE)
        pid, old = main_pid(machine), processes(machine)
        (killed,) = (number for number, line in old.items() if victim in line)
        machine.run("kill", "-KILL", str(killed))
        until("another main process", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine)
        assert not set(old) & set(processes(machine)), "left over from before"
        assert unit(machine, "NRestarts")["NRestarts"] == "1"
        serves(machine, key)
    machine.run("systemctl", "restart", SERVICE)


def test_a_watcher_that_is_killed_is_replaced(machine: Machine, key: str) -> None:
    with written(machine, DROP_IN, "[Service]\nWatchdogSec=10\n"):
        machine.run("systemctl", "restart", SERVICE)
        old, fed = processes(machine), set[str]()
        (killed,) = (number for number, line in old.items() if "vllm_watcher.py" in line)
        machine.run("kill", "-KILL", str(killed))

        def is_fed_again() -> bool:
            fed.add(unit(machine, "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"])
            return len(fed) > 3

        until("the watchdog is fed again", is_fed_again, machine)
        assert set(old) - set(processes(machine)) == {killed}
        assert len(processes(machine)) == len(old)
    machine.run("systemctl", "restart", SERVICE)


def test_an_engine_that_is_never_ready_is_ended_with_its_stacks(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", SERVICE)
    machine.write(FAULTS, "stall=load")
    with written(machine, DROP_IN, "[Service]\nEnvironment=START_PATIENCE_SEC=10\n"):
        assert "the start made no progress for 10 s" in fails(machine, "start")
        assert unit(machine, "Result")["Result"] == "watchdog"
        why = "the start made no progress for 10 s; stage: loading weights; "
        assert "most recent call first" in machine.journal(f"--unit={SERVICE}").partition(why)[2]
        machine.at(FAULTS).unlink()
        comes_back(machine)
    machine.run("systemctl", "restart", SERVICE)


def test_a_port_held_by_somebody_else_is_named(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", SERVICE)
    listen = "import socket, time; s = socket.create_server(('', 8000)); time.sleep(3600)"
    machine.run("systemd-run", "--quiet", "--unit=taker", "--uid=65534", "python3", "-c", listen)
    until("the port is taken", lambda: ":8000" in machine.run("ss", "-Hltn").stdout, machine)
    try:
        pid = main_pid(machine, "taker")
        assert re.search(rf"port 8000 is held by pid {pid} \(.*python3\)", fails(machine, "start"))
        assert f"port 8000 is held by pid {pid}" in machine.run("systemctl", "status", SERVICE, check=False).stdout
    finally:
        machine.run("systemctl", "stop", "taker")
    comes_back(machine)


# Somebody with no rights, who answers on the service's port as the guard does, and tells what he was sent.
STRANGER = """
import http.server
class Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("sent:", self.headers.get("Authorization"), flush=True)
        self.send_response(401 if "wrong" in self.headers.get("Authorization", "wrong") else 200)
        self.end_headers()
    do_POST = do_GET
http.server.HTTPServer(("127.0.0.1", 8000), Stranger).serve_forever()
"""
# The unit is up and takes new keys; its own process does not listen.
DEAF = f"""[Service]
Type=exec
ExecStartPre=
ExecStart=
ExecStart=/bin/sh -c 'echo probe inference {"0" * 64} - >/run/{SERVICE}/keys; exec sleep infinity'
WatchdogSec=0
Restart=no
"""


@contextlib.contextmanager
def stranger(machine: Machine) -> Iterator[None]:
    mode = machine.at("/root").stat().st_mode & 0o777
    machine.write("/root/key", OWN_KEY)
    try:
        machine.run("systemctl", "stop", SERVICE)  # or systemd would go on holding the port
        with written(machine, DROP_IN, DEAF):
            machine.run("systemctl", "start", SERVICE)
            machine.run("systemd-run", "--quiet", "--unit=stranger", "--uid=65534", "/usr/bin/python3", "-c", STRANGER)
            until("the stranger listens", lambda: ":8000" in machine.run("ss", "-Hltn").stdout, machine)
            yield
    finally:
        machine.shell(f"systemctl stop stranger {SERVICE}; rm /root/key; chmod {mode:o} /root")
        machine.run("systemctl", "restart", SERVICE)


def test_no_key_is_sent_to_who_listens_in_the_service_s_place(machine: Machine, key: str) -> None:
    with stranger(machine):
        shown = cli(machine, "status", "--json").json
        assert (shown["active"], shown["listening"], shown["load"]) == ("active (running)", False, None)
        assert "held by pid" in cli(machine, "doctor", code=8).out
        failed = cli(machine, "test", "--key-file", "/root/key", code=6)
        assert "failed: listens: port 8000 is held by pid" in failed.out
        failed = cli(machine, "set-apikey", "--keep-old", "1h", code=6)
        assert re.search(
            r"no key was sent to http://127.0.0.1:8000: port 8000 is held by pid \d+ \(.*not by", failed.err
        )
        assert "send no key there now: port 8000 is held" in cli(machine, "client-config", "--format", "env").err
        user = ("setpriv", "--reuid=backup", "--regid=backup", "--clear-groups")
        machine.shell("chmod 755 /root; chmod 644 /root/key")
        asked = machine.run(*user, sys.executable, "-m", "installer", "test", "--key-file", "/root/key", check=False)
        assert "port 8000 is held by a process of another user" in asked.stdout, asked
    sent = set(re.findall(r"sent: (.*)", machine.journal("--unit=stranger")))
    assert [words for words in sent if not words.startswith(("None", "Bearer sk-wrong-"))] == []


def test_nobody_else_can_listen_while_it_starts_serves_or_is_killed(machine: Machine, key: str) -> None:
    machine.run("systemctl", "stop", SERVICE)
    machine.write(FAULTS, "stall=load")
    machine.run("systemctl", "start", "--no-block", SERVICE)
    until("it loads", lambda: unit(machine, "StatusText")["StatusText"] == "loading weights", machine)
    assert taken(machine) == ""
    machine.at(FAULTS).unlink()
    comes_back(machine)
    assert taken(machine) == ""


def test_two_services_do_not_open_or_hurt_one_another(machine: Machine, key: str, standin_wheels: Path) -> None:
    other = cli(machine, "deploy", *standin(standin_wheels), "--service", "b", "--port", "8001").key
    try:
        serves(machine, other, 8001)
        assert ask(machine, "GET", "/v1/models", other).status == 401
        assert ask(machine, "GET", "/v1/models", key, port=8001).status == 401
        for place in (f"/var/cache/{SERVICE}", f"/run/{SERVICE}", f"/var/lib/vllm-install/{SERVICE}/probe-key"):
            seen = machine.run(
                "setpriv", "--reuid=vllm-b", "--regid=vllm-b", "--clear-groups", "cat", place, check=False
            )
            assert "Permission denied" in seen.stderr, seen
        pid = main_pid(machine)
        before = main_pid(machine, "b")
        with written(machine, "/etc/systemd/system/b.service.d/at-once.conf", f"[Service]\n{AT_ONCE}"):
            machine.run("systemctl", "kill", "--signal=KILL", "b")
            until("the other comes back", lambda: main_pid(machine, "b") != before and is_up(machine, "b"), machine)
        machine.run("systemctl", "stop", "b")
        assert main_pid(machine) == pid
        serves(machine, key)
    finally:
        cli(machine, "uninstall", "--yes", "--service", "b", "--purge")
