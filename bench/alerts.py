"""False alerts: a healthy service under load, watched by the rules as they ship, through Alertmanager to a webhook.

Usage: python bench/alerts.py [real] [MINUTES]. A booted machine; with the stand-in engine as much load as it takes,
from 32 clients that never pause. `real` is the real vLLM (CPU engine) under a usual load, two new connections a second
and two clients that keep theirs; on first use the engine is built (the network, some 5 GB below build/opt). Any alert
that comes is a false one, and fails. 10 minutes without a number.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from tests.kit.alerting import Watch  # noqa: E402
from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.life import MODEL, chat, cli, standin  # noqa: E402
from tests.kit.load import Plan, load  # noqa: E402
from tests.kit.standin.wheel import build_wheel  # noqa: E402

CLIENTS = 32
REAL = ("--model", MODEL, "--engine", "cpu", "--gpu-memory-utilization", "0.1", "--context", "16k", "--offline")


def main(words: list[str]) -> int:
    is_real, minutes = "real" in words, float(next((word for word in words if word != "real"), 10))
    if is_real:
        build_engine()
    else:
        build_wheel(REPO / "build/standin", "0.32.0")
    with Machine(store=is_real) as machine:
        options = REAL if is_real else standin(REPO / "build/standin")
        key, scraper = cli(machine, "deploy", *options, timeout=900).key, "sk-" + secrets.token_hex(24)
        cli(machine, "set", "TARGET_TTFT=10s", "TARGET_ITL=5s")
        cli(machine, "set-apikey", "--name", "monitor", "--role", "metrics", "-", stdin=scraper)
        watch = Watch.start(machine, scraper, 1)
        asked = usual(machine, key, minutes) if is_real else saturate(machine, key, minutes)
        came = {each["labels"]["alertname"] for message in watch.received() for each in message["alerts"]}
        pending = [each["metric"]["alertname"] for each in watch.query("ALERTS")]
    what = "the real vLLM, a usual load" if is_real else f"the stand-in, {CLIENTS} clients that never pause"
    print(f"{what}: {asked} requests in {minutes:g} minutes; alerts: {', '.join(sorted(came)) or 'none'}")
    print(f"pending at the end: {', '.join(sorted(pending)) or 'none'}")
    return bool(came)


def build_engine() -> None:
    """The other machine has no network, so that its ports are nobody else's."""
    with Machine(network=True, store=True) as machine:
        machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", timeout=900)
        machine.save_store()


def usual(machine: Machine, key: str, minutes: float) -> int:
    with load(Plan(8000, key, rate=2, keep=2), machine.start) as running:
        time.sleep(60 * minutes)
    assert running.result.failed == 0, running.result.failures
    return running.result.asked


def saturate(machine: Machine, key: str, minutes: float) -> int:
    counts, end = [0] * CLIENTS, time.monotonic() + 60 * minutes

    def client(number: int) -> None:
        while time.monotonic() < end:
            assert chat(machine, key).status == 200
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
