"""A leaked key is revoked at once, whatever else is under way, and nothing that is under way brings it back."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from installer.spec import keys
from installer.units.syntax import exec_line
from tests.booted.test_change import misbehaving
from tests.booted.test_kill import cut, points_of
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import SERVICE, ask, cli, is_gone, is_up, server_pid, serves, standin, unit, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
STATE = f"/var/lib/vllm-install/{SERVICE}/state.json"
HOME = f"/var/cache/{SERVICE}"
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        bare = snapshot(machine.root)
        cli(machine, "deploy", *standin(standin_wheels))
        yield machine
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare)


@pytest.fixture
def machine(shared: Machine) -> Iterator[Machine]:
    yield shared
    state = json.loads(shared.at(STATE).read_text())
    assert (state["pending"], state["rekeying"]) == (None, None)
    assert cli(shared, "deploy", "--json").changes == []
    text = shared.at(UNIT).read_text()
    live = {line.split()[2] for line in shared.run("cat", f"/run/{SERVICE}/keys").stdout.splitlines()}
    assert (
        live == {key.digest for key in unit_keys(text)} == {keys.parse(key).digest for key in state["proved"]["keys"]}
    )


def unit_keys(text: str) -> list[keys.Key]:
    words = exec_line(text)
    return [keys.parse(value) for word, value in itertools.pairwise(words) if word == "--api-key"]


def new_key(machine: Machine, name: str) -> str:
    return cli(machine, "set-apikey", "--name", name).key


def status(machine: Machine, key: str) -> int:
    return ask(machine, "GET", "/v1/models", key).status


def knows(machine: Machine, key: str) -> list[str]:
    """Where on the host a key is still valid, now or for a change that is undone."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    places = {
        "unit": machine.at(UNIT).read_text(),
        "in force": machine.run("cat", f"/run/{SERVICE}/keys", check=False).stdout,
        "record": json.dumps(json.loads(machine.at(STATE).read_text())["proved"]),
    }
    return [place for place, text in places.items() if digest in text]


