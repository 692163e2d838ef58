"""Code in the sandbox lays traps in the directories that it may write: no verb waits, follows or breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.units.syntax import exec_line
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import SERVICE, ask, cli, is_gone, main_pid, serves, standin

RUN, HOME = f"/run/{SERVICE}", f"/var/cache/{SERVICE}"
# As the service's own user, within its own namespaces: what its code could do.
PLANT = """
import os, sys
kind, path = sys.argv[1:]
if os.path.lexists(path):
    os.unlink(path)
match kind:
    case "pipe": os.mkfifo(path)
    case "link": os.symlink("/etc/shadow", path)
    case "loop": os.symlink(path, path)
    case "directory":
        os.mkdir(path)
        open(path + "/file", "w").close()
    case "endless":
        with open(path, "w") as file: file.truncate(1 << 40)
    case "garbage": open(path, "wb").write(os.urandom(4096))
    case "deep":
        os.mkdir(path)
        os.chdir(path)
        for _ in range(1600):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
"""
KINDS = ("pipe", "link", "loop", "directory", "endless", "garbage")


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        bare = snapshot(machine.root)
        cli(machine, "deploy", *standin(standin_wheels))
        yield machine
        plant(machine, "deep", f"{HOME}/deep")
        plant(machine, "pipe", f"{HOME}/pipe")
        cli(machine, "uninstall", "--yes", "--purge", timeout=120)
        is_gone(machine, bare)


def plant(machine: Machine, kind: str, path: str) -> None:
    inside = ("nsenter", "--target", str(main_pid(machine)), "--mount", "--wd=/")
    user = f"vllm-{SERVICE}"
    who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--")
    python = exec_line(machine.at(f"/etc/systemd/system/{SERVICE}.service").read_text())[0]
    machine.run(*inside, *who, python, "-c", PLANT, kind, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trap_in_the_place_of_the_keys_in_force_holds_nobody_up(machine: Machine, kind: str) -> None:
    shadow = machine.at("/etc/shadow").read_text()
    leaked = cli(machine, "set-apikey", "--name", "leaked").key
    plant(machine, kind, f"{RUN}/keys")
    if kind != "pipe":  # at which the service would hang by itself, when it writes there
        plant(machine, kind, f"{RUN}/stages")
    for verb in (("doctor",), ("plan",), ("status",)):
        done = machine.cli(*verb, check=False, timeout=60)
        assert "Traceback" not in done.stderr, done
        assert shadow.splitlines()[0] not in done.stdout
    key = cli(machine, "set-apikey", timeout=60).key
    assert machine.run("stat", "-c", "%F %U %a", f"{RUN}/keys").stdout == f"regular file vllm-{SERVICE} 600\n"
    serves(machine, key)
    plant(machine, kind, f"{RUN}/keys")
    cli(machine, "keys", "revoke", "leaked", timeout=60)
    assert ask(machine, "GET", "/v1/models", leaked).status == 401
    assert hashlib.sha256(leaked.encode()).hexdigest() not in machine.run("cat", f"{RUN}/keys").stdout
    assert machine.at("/etc/shadow").read_text() == shadow
    machine.run("systemctl", "restart", SERVICE)
    serves(machine, key)


def test_what_lies_in_its_directories_goes_with_a_purge_and_nothing_else(machine: Machine) -> None:
    """The removal is the fixture's: of a tree that is deeper than a path can be long, with a pipe beside it."""
    plant(machine, "link", f"{HOME}/link")
    for verb in (("doctor",), ("plan",)):
        machine.cli(*verb, check=False, timeout=60)
