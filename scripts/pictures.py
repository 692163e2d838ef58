"""The dashboards as pictures in docs/images: the real vLLM on the CPU under load, seen by a real Prometheus (root).

The load comes in waves, of four keys, one of them limited; the GPUs are those of the tests, which are not there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.answers import Answers, answers
from scripts.panels import THEMES, picture
from scripts.screens import IMAGES, MODEL
from tests.kit import grafana
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.figures import figures
from tests.kit.life import SERVICE, cli
from tests.kit.prometheus import Prometheus, Target, watching

SECONDS = 300
WAVE = 170  # seconds from one busy time to the next
CLIENTS = ("default", "team-a", "team-b", "ci", "team-a", "default", "team-b", "team-a")
LENGTHS, ANSWERS = (2, 8, 30, 100), (16, 60, 200, 500)


def main() -> None:
    with Machine(network=True, store=True) as machine:
        machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", timeout=900)
        machine.save_store()
        seen = look(machine)
    for name in grafana.NAMES:
        for suffix, theme in THEMES.items():
            svg = picture(grafana.shipped(name), seen.boards[name], seen.span, theme, seen.marks)
            (IMAGES / f"dashboard-{name}{suffix}.svg").write_text(svg)


def look(machine: Machine) -> Answers:
    """What Prometheus saw of a service that was asked for a while."""
    port = free_port()
    keys = {
        "default": cli(machine, "deploy", "--model", MODEL, "--engine", "cpu", "--port", str(port), timeout=600).key
    }
    keys |= {name: cli(machine, "set-apikey", "--name", name).key for name in set(CLIENTS) - {"default"}}
    cli(machine, "keys", "limit", "ci", "--requests", "20/min")
    target = Target(SERVICE, "0", port, keys["default"])
    with tempfile.TemporaryDirectory() as home, watching(Path(home), [target]) as prometheus:
        began = time.time()
        with asked(port, keys, began):
            watch(prometheus, began)
        return answers(prometheus, began + 5, time.time(), host=".*", service=SERVICE, gpu=".*")


def watch(prometheus: Prometheus, began: float) -> None:
    """A change is remembered two thirds of the way."""
    while (now := time.time()) < began + SECONDS:
        changed = began + SECONDS * 2 / 3
        prometheus.write(figures(SERVICE, now, began, changed if now > changed else began - 9000))
        time.sleep(1)


@contextlib.contextmanager
def asked(port: int, keys: dict[str, str], began: float) -> Iterator[None]:
    over = threading.Event()
    clients = [
        threading.Thread(target=client, args=(number, port, keys[name], began, over))
        for number, name in enumerate(CLIENTS)
    ]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in clients:
            each.join()


def client(number: int, port: int, key: str, began: float, over: threading.Event) -> None:
    """Asks, and rests the longer the less is going on; the later ones come in busy times only."""
    chance = random.Random(number)  # noqa: S311 - the same load each time
    while not over.is_set():
        wave = 0.5 - 0.5 * math.cos((time.time() - began) / WAVE * 2 * math.pi)
        if wave * len(CLIENTS) >= number - 2:
            ask(port, key, chance)
        over.wait(chance.random() * (1.5 - wave))


def ask(port: int, key: str, chance: random.Random) -> None:
    """Now and then something that is no request, or a client that goes before the end."""
    prompt = "Once upon a time " * chance.choice(LENGTHS)
    body = {"model": MODEL, "prompt": prompt, "max_tokens": chance.choice(ANSWERS), "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        sent = {"model": MODEL} if chance.random() < 0.03 else {**body, "ignore_eos": chance.random() < 0.8}
        connection.request("POST", "/v1/completions", json.dumps(sent), headers)
        connection.getresponse().read(200 if chance.random() < 0.05 else None)


if __name__ == "__main__":
    main()
