"""Guard: requests/s of the real vLLM behind the guard, with one key and with 1000, beside vLLM's own --api-key.

Usage: python bench/guard.py [ROUNDS]. Both servers run on this host with the CPU engine of bench/engine.py and are
asked in turn, 16 requests at a time, so that a busy moment hits both. Other work on the host still shows in requests/s;
the processor time that the API server takes for a request tells more then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from bench.engine import LAYOUT, PLACE, SETTINGS, free_port, fresh_host, resolve  # noqa: E402
from installer.base.assets import RUNTIME  # noqa: E402
from installer.base.host import Host  # noqa: E402
from installer.base.report import Report  # noqa: E402
from installer.families.vllm import builds  # noqa: E402
from installer.forms.venv import engines  # noqa: E402
from installer.forms.venv.engines import InstallEngine  # noqa: E402
from installer.model import builtin  # noqa: E402

MODEL = PLACE / "model"
HOME = PLACE / "guard"
KEY = "sk-bench-" + secrets.token_urlsafe(32)
CONNECTIONS = 16
SECONDS = 0.4
ROUNDS = 60
START_LIMIT = 300.0
QUESTION = json.dumps({"model": str(MODEL), "prompt": "Hi", "max_tokens": 1, "temperature": 0}).encode()
# What is asked, and the share of the requests/s behind vLLM's own check that the guard has to reach.
ROUTES = {
    "one-token completions": ("POST", "/v1/completions", QUESTION, 0.98),
    "/v1/models": ("GET", "/v1/models", b"", 0.93),
}
PEER, ONE, MANY = CONTESTANTS = ("vLLM's --api-key", "guard, 1 key", "guard, 1000 keys")
ORDERS = tuple(itertools.permutations(CONTESTANTS))  # who comes first, or after whom, must make no difference
SERVE_OPTIONS = ("--host", "127.0.0.1", "--max-model-len", "256", "--disable-uvicorn-access-log")


class Server(NamedTuple):
    pid: int
    port: int


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it has the answer."""

    def __init__(self, request: bytes) -> None:
        self.request, self.answered, self.wrong = request, 0, b""
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        self.wrong = self.wrong or (b"" if head.startswith(b"HTTP/1.1 200") else head)
        self._buffer = b""
        self.answered += 1
        self.transport.write(self.request)


class Slice(NamedTuple):
    """What a server did in a moment of its own."""

    requests: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(server: Server, route: str) -> Slice:
    method, path, body, _ = ROUTES[route]
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}")
    more = ("Content-Type: application/json", f"Content-Length: {len(body)}") if body else ()
    request = "\r\n".join((*lines, *more, "", "")).encode() + body
    connect = asyncio.get_running_loop().create_connection
    clients = [(await connect(lambda: Client(request), "127.0.0.1", server.port))[1] for _ in range(CONNECTIONS)]
    await asyncio.sleep(0.1)
    before, busy, start = sum(client.answered for client in clients), processor_time(server.pid), time.perf_counter()
    await asyncio.sleep(SECONDS)
    seconds, busy = time.perf_counter() - start, processor_time(server.pid) - busy
    count = sum(client.answered for client in clients) - before
    for client in clients:
        client.transport.abort()
    wrong = next((client.wrong for client in clients if client.wrong), b"")
    if wrong:
        raise SystemExit(f"{path} on port {server.port} answered {wrong.decode(errors='replace')}")
    return Slice(count, seconds, busy)


def engine_python() -> Path:
    host = fresh_host()
    engine = resolve(host)
    change = InstallEngine(engine, SETTINGS, LAYOUT)
    if not engines.is_complete(host, LAYOUT, engine.id):
        change.apply(host, Report())
    MODEL.mkdir(exist_ok=True)
    builtin.write(MODEL, Host())
    return host.at(change.path) / "bin/python"


def digests(count: int) -> list[str]:
    """--api-key arguments of which the last is the key that the client has."""
    keys = [*(secrets.token_urlsafe(32) for _ in range(count - 1)), KEY]
    hashed = [f"key-{number}=sha256:{hashlib.sha256(key.encode()).hexdigest()}" for number, key in enumerate(keys)]
    return [word for key in hashed for word in ("--api-key", key)]


