"""Restarts: what clients lose by a restart and by each change, beside the same without what was done about it.

With callers held (HOLD=120), and without (HOLD=0) while vLLM starts as it does by itself, spawning its processes: so it
was before. The real vLLM (CPU engine) in a booted machine, under 10 new connections a second and 4 clients that keep
theirs, all of them patient for two minutes. Needs root; the engine is built on first use (the network, some 5 GB below
build/opt).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.boot.surroundings import free_port  # noqa: E402
from tests.kit.life import SERVICE, cli  # noqa: E402
from tests.kit.load import Plan, Result, load  # noqa: E402
from tests.vllm.test_change_real import MODEL, SHARE, WHEELS, furnish, refused_context, release  # noqa: E402

HOLDS = (120, 0)
AS_BEFORE = "[Service]\nEnvironment=VLLM_WORKER_MULTIPROC_METHOD=spawn VLLM_USE_AOT_COMPILE=1\n"
BEFORE, AFTER = 40, 80  # requests that are waited for before a change, and after it
LIMIT = 1200.0
HANDOVER, RESTART = 0.4, 0.7  # what the gap of a handover may be of a restart's, and a restart's of what it was


@dataclass(frozen=True)
class Measured:
    name: str
    hold: int
    seconds: float
    result: Result

    def __str__(self) -> str:
        seen = self.result
        requests = f"{seen.failed:4} of {seen.asked:4} failed"
        waits = f"longest wait {seen.longest_wait:5.1f} s  p99 {seen.latency(0.99):5.1f} s  gap {seen.gap:5.1f} s"
        return f"  {self.name:<20} HOLD={self.hold:<3}  {requests}  {waits}  {self.seconds:5.1f} s in all"


def cases(machine: Machine, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """In an order in which each finds what the one before left; the context that fails is undone."""
    release(machine, f"9999.{number}", "")
    yield "systemctl restart", lambda: machine.run("systemctl", "restart", SERVICE, timeout=LIMIT)
    yield "set-context", lambda: cli(machine, "set-context", "2048", timeout=LIMIT)
    yield "set-context, fails", lambda: refused_context(machine, 2048)
    yield "upgrade", lambda: cli(machine, "upgrade", timeout=LIMIT)
    yield "rollback", lambda: cli(machine, "rollback", timeout=LIMIT)


def measure(name: str, hold: int, plan: Plan, change: Callable[[], object]) -> Measured:
    with load(plan) as running:  # the machine shares this host's network
        running.wait_for(BEFORE, LIMIT)
        if running.result.failed:
            raise SystemExit(f"requests fail before anything was changed: {running.result.failures}")
        started = time.perf_counter()
        change()
        seconds = time.perf_counter() - started
        running.wait_for(AFTER, LIMIT)
    return Measured(name, hold, seconds, running.result)


def bench() -> Iterator[Measured]:
    port = free_port()
    with Machine(network=True, store=True) as machine:
        furnish(machine)
        model = ("--model", str(MODEL), "--served-model-name", Plan.model, "--gpu-memory-utilization", str(SHARE))
        options = ("--engine", "cpu", "--port", str(port), "--find-links", WHEELS)
        key = cli(machine, "deploy", *model, *options, timeout=900).key
        machine.save_store()
        for number, hold in enumerate(HOLDS, 1):
            if not hold:
                machine.write(f"/etc/systemd/system/{SERVICE}.service.d/before.conf", AS_BEFORE)
                machine.run("systemctl", "daemon-reload")
            cli(machine, "set", f"HOLD={hold}", "MAX_MODEL_LEN=1024", timeout=LIMIT)
            for name, change in cases(machine, number):
                measured = measure(name, hold, Plan(port, key), change)
                print(measured, flush=True)
                if measured.result.failures:
                    print(f"    {measured.result.failures}", flush=True)
                yield measured


def compared(found: dict[tuple[str, int], Result]) -> Iterator[str]:
    """What was promised, and whether it holds in this run."""
    held, before = HOLDS
    gap = {case: result.gap for case, result in found.items()}
    restart, once = gap["systemctl restart", held], gap["systemctl restart", before]
    for name in ("set-context", "upgrade", "rollback"):
        yield f"gap of {name} is {gap[name, held] / restart:.2f} of a restart's (wanted: {HANDOVER} at most)"
    yield f"gap of a restart is {restart / once:.2f} of what it was (wanted: {RESTART} at most)"


def main() -> None:
    print("vLLM on the CPU, 10 new connections/s and 4 kept ones, plain and streaming; patient for 120 s:")
    found = {(each.name, each.hold): each.result for each in bench()}
    for line in compared(found):
        print(f"  {line}")
    if any(result.failed for (_, hold), result in found.items() if hold):
        raise SystemExit("a change must not cost a request")


if __name__ == "__main__":
    main()