@contextmanager
def loading(machine: Machine, *, fails: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A change whose vLLM loads until this ends, and then comes up or does not."""
    context = 1024 + 16 * next(numbers)
    then = f"refuse-context={context - 1}" if fails else ""
    command = (sys.executable, "-m", "installer", "set-context", str(context))
    with misbehaving(machine, f"stall=load {then}"), machine.start(*command) as change:
        try:
            until("it loads anew", lambda: is_loading(machine), machine)
            yield change
            assert change.poll() is None, "it was to last longer than what happens meanwhile"
        finally:
            machine.write(f"{HOME}/standin", then)
            change.communicate(timeout=300)


def is_loading(machine: Machine) -> bool:
    return "loading" in unit(machine, "StatusText")["StatusText"]


@pytest.mark.parametrize("fails", [False, True], ids=["proved", "undone"])
def test_a_key_is_revoked_while_a_change_of_the_same_service_loads(machine: Machine, fails: bool) -> None:
    leaked, rotated = new_key(machine, "leaked"), new_key(machine, "rotated")
    with loading(machine, fails=fails) as change:
        cli(machine, "keys", "revoke", "leaked")
        after = cli(machine, "set-apikey", "--name", "rotated")
        assert "the key rotated is in force as soon as the service answers" in after.err
        assert (knows(machine, leaked), knows(machine, rotated)) == ([], [])
        assert change.poll() is None
    assert change.returncode == (6 if fails else 0)
    assert [status(machine, key) for key in (leaked, rotated, after.key)] == [401, 401, 200]
    assert (knows(machine, leaked), knows(machine, rotated)) == ([], [])
    serves(machine, after.key)


def test_a_revocation_stays_where_the_service_answers_nothing(machine: Machine) -> None:
    """A service that hangs is no reason to bring a leaked key back; a request waits for seconds, not for minutes."""
    leaked, kept, pid = new_key(machine, "leaked"), new_key(machine, "kept"), server_pid(machine)
    machine.run("kill", "-STOP", str(pid))
    try:
        done = cli(machine, "keys", "revoke", "leaked", code=6, timeout=60)
        made = cli(machine, "set-apikey", "--name", "kept", code=6, timeout=60)
        undone = cli(machine, "set-apikey", "--name", "more", code=6, timeout=60)
    finally:
        machine.run("kill", "-CONT", str(pid))
    assert "keys revoke leaked is in force and stays so, but that could not be proved: no answer from" in done.err
    assert f"sudo systemctl restart {SERVICE}" in done.err
    assert undone.out == ""
    assert "the keys are as they were" in undone.err
    assert (knows(machine, leaked), knows(machine, kept)) == ([], [])
    assert [status(machine, key) for key in (leaked, kept, made.key)] == [401, 401, 200]


def test_a_change_that_is_killed_after_a_revocation_brings_nothing_back(machine: Machine) -> None:
    leaked, kept = new_key(machine, "leaked"), new_key(machine, "kept")
    command = (sys.executable, "-m", "installer", "set-context", "900")
    with misbehaving(machine, "stall=load"), machine.start(*command) as change:
        until("it loads anew", lambda: is_loading(machine), machine)
        cli(machine, "keys", "revoke", "leaked")
        os.killpg(change.pid, signal.SIGKILL)
        change.communicate()
    until("it is up", lambda: is_up(machine), machine)
    assert status(machine, leaked) == 401
    assert "cut off" in cli(machine, "set-context", "1024").err
    assert [status(machine, key) for key in (leaked, kept)] == [401, 200]
    assert knows(machine, leaked) == []


def test_after_a_cut_off_the_revocation_comes_first(machine: Machine) -> None:
    leaked, kept = new_key(machine, "leaked"), new_key(machine, "kept")
    cut(machine, "done:2", "set-context", "800")
    assert "set-context 800 was cut off; undoing it first" in cli(machine, "keys", "revoke", "leaked").err
    assert [status(machine, key) for key in (leaked, kept)] == [401, 200]
    assert knows(machine, leaked) == []


def test_a_revocation_killed_anywhere_beside_a_change_leaves_keys_that_somebody_knows(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = new_key(machine, "mine")
    points = list(points_of(machine, "keys", "revoke", "mine"))
    for number, point in enumerate(points):
        mine, kept = new_key(machine, "mine"), new_key(machine, "kept")
        args = ("keys", "revoke", "mine") if number % 2 else ("set-apikey", "--name", "mine")
        if point == "show" and args[0] == "keys":
            args = ("set-apikey", "--name", "mine")
        with loading(machine, fails=number % 3 == 0) as change:
            cut(machine, point, *args)
        assert change.returncode == (6 if number % 3 == 0 else 0), point
        assert [status(machine, key) for key in (mine, kept)] == [200, 200], point
        assert cli(machine, "deploy", "--json").changes == [], point
    assert status(machine, first) == 401
    with capsys.disabled():
        print(f"\nkeys beside a change: {len(points)} faults injected, {len(points)} recovered")


def test_status_and_doctor_say_what_is_under_way(machine: Machine) -> None:
    with loading(machine):
        for user in ((), ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")):
            shown = machine.run(*user, sys.executable, "-m", "installer", "status").stdout
            assert "vllm-install set-context" in shown
            assert "was cut off" not in shown
            (line,) = [line for line in shown.splitlines() if line.strip().startswith("under way")]
            assert line.rstrip().endswith(" s")
            doctor = machine.run(*user, sys.executable, "-m", "installer", "doctor", check=False)
            assert doctor.returncode == 0, doctor.stdout
            assert "[change-under-way]" in doctor.stdout
            assert "was cut off" not in doctor.stdout
    data = cli(machine, "status", "--json").json
    assert (data["under_way"], data["under_way_for"], data["pending"]) == (None, None, None)
    cut(machine, "done:2", "set-context", "800")
    assert "was cut off" in cli(machine, "status").out
    assert "[change-cut-off]" in cli(machine, "doctor").out
    cli(machine, "deploy")


def test_the_service_and_local_users_hold_no_lock(machine: Machine) -> None:
    """Every lock there is, tried by the service's own user and by nobody: none can be opened."""
    tried = 0
    with loading(machine):
        found = machine.shell(
            "find /run/vllm-install /var/cache/vllm-install /opt/vllm-install -name '*lock*' -type f"
            " -o -path '/run/vllm-install/*' ! -name '*.now' -type f"
        ).stdout.split()
        found += machine.shell("find /var/cache/vllm-install/hub/.locks ! -name '*.now' -type f || :").stdout.split()
        for path in found:
            if path.endswith("lock.txt") or "/site-packages/" in path:
                continue
            for user in (f"vllm-{SERVICE}", "nobody"):
                who = ("setpriv", f"--reuid={user}", "--clear-groups", "--")
                done = machine.run(*who, "flock", "-n", path, "true", check=False)
                assert "ermission denied" in done.stderr, (user, path, done)
                tried += 1
    assert tried >= 4


def test_another_services_start_keeps_nobody_waiting(machine: Machine, standin_wheels: Path) -> None:
    other = ("deploy", *standin(standin_wheels), "--service", "other", "--port", "8001")
    mine = new_key(machine, "mine")
    stop = shlex.join([sys.executable, "-m", "tests.kit.cut", "STOP", "done:4", *other])
    machine.shell(f"setsid {stop} </dev/null >/root/other 2>&1 &")
    pid = until("the other deploy stands still", lambda: standing(machine), machine)
    cli(machine, "keys", "revoke", "mine")
    cli(machine, "set-context", "1024")
    cli(machine, "prune", "--yes")
    assert standing(machine) == pid, "it was to last longer than what happens meanwhile"
    machine.run("kill", "-CONT", pid)
    until("the other deploy ends", lambda: machine.run("kill", "-0", pid, check=False).returncode, machine)
    assert "serves builtin:tiny" in machine.shell("cat /root/other; rm /root/other").stdout
    assert status(machine, mine) == 401
    assert cli(machine, "deploy", "--service", "other", "--json").changes == []
    cli(machine, "uninstall", "--yes", "--service", "other")


def standing(machine: Machine) -> str:
    """The pid of the process that changes the other service, as soon as it was stopped by a signal."""
    found = re.search(r"pid (\d+)", machine.shell("cat /run/vllm-install/other.change.now || :").stdout)
    stopped = found and "T" in machine.run("ps", "-o", "stat=", "-p", found[1], check=False).stdout
    return found[1] if found and stopped else ""
