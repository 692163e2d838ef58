"""SIGKILL at every point of every change: the next command undoes it and says so; a reboot alone finds a sound host."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from installer.spec import keys
from installer.units.syntax import exec_line
from tests.booted.test_change import paste
from tests.booted.test_kill import cut, points_of
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import SERVICE, ask, cli, is_gone, is_up, main_pid, serves, standin, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
STATE = f"/var/lib/vllm-install/{SERVICE}/state.json"
pytestmark = pytest.mark.root
Arguments = tuple[str, ...]
numbers = itertools.count(1)


@dataclass
class Host:
    """A machine with a service, and what its user knows of it."""

    machine: Machine
    key: str

    def set_key(self) -> Arguments:
        return ("set-apikey", new_key(), "--json")

    def set_guest_key(self) -> Arguments:
        return ("set-apikey", new_key(), "--name", "guest", "--keep-old", "10m", "--json")

    def revoke(self) -> Arguments:
        if "guest" not in arguments(exec_line(self.machine.at(UNIT).read_text())):
            cli(self.machine, "set-apikey", "--name", "guest")
        return ("keys", "revoke", "guest")

    def set_context(self) -> Arguments:
        return ("set-context", str(1024 + 16 * next(numbers)))

    def upgrade(self) -> Arguments:
        other = {"0.32.0": "0.31.0", "0.31.0": "0.32.0"}[self.version]
        return ("upgrade", "--vllm-version", other)

    def rollback(self) -> Arguments:
        return ("rollback",)

    @property
    def version(self) -> str:
        return str(self.state["proved"]["engine"]["vllm_version"])

    @property
    def state(self) -> dict[str, dict[str, dict[str, str]]]:
        return dict(json.loads(self.machine.at(STATE).read_text()))

    def status(self, key: str) -> int:
        return ask(self.machine, "GET", "/v1/models", key).status


VERBS: dict[str, Callable[[Host], Arguments]] = {
    "set-apikey": Host.set_key,
    "set-apikey --keep-old": Host.set_guest_key,
    "keys revoke": Host.revoke,
    "set-context": Host.set_context,  # which takes the steps of every `set`
    "upgrade": Host.upgrade,
    "rollback": Host.rollback,
}
# What comes next is another verb as often as not; all of them settle what they find.
NEXT: tuple[Callable[[Host], Arguments], ...] = (
    Host.set_context,
    lambda _: ("deploy",),
    lambda _: ("set-apikey", new_key(), "--name", "next"),
    Host.rollback,
)


def new_key() -> str:
    return f"sk-kill-{next(numbers):04}-gT7vQm2xLw9ZpK4sRb8e"


@pytest.fixture(scope="module")
def shared(standin_wheels: Path) -> Iterator[Host]:
    with Machine() as machine:
        bare = snapshot(machine.root)
        host = Host(machine, cli(machine, "deploy", *standin(standin_wheels)).key)
        cli(machine, "upgrade", "--vllm-version", "0.31.0")  # both engines are there, and an earlier generation
        yield host
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare)


@pytest.fixture
def host(shared: Host) -> Host:
    """The service with a default key that is known."""
    if shared.status(shared.key) != 200:
        shared.key = cli(shared.machine, "set-apikey").key
    return shared


def arguments(words: list[str]) -> dict[str, str]:
    return {key.name: key.digest for word, value in itertools.pairwise(words) if word == "--api-key"
            for key in [keys.parse(value)]}  # fmt: skip


def is_sound(host: Host) -> None:
    """What runs is what the unit says, and the one default key is known to the user."""
    text = host.machine.at(UNIT).read_text()
    words = exec_line(text)
    live = host.machine.run("cat", f"/run/{SERVICE}/keys").stdout.splitlines()
    assert {line.split()[0]: line.split()[2] for line in live} == arguments(words)
    assert arguments(exec_line(text, "ExecReload")) == arguments(words)
    serves(host.machine, host.key)
    answer = ask(host.machine, "GET", "/v1/models", host.key).json["data"][0]
    assert answer["max_model_len"] == int(words[words.index("--max-model-len") + 1])
    assert words[0] in host.machine.run("cat", f"/proc/{main_pid(host.machine)}/cmdline").stdout
    assert host.machine.run("systemctl", "is-system-running").stdout == "running\n"


def unfinished(host: Host) -> object:
    return host.state["pending"] or host.state["rekeying"]


def learn(host: Host, args: Arguments) -> None:
    """Which default key is in force now: the one that was known, or the one that was being set when all ended."""
    if args[0] == "set-apikey" and "--name" not in args and host.status(host.key) == 401:
        host.key = args[1]


@pytest.mark.parametrize("verb", VERBS)
def test_the_next_command_settles_what_was_cut_off(host: Host, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = VERBS[verb](host)
    points = points_of(host.machine, *args)
    learn(host, args)
    recovered = 0
    for number, point in enumerate(points):
        args = VERBS[verb](host)
        before = host.state
        cut(host.machine, point, *args)
        pending = unfinished(host)
        assert pending or point != "show" or args[0] != "set-apikey", "a key counts as known that nobody has seen"
        follow = NEXT[number % len(NEXT)](host)
        done = cli(host.machine, *follow)
        assert ("cut off" in done.err) == bool(pending), (point, done.err)
        if not pending:
            learn(host, args)
        assert host.status(host.key) == 200, f"{verb}, {point}, then {follow[0]}: nobody knows the key"
        is_sound(host)
        assert unfinished(host) is None
        if pending and follow[0] == "set-apikey":
            same = ("settings", "engine", "model")
            assert [host.state["proved"][name] for name in same] == [before["proved"][name] for name in same], point
        assert cli(host.machine, "deploy", "--json").changes == [], point
        recovered += 1
    with capsys.disabled():
        print(f"\n{verb}: {recovered} faults injected, {recovered} recovered")
    assert recovered >= 6


# A key that is kept beside the new one takes no step more.
STEPS = [verb for verb in VERBS if verb != "set-apikey --keep-old"]


@pytest.mark.parametrize("verb", STEPS)
def test_a_disk_that_fills_up_in_between_leaves_everything_as_it_was(
    host: Host, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = VERBS[verb](host)
    points = [point for point in points_of(host.machine, *args) if point.startswith(("effect", "save"))]
    learn(host, args)
    for point in points:
        args = VERBS[verb](host)
        unit_text, before = host.machine.at(UNIT).read_text(), host.state
        done = host.machine.run(sys.executable, "-m", "tests.kit.cut", "FULL", point, *args, check=False)
        assert "the disk is full while writing" in done.stdout + done.stderr, (point, done)
        assert (done.returncode, "Traceback" in done.stderr) == (3, False), (point, done)
        assert host.machine.at(UNIT).read_text() == unit_text, point
        after = host.state
        kept = ("pending", "rekeying", "proved", "previous")
        assert [after[name] for name in kept] == [before[name] for name in kept], point
        is_sound(host)
        assert cli(host.machine, "deploy", "--json").changes == [], point
    with capsys.disabled():
        print(f"\n{verb}, the disk full once: {len(points)} faults injected, {len(points)} recovered")


@pytest.mark.parametrize("verb", [verb for verb in STEPS if verb != "set-context"])  # which test_kill.py does
def test_a_reboot_without_a_rerun_starts_a_sound_service(
    host: Host, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = VERBS[verb](host)
    points = points_of(host.machine, *args)
    learn(host, args)
    last = len(points.effects)  # the reload or restart, of which the first effect makes systemd read the unit
    wanted = [*(f"done:{number}" for number in points.changes), f"effect:{last}:2", "show"]
    for point in wanted:
        args = VERBS[verb](host)
        cut(host.machine, point, *args)
        host.machine.reboot()
        until("the service is up", lambda: is_up(host.machine), host.machine)
        known = host.key
        learn(host, args)
        is_sound(host)
        if unfinished(host):
            assert "cut off" in cli(host.machine, "deploy").err
            host.key = known
        is_sound(host)
    with capsys.disabled():
        print(f"\n{verb}, then a reboot: {len(wanted)} faults injected, {len(wanted)} recovered")


def test_an_edit_by_hand_outlives_a_rotation_that_was_cut_off(host: Host) -> None:
    machine, unit = host.machine, host.machine.at(UNIT)
    ours, edit = unit.read_text(), "Nice=7\n# mine\n"
    for point in ("done:1", "done:2"):
        unit.write_text(ours.replace("[Service]\n", f"[Service]\n{edit}"))
        machine.run("systemctl", "daemon-reload")
        cut(machine, point, *host.set_key())
        assert "cut off" in cli(machine, "keys", "revoke", "nobody", code=2).err
        assert edit in unit.read_text()
        is_sound(host)
        assert "was edited by hand" in cli(machine, "deploy", code=3).err
    cli(machine, "deploy", "--discard-edits")


def test_a_key_pasted_in_by_hand_outlives_a_rotation_that_was_cut_off(host: Host) -> None:
    machine, pasted = host.machine, new_key()
    paste(machine, pasted)
    assert host.status(pasted) == 200
    cut(machine, "done:2", *host.set_key())
    assert "cut off" in cli(machine, "set-context", "4096").err
    assert host.status(pasted) == 200
    is_sound(host)
