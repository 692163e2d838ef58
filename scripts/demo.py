"""A whole life in front of your eyes: a throwaway systemd host, the real command line, the real vLLM on the CPU."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time

from scripts.manpage import NAME, manpage
from tests.kit.boot.machine import STORE, Machine, MachineFailed
from tests.kit.boot.surroundings import REPO, free_port, inherited_environment

MODEL = "builtin:tiny"
SERVICE = "qwen3vl"
COMMANDS, PAGES = "/opt/bin", "/opt/man"
# Who enters is root, but types what the messages say; options and NAME=VALUE are sudo's.
SUDO = """#!/bin/sh
while case ${1-} in -*) true ;; *) false ;; esac; do shift; done
exec env "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--keep", action="store_true", help="leave the host running and say how to enter it")
    keep = parser.parse_args().keep
    began = time.monotonic()
    say("Booting a throwaway host: systemd as PID 1, this machine's /usr, an empty /etc and /var")
    try:
        with Machine(network=True, store=True, keep=keep) as machine:
            furnish(machine)
            show(machine, "systemctl", "is-system-running")
            life(machine)
            machine.save_store()
            if keep:
                say_how_to_enter(machine)
    except MachineFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    if not keep:
        say(f"Done in {time.monotonic() - began:.0f} s. The host and everything on it is gone.")
        print(f"The engine stays in {STORE.relative_to(REPO)} for the next run; make clean removes it.")
    return 0


def furnish(machine: Machine) -> None:
    """What an installed tool has and an administrator types: the command, its man page, and sudo."""
    tool = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(REPO))} exec {shlex.quote(sys.executable)} -m installer "$@"\n'
    machine.write(f"{COMMANDS}/vllm-install", tool, 0o755)
    machine.write(f"{COMMANDS}/sudo", SUDO, 0o755)
    machine.write(f"{PAGES}/man8/{NAME}", manpage())
    machine.write("/etc/profile", "".join(f"export {n}={shlex.quote(v)}\n" for n, v in environment().items()), 0o600)


def environment() -> dict[str, str]:
    inherited = inherited_environment()
    return {**inherited, "PATH": f"{COMMANDS}:{inherited['PATH']}", "MANPATH": PAGES}


def life(machine: Machine) -> None:
    port = str(free_port())
    say("Deploying a tiny built-in model with the real vLLM on the CPU (a first run downloads about 1 GB)")
    said = show(
        machine, "vllm-install", "deploy", "--model", MODEL, "--engine", "cpu", "--host", "127.0.0.1", "--port", port
    )
    key = re.search(r"\bsk-\S+", said)
    assert key is not None, "deploy prints the new key"
    say("A chat request with the key, then one without")
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16})
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = ("curl", "--silent", "--show-error", url, "-H", "Content-Type: application/json", "-d", body)
    show(machine, *request, "-H", f"Authorization: Bearer {key[0]}")
    show(machine, *request, "--write-out", " (status %{http_code})")
    say("The service, as systemd and vllm-install see it")
    show(machine, "systemctl", "--no-pager", "--lines=0", "status", SERVICE)
    show(machine, "journalctl", "--no-pager", "--output=cat", "--lines=15", f"--unit={SERVICE}")
    show(machine, "vllm-install", "status")
    say("Deploying once more: nothing to do")
    show(machine, "vllm-install", "deploy")


def show(machine: Machine, *argv: str) -> str:
    """Run a command in the machine, its output on our terminal as it comes; returns what it printed on stdout."""
    print(f"# {shlex.join(argv)}", flush=True)
    with subprocess.Popen(
        machine.command(*argv), env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            print(line, end="", flush=True)
    if process.returncode != 0:
        raise MachineFailed(f"{shlex.join(argv)} ended with {process.returncode}\n{machine.evidence()}")
    print("" if said.endswith("\n") else "\n", flush=True)
    return said


def say(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}", flush=True)


def say_how_to_enter(machine: Machine) -> None:
    say("The host is left running")
    print(f"enter it:  sudo {shlex.join(machine.command('env', '-i', 'HOME=/root', 'TERM=xterm', 'bash', '-l'))}")
    print("there:     vllm-install status, man vllm-install, sudo vllm-install doctor")
    print("end it:    sudo make demo-end   (make clean does, too)")


if __name__ == "__main__":
    sys.exit(main())