def environment() -> dict[str, str]:
    """What the unit gives a service, caches apart from the host's."""
    caches = HOME / "caches"
    return {
        "PATH": os.environ["PATH"], "HOME": str(caches), "PYTHONDONTWRITEBYTECODE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(caches / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
        "RUNTIME_DIRECTORY": str(HOME / "run"), "CREDENTIALS_DIRECTORY": str(HOME / "credentials"),
        "STATE_DIRECTORY": str(HOME / "usage"),
    }  # fmt: skip


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[Server]:
    """The server, from its first answered request on."""
    with (HOME / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_LIMIT
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"vLLM did not start, see {HOME / f'{port}.log'}")
            time.sleep(0.2)
        below = psutil.Process(process.pid).children(recursive=True)
        serves = [child.pid for child in below if any("vllm_listen.py" in word for word in child.cmdline())]
        yield Server(serves[0] if serves else process.pid, port)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
        process.wait()


def answers(port: int) -> bool:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", QUESTION, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def measure(python: Path, rounds: int) -> dict[tuple[str, str], list[Slice]]:
    launcher = [str(python), str(RUNTIME / "vllm_launcher.py")]
    own, guarded = free_port(), free_port()
    serve = ["serve", str(MODEL), *SERVE_OPTIONS, "--port"]
    check = [str(python), "-m", builds.IMPORTS.entry, *serve, str(own), "--api-key", KEY]
    guard = [*launcher, "launch", *digests(1), "--", *serve, str(guarded)]
    with running(check, own):
        pass  # fills the compile caches: what vLLM compiles itself and what it finds there are not equally fast
    slices: dict[tuple[str, str], list[Slice]] = {(route, name): [] for route in ROUTES for name in CONTESTANTS}
    with running(check, own) as peer, running(guard, guarded) as ours:
        for number in range(rounds + 1):  # the first is to warm up
            for name in ORDERS[number % len(ORDERS)]:
                if name != PEER:
                    keys = digests(1 if name == ONE else 1000)
                    subprocess.run([*launcher, "reload", *keys], env=environment(), check=True)
                for route in ROUTES:
                    slices[route, name].append(asyncio.run(ask(peer if name == PEER else ours, route)))
    return {pair: values[1:] for pair, values in slices.items()}


def report(slices: dict[tuple[str, str], list[Slice]]) -> None:
    for route, (_, _, _, wanted) in ROUTES.items():
        peers = slices[route, PEER]
        for name in CONTESTANTS:
            mine = slices[route, name]
            rates = [each.rate for each in mine]
            # Round by round: what slows the machine down for a while slows both sides of the ratio.
            pairs = [(each.rate, peer.rate) for each, peer in zip(mine, peers, strict=True)]
            ratios = [each / peer if peer else math.inf for each, peer in pairs]
            ratio = statistics.median(ratios)
            # The standard error of a median, from the median deviation: a moment without an answer moves neither.
            error = 1.86 * statistics.median(abs(each - ratio) for each in ratios) / math.sqrt(len(ratios))
            shown = "" if name == PEER else f"  {ratio:.3f} (±{error:.3f}) of it, wanted {wanted}"
            spread = f"({min(rates):.0f} to {max(rates):.0f})"
            cost = sum(each.processor for each in mine) / sum(each.requests for each in mine) * 1e6
            print(f"  {route:<22} {name:<17} {statistics.median(rates):6.0f} {spread:<14} {cost:6.0f} µs{shown}")


def main(words: list[str]) -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    python = engine_python()
    shutil.rmtree(HOME, ignore_errors=True)
    for name in ("run", "credentials", "caches", "usage"):
        (HOME / name).mkdir(parents=True)
    (HOME / "credentials/probe-key").write_text("sk-probe-" + secrets.token_urlsafe(32))
    load = os.getloadavg()[0]
    slices = measure(python, int(words[0]) if words else ROUNDS)
    print(
        f"vLLM behind a key, builtin:tiny, c={CONNECTIONS}, median of {len(slices['/v1/models', PEER])} rounds (range);"
    )
    print(f"requests/s, processor time of the API server for one; {os.cpu_count()} cores, load before {load:.1f}")
    report(slices)


if __name__ == "__main__":
    main(sys.argv[1:])
