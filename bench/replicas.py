"""Replicas: what clients lose while two of the real vLLM are changed, restarted and killed behind the gateway.

The CPU engine in a booted machine, under 10 new connections a second and 4 clients that keep theirs. Needs root; the
engine is built on first use (the network, some 5 GB below build/opt).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from bench.restarts import LIMIT, Measured, measure  # noqa: E402
from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.boot.surroundings import free_port  # noqa: E402
from tests.kit.life import SERVICE, cli, engine_pid, unit, until  # noqa: E402
from tests.kit.load import Plan  # noqa: E402
from tests.vllm.test_change_real import MODEL, SHARE, WHEELS, furnish, release  # noqa: E402

FIRST, SECOND = f"{SERVICE}@1", f"{SERVICE}@2"
HOLD = 120
# The second replica alone refuses this context: what was changed in the first has to be undone.
REFUSED = 3072
REFUSES = f"""\
[Service]
ExecStartPre=/bin/sh -c '! grep -q "max-model-len {REFUSED}" /etc/systemd/system/{SECOND}.service'
"""
KILLED = "SIGKILL of an engine"
IN_FLIGHT = 14  # new connections of a second, and those that are kept


def killed(machine: Machine) -> None:
    before = unit(machine, "InvocationID", service=FIRST)["InvocationID"]
    machine.run("kill", "-KILL", str(engine_pid(machine, FIRST)))

    def is_back() -> bool:
        now = unit(machine, "InvocationID", "ActiveState", service=FIRST)
        return now["InvocationID"] != before and now["ActiveState"] == "active"

    until("it is back", is_back, machine, LIMIT)


def undone(machine: Machine) -> None:
    drop_in = f"/etc/systemd/system/{SECOND}.service.d/refuses.conf"
    machine.write(drop_in, REFUSES)
    machine.run("systemctl", "daemon-reload")
    cli(machine, "set-context", str(REFUSED), code=6, timeout=LIMIT)
    machine.at(drop_in).unlink()
    machine.run("systemctl", "daemon-reload")


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], object]]]:
    """In an order in which each finds what the one before left."""
    release(machine, "9999.1", "")
    yield "from 1 to 2", lambda: cli(machine, "set", "REPLICAS=2", timeout=LIMIT)
    yield KILLED, lambda: killed(machine)
    yield "systemctl restart @1", lambda: machine.run("systemctl", "restart", FIRST, timeout=LIMIT)
    yield "set-context", lambda: cli(machine, "set-context", "2048", timeout=LIMIT)
    yield "set-context, fails in @2", lambda: undone(machine)
    yield "upgrade", lambda: cli(machine, "upgrade", timeout=LIMIT)
    yield "from 2 to 1", lambda: cli(machine, "set", "REPLICAS=1", timeout=LIMIT)


def bench() -> Iterator[Measured]:
    port = free_port()
    with Machine(network=True, store=True) as machine:
        furnish(machine)
        model = ("--model", str(MODEL), "--served-model-name", Plan.model, "--gpu-memory-utilization", str(SHARE))
        options = ("--engine", "cpu", "--context", "1024", "--port", str(port), "--find-links", WHEELS)
        key = cli(machine, "deploy", *model, *options, timeout=900).key
        machine.save_store()
        for name, change in cases(machine):
            measured = measure(name, HOLD, Plan(port, key), change)
            print(measured, measured.result.failures or "", flush=True)
            yield measured


def main() -> None:
    print("two of vLLM on the CPU, 10 new connections/s and 4 kept ones, plain and streaming; patient for 120 s:")
    failed = {each.name: each.result.failed for each in bench()}
    if any(count > (IN_FLIGHT if name == KILLED else 0) for name, count in failed.items()):
        raise SystemExit("a change must not cost a request")


if __name__ == "__main__":
    main()
