"""Scraping: what it takes of the completions that a Prometheus reads /metrics of the real vLLM every five seconds.

Usage: python bench/scrape.py [ROUNDS]. The server of bench/guard.py is asked with and without a reader in turn, 16
requests at a time. The reader comes some fifty times as often as every 5 s, for half a percent is less than two moments
differ by; what it costs is divided by how often it came. The cost at 5 s must stay below 0.5 %.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from bench.engine import PLACE, free_port  # noqa: E402
from bench.guard import HOME, KEY, MODEL, SERVE_OPTIONS, Server, ask, digests, engine_python, processor_time, running  # noqa: E402
from installer.base.assets import RUNTIME  # noqa: E402

ROUTE = "one-token completions"
EVERY, OFTEN = 5.0, 0.1  # seconds between two readings: what is asked about, and what is done
MOST = 0.005
ROUNDS = 40
REQUEST = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


class Pair(NamedTuple):
    alone: float
    watched: float
    readings: float  # a second, while it was watched


async def read_often(server: Server) -> list[int]:
    """Until it is cancelled; gives the sizes of what it read."""
    sizes: list[int] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with contextlib.suppress(asyncio.CancelledError), contextlib.closing(writer):
        while True:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            sizes.append(length)
            await asyncio.sleep(OFTEN)
    return sizes


async def watched(server: Server) -> tuple[float, float]:
    """Requests a second, and readings a second beside them."""
    began = time.perf_counter()
    reading = asyncio.create_task(read_often(server))
    rate = (await ask(server, ROUTE)).rate
    seconds = time.perf_counter() - began
    reading.cancel()
    return rate, len(await reading) / seconds


async def work_of_one(server: Server) -> tuple[float, int]:
    """Processor time of the API server for one reading, with nothing else to do, and its size."""
    busy = processor_time(server.pid)
    reading = asyncio.create_task(read_often(server))
    await asyncio.sleep(10)
    reading.cancel()
    sizes = await reading
    return (processor_time(server.pid) - busy) / len(sizes), sizes[-1]


def measure(server: Server, rounds: int) -> list[Pair]:
    pairs = []
    for number in range(rounds + 1):  # the first is to warm up
        if number % 2:
            alone, (rate, readings) = asyncio.run(ask(server, ROUTE)).rate, asyncio.run(watched(server))
        else:
            (rate, readings), alone = asyncio.run(watched(server)), asyncio.run(ask(server, ROUTE)).rate
        pairs.append(Pair(alone, rate, readings))
    return pairs[1:]


def report(pairs: list[Pair]) -> float:
    """The share of the completions that is lost to a reading every 5 s, with the error of it."""
    losses = [1 - pair.watched / pair.alone for pair in pairs]
    loss, readings = statistics.median(losses), statistics.median(pair.readings for pair in pairs)
    error = 1.86 * statistics.median(abs(each - loss) for each in losses) / math.sqrt(len(losses))
    cost, unsure = loss / (readings * EVERY), error / (readings * EVERY)
    alone = statistics.median(pair.alone for pair in pairs)
    print(f"  {alone:.0f} requests/s alone; {readings:.1f} readings a second cost {loss:.1%} (±{error:.1%}) of them")
    print(f"  every {EVERY:g} s: {cost:.3%} (±{unsure:.3%}) of the completions, at most {MOST:.1%} is wanted")
    return cost + unsure


def main(words: list[str]) -> int:
    PLACE.mkdir(parents=True, exist_ok=True)
    python, port = engine_python(), free_port()
    shutil.rmtree(HOME, ignore_errors=True)
    for name in ("run", "credentials", "caches", "usage"):
        (HOME / name).mkdir(parents=True)
    (HOME / "credentials/probe-key").write_text("sk-probe-" + secrets.token_urlsafe(32))
    launch = [str(python), str(RUNTIME / "vllm_launcher.py"), "launch", *digests(1), "--", "serve", str(MODEL)]
    load = os.getloadavg()[0]
    with running([*launch, *SERVE_OPTIONS, "--port", str(port)], port) as server:
        pairs = measure(server, int(words[0]) if words else ROUNDS)
        work, size = asyncio.run(work_of_one(server))
    print(f"/metrics read beside completions, median of {len(pairs)} rounds; {os.cpu_count()} cores, load {load:.1f}")
    print(f"  one reading: {work * 1e3:.1f} ms of the API server's processor, {size} bytes")
    return 0 if report(pairs) <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
