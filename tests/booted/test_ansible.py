"""The Ansible role, run by Ansible itself on a booted host: once it changes something, and then nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO
from tests.kit.life import MODEL, SERVICE, cli, main_pid, serves

KEY = f"/srv/keys/localhost-{SERVICE}"


def played(machine: Machine, settings: dict[str, str], *options: str) -> tuple[int, str]:
    """How many tasks changed something, and all that was said."""
    task = {"import_role": {"name": "vllm_install"}}
    said = {
        "vllm_install_command": [sys.executable, "-m", "installer"], "vllm_install_services": {SERVICE: settings},
        "ansible_python_interpreter": sys.executable,
    }  # fmt: skip
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": said, "tasks": [task]}
    machine.write("/srv/site.yml", json.dumps([play]))
    program = Path(sys.executable).with_name("ansible-playbook")
    surroundings = {"ANSIBLE_ROLES_PATH": str(REPO / "packages/ansible/roles"), "LC_ALL": "C.UTF-8", "HOME": "/root"}
    done = machine.run(sys.executable, program, "-v", *options, "/srv/site.yml", env=surroundings, timeout=300)
    changed = re.search(r"changed=(\d+) +unreachable=0 +failed=0", done.stdout)
    assert changed, done.stdout
    return int(changed[1]), done.stdout + done.stderr


STUB = """#!/bin/sh
[ "$3" = good ] || { echo '{"error": {}}'; exit 6; }
echo '{"service": "good", "changes": [{}], "api_key": "sk-good-1"}'
"""


def test_a_key_is_kept_where_no_directory_was_made_for_it_and_another_service_fails(tmp_path: Path) -> None:
    """It is shown but once."""
    stub, play, kept = tmp_path / "stub", tmp_path / "site.yml", tmp_path / "keys"
    stub.write_text(STUB)
    stub.chmod(0o755)
    said = {
        "vllm_install_command": [str(stub)], "vllm_install_services": {"bad": {}, "good": {}, "worse": {}},
        "ansible_python_interpreter": sys.executable, "vllm_install_keys": str(kept),
    }  # fmt: skip
    tasks = [{"import_role": {"name": "vllm_install"}}]
    whole = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": said, "tasks": tasks}
    play.write_text(json.dumps([whole]))
    program = Path(sys.executable).with_name("ansible-playbook")
    surroundings = {**os.environ, "ANSIBLE_ROLES_PATH": str(REPO / "packages/ansible/roles"), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, program, play], env=surroundings, capture_output=True, text=True)
    assert "failed=1" in done.stdout, done.stdout + done.stderr
    assert "sk-good-1" not in done.stdout + done.stderr
    assert {path.name: path.read_text() for path in kept.iterdir()} == {"localhost-good": "sk-good-1\n"}
    assert (kept.stat().st_mode & 0o777, (kept / "localhost-good").stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_role_converges_a_host_keeps_the_key_and_changes_nothing_twice(standin_wheels: Path) -> None:
    with Machine() as machine:
        settings = {"MODEL_NAME": MODEL, "ENGINE": "cpu", "FIND_LINKS": str(standin_wheels), "OFFLINE": "yes"}
        changed, said = played(machine, settings)
        key = machine.at(KEY).read_text().strip()
        assert (changed, machine.at(KEY).stat().st_mode & 0o777) == (3, 0o600), (
            "the service, and its key in a directory on the controller"
        )
        assert key not in said
        serves(machine, key)
        pid = main_pid(machine)
        assert played(machine, settings)[0] == 0
        assert played(machine, {**settings, "DRAIN_SECONDS": "7"}, "--check")[0] == 1
        assert (main_pid(machine), cli(machine, "deploy", "--json").changes) == (pid, [])
        assert played(machine, {**settings, "DRAIN_SECONDS": "7"})[0] == 1
        assert "DRAIN_SECONDS=7" in machine.at(f"/etc/vllm-install/{SERVICE}.env").read_text()
        serves(machine, key)
