"""The gateway: what it adds to a request, beside none, a HAProxy with hardly any configuration, nginx, and LiteLLM.

Usage: python bench/gateway.py [ROUNDS]. Before a server of a few lines, asked over connections that are kept, 1, 16 and
128 at once, each contestant in turn, so that a busy moment hits all; in every fifth round also 1000 streams. The
medians count. Root gives all of it the processor before anything else that runs here, which else waits in between and
is measured, too. At c=1 what is added must stay below 50 µs, and at 16 the requests a second above 0.95 of the bare
HAProxy's, which asks the server by its port. Printed beside: their share of one that asks by the door, as the gateway
does, and of one that also keeps each request to repeat it. The first piece of a stream never waits for the second,
which the server holds back for half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from installer.spec.settings import Settings  # noqa: E402
from tests.kit.boot.surroundings import free_port  # noqa: E402
from tests.kit.gateway import PATH, gateway  # noqa: E402
from tests.kit.replica import door_of  # noqa: E402

BODY = b'{"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}'
STREAMED = BODY[:-1] + b', "stream": true}'
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\nContent-Length: %d\r\n\r\n%s"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
SECONDS = 1.0
STREAMS, EVERY = 1000, 5
STARTS_WITHIN = 120.0
MOST_ADDED, LEAST_SHARE = 50e-6, 0.95
SERVER = r"""
import asyncio, json, re, sys
def chunk(text):
    return b"%x\r\n%s\r\n" % (len(text), text)
def told(kind, choice, **more):
    choices = [{"index": 0, **choice}]
    return json.dumps({"id": "c", "object": kind, "created": 1, "model": "tiny", "choices": choices, **more}).encode()
def event(**choice):
    return b"data: " + told("chat.completion.chunk", choice) + b"\n\n"
