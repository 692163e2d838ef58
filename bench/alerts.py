"""False alerts: a healthy service under as much load as it takes, watched by the rules as they ship.

Usage: python bench/alerts.py [MINUTES]. A booted machine with the stand-in engine, 32 clients that never pause,
Prometheus and Alertmanager to a webhook. Any alert that comes is a false one, and fails. 10 minutes without a number.
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
from tests.kit.life import chat, cli, standin  # noqa: E402
from tests.kit.standin.wheel import build_wheel  # noqa: E402

CLIENTS = 32


def main(minutes: float) -> int:
    wheels = REPO / "build/standin"
    build_wheel(wheels, "0.32.0")
    with Machine() as machine:
        key, scraper = cli(machine, "deploy", *standin(wheels)).key, "sk-" + secrets.token_hex(24)
        cli(machine, "set", "TARGET_TTFT=10s", "TARGET_ITL=5s")
        cli(machine, "set-apikey", "--name", "monitor", "--role", "metrics", "-", stdin=scraper)
        watch = Watch.start(machine, scraper, 1)
        asked = load(machine, key, time.monotonic() + 60 * minutes)
        came = {each["labels"]["alertname"] for message in watch.received() for each in message["alerts"]}
        pending = watch.query("ALERTS")
    print(f"{asked} requests by {CLIENTS} clients in {minutes:g} minutes; alerts: {', '.join(sorted(came)) or 'none'}")
    print(f"pending at the end: {len(pending)}")
    return bool(came)


def load(machine: Machine, key: str, end: float) -> int:
    counts = [0] * CLIENTS

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
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10))
