"""Rotation: `set-apikey --keep-old 10m` under load, beside editing the unit and restarting, in the same run.

The real vLLM (CPU engine, built-in model) in a booted machine, under a constant load of plain and streaming requests.
Needs root; the engine is built on first use (the network, some 5 GB below build/opt) and kept.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.life import MODEL, cli, main_pid  # noqa: E402

UNIT = "/etc/systemd/system/qwen3vl.service"
CLIENTS = 2  # of each kind; each asks for one completion after the other
PACE = 0.4  # seconds between two requests of one client: some 10 requests/s in all, which two cores bear
POLL = 0.01
LIMIT = 300.0


def ask(port: int, key: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        path = "/v1/completions" if body else "/v1/models"
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclass
class Load:
    """What clients saw that know nothing of the change and keep the key they have."""

    port: int
    key: str
    asked: int = 0
    failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Load]:
        clients = [threading.Thread(target=self._client, args=(n % 2 == 0,)) for n in range(2 * CLIENTS)]
        for client in clients:
            client.start()
        try:
            yield self
        finally:
            self._end.set()
            for client in clients:
                client.join()

    def _client(self, stream: bool) -> None:
        while not self._end.wait(PACE):
            good = self._answered(stream)
            with self._lock:
                self.asked += 1
                self.failed += not good

    def _answered(self, stream: bool) -> bool:
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 16, "ignore_eos": True, "stream": stream}
        try:
            status, said = ask(self.port, self.key, body)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200 and (said.rstrip().endswith(b"[DONE]") if stream else b'"choices"' in said)

    def wait_for(self, count: int) -> None:
        """Return when so many more requests have been answered."""
        goal = self.asked + count
        while self.asked < goal:
            self._end.wait(POLL)


@dataclass(frozen=True)
class Result:
    name: str
    accepted: float  # seconds from the start of the change until the new key is accepted
    whole: float
    asked: int
    failed: int
    same_process: bool

    def __str__(self) -> str:
        process = "same process" if self.same_process else "another process"
        requests = f"{self.failed:4} of {self.asked:4} requests failed"
        return f"  {self.name:<28} {self.accepted:7.2f} s   {requests}   {process}, {self.whole:.1f} s in all"


def measure(name: str, machine: Machine, port: int, old: str, new: str, change: Callable[[], object]) -> Result:
    pid = main_pid(machine)
    with Load(port, old).running() as load:
        load.wait_for(4 * CLIENTS)
        if load.failed:
            raise SystemExit("requests fail before anything was changed")
        started = time.perf_counter()
        worker = threading.Thread(target=change)
        worker.start()
        accepted = first_accepted(port, new) - started
        worker.join()
        whole = time.perf_counter() - started
        load.wait_for(4 * CLIENTS)
    return Result(name, accepted, whole, load.asked, load.failed, main_pid(machine) == pid)


def first_accepted(port: int, key: str) -> float:
    deadline = time.perf_counter() + LIMIT
    while time.perf_counter() < deadline:
        try:
            if ask(port, key)[0] == 200:
                return time.perf_counter()
        except (OSError, http.client.HTTPException):
            pass  # it is down
        time.sleep(POLL)
    raise SystemExit(f"the new key was not accepted within {LIMIT:g} s")


def edit_and_restart(machine: Machine, new: str) -> None:
    """What one does without us, with the old key left valid so that only the restart costs requests."""
    text = machine.at(UNIT).read_text()
    added = f" --api-key second=sha256:{hashlib.sha256(new.encode()).hexdigest()} --api-key "
    machine.at(UNIT).write_text(text.replace(" --api-key ", added, 1))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "qwen3vl", timeout=LIMIT)


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def bench() -> tuple[Result, Result]:
    port = free_port()  # the machine shares this host's network
    options = ("--model", MODEL, "--engine", "cpu", "--gpu-memory-utilization", "0.1", "--port", str(port))
    first, second, third = (f"sk-bench-{secrets.token_urlsafe(32)}" for _ in range(3))
    with Machine(network=True, store=True) as machine:
        cli(machine, "deploy", *options, timeout=900)
        machine.save_store()
        cli(machine, "set-apikey", "-", stdin=first)
        rotate = ("set-apikey", "-", "--keep-old", "10m")
        rotated = measure(
            "set-apikey --keep-old 10m", machine, port, first, second, lambda: cli(machine, *rotate, stdin=second)
        )
        restarted = measure(
            "edit the unit and restart", machine, port, second, third, lambda: edit_and_restart(machine, third)
        )
    return rotated, restarted


def main() -> None:
    rotated, restarted = bench()
    print(f"key rotation, vLLM on the CPU, {MODEL}, {CLIENTS} plain and {CLIENTS} streaming clients:")
    print("until the new key is accepted, and what the clients saw that keep the old one")
    print(rotated)
    print(restarted)
    ratio = restarted.accepted / rotated.accepted
    print(f"  {ratio:.0f} times as long, {restarted.failed} against {rotated.failed} failed requests")
    if rotated.failed or not rotated.same_process:
        raise SystemExit("a rotation must not cost a request")


if __name__ == "__main__":
    main()