MESSAGE = {"finish_reason": "length", "message": {"role": "assistant", "content": "x" * 80}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
ANSWER = told("chat.completion", MESSAGE, usage=USAGE)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM += chunk(event(delta={"content": "x"}, finish_reason=None))
REST = chunk(event(delta={"content": "y"}, finish_reason="length") + b"data: [DONE]\n\n") + b"0\r\n\r\n"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
class Engine(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.came = transport, b""
    def data_received(self, data):
        self.came += data
        head, ends, body = self.came.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not ends or len(body) < int(length[1] if length else 0):
            return
        self.came = b""
        if b'"stream": true' in body or b'"stream":true' in body:
            self.transport.write(STREAM)
            asyncio.get_running_loop().call_later(0.5, self.transport.write, REST)
        else:
            self.transport.write(ANSWER)
async def main(port, door):
    loop = asyncio.get_running_loop()
    by_door = await loop.create_unix_server(Engine, door, backlog=1024)
    by_port = await loop.create_server(Engine, "127.0.0.1", port, backlog=1024)
    await by_port.serve_forever()
asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""
BARE = """\
global
    nbthread 2
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend f
    bind 127.0.0.1:{port}
    default_backend b
backend b
    server s 127.0.0.1:{engine}
"""
BY_DOOR = BARE.replace("127.0.0.1:{engine}", "unix@{door}")
KEEPS = BY_DOOR.replace("nbthread 2", "nbthread 2\n    tune.bufsize 32768").replace(
    "mode http",
    "mode http\n    option http-buffer-request\n    retries 1\n    retry-on conn-failure empty-response 500 503",
)
NGINX = """\
daemon off; pid {home}/nginx.pid; error_log /dev/null; worker_processes 2;
events {{ worker_connections 8192; }}
http {{
    access_log off; client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
    uwsgi_temp_path {home}; scgi_temp_path {home};
    keepalive_requests 1000000000;
    upstream b {{ server 127.0.0.1:{engine}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


LITELLM = """\
model_list:
  - model_name: tiny
    litellm_params: {{model: openai/tiny, api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}
general_settings: {{master_key: sk-1}}
"""


def litellm() -> Path:
    """A program of several hundred packages, in an environment of its own."""
    place = REPO / "build/litellm"
    if not (place / "bin/litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([place / "bin/pip", "install", "--quiet", "litellm[proxy]"], check=True)
    return place / "bin/litellm"


@dataclass(frozen=True)
class Contestant:
    port: int
    pid: int

    def spent(self) -> float:
        """Seconds of processor that it and its children have had."""
        return spent(self.pid)


def spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(spent(int(child)) for child in children)


@contextlib.contextmanager
def process(*words: str | Path) -> Iterator[int]:
    running = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait()


@contextlib.contextmanager
def door_at(port: int) -> Iterator[Path]:
    """Where the server of that port makes its door."""
    door = door_of(port)
    yield door
    door.unlink(missing_ok=True)


@contextlib.contextmanager
def contestants(home: Path) -> Iterator[dict[str, Contestant]]:
    with contextlib.ExitStack() as stack:
        engine = free_port()
        door = stack.enter_context(door_at(engine))
        server = process(sys.executable, "-c", SERVER, str(engine), door)
        found = {"direct": Contestant(engine, stack.enter_context(server))}
        made = stack.enter_context(gateway(Settings(service="q"), [engine]))
        assert made.process
        found["gateway"] = Contestant(made.port, made.process.pid)
        for name, text, words in (
            ("haproxy", BARE, ("haproxy", "-f")),
            ("by door", BY_DOOR, ("haproxy", "-f")),
            ("keeping", KEEPS, ("haproxy", "-f")),
            ("nginx", NGINX, ("nginx", "-c")),
        ):
            if program := shutil.which(words[0], path=PATH):
                port = free_port()
                (home / name).write_text(text.format(port=port, engine=engine, door=door, home=home))
                found[name] = Contestant(port, stack.enter_context(process(program, *words[1:], home / name)))
        port = free_port()
        (home / "litellm.yaml").write_text(LITELLM.format(engine=engine))
        options = ("--config", home / "litellm.yaml", "--host", "127.0.0.1", "--port", str(port))
        found["litellm"] = Contestant(port, stack.enter_context(process(litellm(), *options)))
        for each in found.values():
            asyncio.run(answers(each.port))
        yield found


async def answers(port: int) -> None:
    """Until it listens, and the gateway knows that its replica is up."""
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, AssertionError):
            return await ask(port, 0, [])
        await asyncio.sleep(0.2)
    raise SystemExit(f"nobody answers at port {port}")


async def ask(port: int, end: float, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    question = ASK % (len(BODY), BODY)
    while not took or time.perf_counter() < end:
        began = time.perf_counter()
        writer.write(question)
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert length, head
        await reader.readexactly(int(length[1]))
        took.append(time.perf_counter() - began)
    writer.close()


async def measure(asked: Contestant, clients: int) -> tuple[float, float, float]:
    """Seconds a request at the median, requests a second, and seconds of processor for each."""
    took: list[float] = []
    before, end = asked.spent(), time.perf_counter() + SECONDS
    await asyncio.gather(*(ask(asked.port, end, took) for _ in range(clients)))
    return statistics.median(took), len(took) / SECONDS, (asked.spent() - before) / len(took)


async def stream(port: int) -> tuple[float, float]:
    """Seconds until its first piece, and from there to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(ASK % (len(STREAMED), STREAMED))
    await reader.readuntil(b"data: ")
    first = time.perf_counter()
    await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return first - began, time.perf_counter() - first


async def streams(port: int, count: int) -> tuple[float, float]:
    """The median of both."""
    found = await asyncio.gather(*(stream(port) for _ in range(count)))
    first, rest = zip(*found, strict=True)
    return statistics.median(first), statistics.median(rest)


def go_before_others() -> str:
    """With all that is started from here."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return "among all that runs here, for want of root's rights"
    return "before all that runs here"


def main(rounds: int) -> int:
    where = go_before_others()
    seen: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    pieces: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as home, contestants(Path(home)) as found:
        for number in range(rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                for count in (1, STREAMS) if number % EVERY == 0 else (1,):
                    pieces.setdefault((name, count), []).append(asyncio.run(streams(found[name].port, count)))
                for clients in (1, 16, 128):
                    seen.setdefault((name, clients), []).append(asyncio.run(measure(found[name], clients)))
    medians, parts = middle(seen), middle(pieces)
    for (name, clients), (took, rate, cost) in sorted(medians.items(), key=lambda item: (item[0][1], item[0][0])):
        added = took - medians["direct", clients][0]
        print(f"c={clients:<4}{name:<10}{rate:>8.0f} requests/s {took * 1e6:>8.0f} µs,", end="")
        print(f"{added * 1e6:>7.0f} µs added, {cost * 1e6:>6.1f} µs of processor")
    for (name, count), (first, rest) in sorted(parts.items(), key=lambda item: (item[0][1], item[0][0])):
        print(f"{count:>4} streams {name:<10} first piece {first * 1e3:>6.1f} ms, its end {rest * 1e3:>6.1f} ms later")
    added = medians["gateway", 1][0] - medians["direct", 1][0]
    names = ("keeping", "by door", "haproxy")
    share = {name: medians["gateway", 16][1] / medians[name, 16][1] for name in names}
    prompt = parts["gateway", 1][0] < 0.1
    print(f"added at c=1: {added * 1e6:.0f} µs; {where}; load {os.getloadavg()[0]:.0f}")
    print(f"at c=16 {share['haproxy']:.2f} of a bare HAProxy", end=", ")
    print(
        f"{share['by door']:.2f} of one that asks by the door, {share['keeping']:.2f} of one that keeps requests, too"
    )
    return 0 if added <= MOST_ADDED and share["haproxy"] >= LEAST_SHARE and prompt else 1


def middle(seen: dict[tuple[str, int], list[tuple[float, ...]]]) -> dict[tuple[str, int], tuple[float, ...]]:
    """The median of each column."""
    return {at: tuple(map(statistics.median, zip(*every, strict=True))) for at, every in seen.items()}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 15))
