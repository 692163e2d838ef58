"""Driving a deployed service in a machine the way its users do: the command line, requests, systemctl, signals."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.kit.boot.machine import Machine, MachineFailed
from tests.kit.boot.snapshot import difference, snapshot

SERVICE = "qwen3vl"
MODEL = "builtin:tiny"
T = TypeVar("T")

# Does all that a local user can to listen on a port: prints each address where it came to that.
TAKE = """
import socket, sys
for family, address in ((2, "127.0.0.1"), (2, "0.0.0.0"), (10, "::"), (10, "::ffff:127.0.0.1")):
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        taker = socket.socket(family)
        taker.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            taker.bind((address, int(sys.argv[1])))
            taker.listen()
            print(address, flush=True)
        except OSError:
            pass
        taker.close()
"""


@dataclass(frozen=True)
class Answer:
    status: int
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Outcome:
    """How one run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def changes(self) -> list[dict[str, Any]]:
        return list(self.json["changes"])

    @property
    def key(self) -> str:
        found = re.search(r"sk-[\w-]{20,}", self.out)
        assert found, f"no key in:\n{self.out}\n{self.err}"
        return found[0]


def standin(wheels: Path) -> tuple[str, ...]:
    """The options that deploy the stand-in engine with the built-in model."""
    return ("--model", MODEL, "--engine", "cpu", "--find-links", str(wheels), "--offline")


def cli(machine: Machine, *args: str, code: int = 0, stdin: str = "", timeout: float = 600) -> Outcome:
    """Run the command line; another exit status than `code` fails with everything there is to see."""
    done = machine.cli(*args, check=False, stdin=stdin, timeout=timeout)
    said = f"vllm-install {' '.join(args)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, f"{said}\n{machine.evidence()}"
    assert "Traceback" not in done.stderr, said
    return Outcome(done.returncode, done.stdout, done.stderr)


def ask(machine: Machine, method: str, path: str, key: str = "", body: object = None, port: int = 8000) -> Answer:
    """Asks from within, where the service listens."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.sock = machine.connect(port)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())
    except (OSError, http.client.HTTPException) as error:
        raise MachineFailed(f"{method} {path} was not answered: {error!r}\n{machine.evidence()}") from None
    finally:
        connection.close()


def chat(machine: Machine, key: str, port: int = 8000, *, stream: bool = False) -> Answer:
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    return ask(machine, "POST", "/v1/chat/completions", key, body, port)


def serves(machine: Machine, key: str, port: int = 8000) -> None:
    """What a client relies on: the key opens, no key does not, and a chat is answered."""
    assert ask(machine, "GET", "/v1/models", port=port).status == 401
    answer = chat(machine, key, port)
    assert answer.status == 200, answer
    assert answer.json["choices"][0]["message"]["content"], answer


def unit(machine: Machine, *names: str, service: str = SERVICE) -> dict[str, str]:
    shown = machine.run("systemctl", "show", f"{service}.service", f"--property={','.join(names)}").stdout
    return dict(line.partition("=")[::2] for line in shown.splitlines())


def main_pid(machine: Machine, service: str = SERVICE) -> int:
    return int(unit(machine, "MainPID", service=service)["MainPID"])


def processes(machine: Machine, service: str = SERVICE) -> dict[int, str]:
    """pid -> command line of every process of the service, as numbered in the machine."""
    script = f"""
    group=$(systemctl show {service} --property=ControlGroup --value)
    [ -n "$group" ] || exit 0
    for pid in $(find /sys/fs/cgroup"$group" -name cgroup.procs -exec cat {{}} + 2>/dev/null); do
        echo "$pid $(tr '\\0' ' ' 2>/dev/null </proc/"$pid"/cmdline || true)"
    done"""
    lines = machine.shell(script).stdout.splitlines()
    return {int(line.partition(" ")[0]): line.partition(" ")[2].strip() for line in lines}


def engine_pid(machine: Machine, service: str = SERVICE) -> int:
    return next(pid for pid, line in processes(machine, service).items() if line.startswith("VLLM::EngineCore"))


def server_pid(machine: Machine, service: str = SERVICE) -> int:
    """vLLM's own main process, which answers requests; the unit's is its supervisor."""
    return next(pid for pid, line in processes(machine, service).items() if "/vllm_listen.py" in line)


def is_up(machine: Machine, service: str = SERVICE) -> bool:
    return unit(machine, "ActiveState", service=service)["ActiveState"] == "active"


def taken(machine: Machine, port: int = 8000) -> str:
    """Where somebody with no rights at all gets to listen on the service's port."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    return machine.run(*user, "/usr/bin/python3", "-c", TAKE, str(port)).stdout


def until(what: str, condition: Callable[[], T], machine: Machine, seconds: float = 300) -> T:
    """Ask until the condition holds, and give what it gave; beyond the deadline, show the machine."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        if found := condition():
            return found
        time.sleep(min(0.25, max(0.05, waited / 20)))  # most ask by a process, which takes from what they wait for
    raise AssertionError(f"not within {seconds:g} s: {what}\n{machine.evidence()}")


def is_gone(
    machine: Machine, before: dict[str, str], services: Iterable[str] = (SERVICE,), *, beside: Collection[str] = ()
) -> None:
    """Nothing is left of the services: no file, user, unit, failed state, process or runtime directory."""
    left = difference(before, snapshot(machine.root, beside))
    assert left == [], left
    for service in services:
        shown = machine.shell(f"systemctl list-units --all --plain --no-legend '{service}*'; ls -d /run/{service} || :")
        assert shown.stdout == "", shown.stdout
        assert machine.run("getent", "passwd", f"vllm-{service}", check=False).returncode == 2
    if not machine.at("/etc/systemd/system/vllm.slice").exists():
        assert machine.run("systemctl", "is-active", "vllm.slice", check=False).stdout == "inactive\n"
    assert machine.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""
    assert "VLLM::" not in machine.run("ps", "ax", "-o", "args").stdout


def written(changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [change for change in changes if change["kind"] == "write"]
