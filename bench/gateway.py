"""The gateway: what it adds to a request, beside none at all, a HAProxy with hardly any configuration, and nginx.

Usage: python bench/gateway.py [ROUNDS]. Before a server of a few lines, asked over connections that are kept, 1, 16 and
128 at once, each contestant in turn, so that a busy moment hits all. The medians count. At c=1 what is added must stay
below 50 µs, and at 16 the requests a second above 0.95 of the bare HAProxy's; the first piece of a stream never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from installer.spec.settings import Settings  # noqa: E402
from tests.kit.boot.surroundings import free_port  # noqa: E402
from tests.kit.gateway import gateway  # noqa: E402

BODY = b'{"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}'
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\nContent-Length: %d\r\n\r\n%s"
SECONDS = 1.0
MOST_ADDED, LEAST_SHARE = 50e-6, 0.95
SERVER = f"""
import asyncio
ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 300\\r\\n\\r\\n" + b"x" * 300
STREAM = b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n1\\r\\nx\\r\\n"
class Engine(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        if b"stream" in data:
            self.transport.write(STREAM)
            asyncio.get_running_loop().call_later(0.5, self.transport.write, b"1\\r\\ny\\r\\n0\\r\\n\\r\\n")
        elif data.startswith(b"GET") or data.endswith({BODY[-9:]!r}):
            self.transport.write(ANSWER)
async def main(port):
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()
import sys
asyncio.run(main(int(sys.argv[1])))
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
NGINX = """\
daemon off; pid {home}/nginx.pid; error_log /dev/null; worker_processes 2;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
    uwsgi_temp_path {home}; scgi_temp_path {home};
    upstream b {{ server 127.0.0.1:{engine}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


@contextlib.contextmanager
def process(*words: str | Path) -> Iterator[None]:
    running = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait()


@contextlib.contextmanager
def contestants(home: Path) -> Iterator[dict[str, int]]:
    with contextlib.ExitStack() as stack:
        engine = free_port()
        stack.enter_context(process(sys.executable, "-c", SERVER, str(engine)))
        ports = {"direct": engine}
        made = stack.enter_context(gateway(Settings(service="q"), [engine]))
        ports["gateway"] = made.port
        for name, text, words in (("haproxy", BARE, ("haproxy", "-f")), ("nginx", NGINX, ("nginx", "-c"))):
            if shutil.which(words[0], path="/usr/sbin:/usr/bin"):
                ports[name] = free_port()
                (home / name).write_text(text.format(port=ports[name], engine=engine, home=home))
                stack.enter_context(process(*words, home / name))
        time.sleep(2)  # until all of them listen, and the gateway knows that its replica is up
        yield ports


async def ask(port: int, end: float, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    question = ASK % (len(BODY), BODY)
    while time.perf_counter() < end:
        began = time.perf_counter()
        writer.write(question)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(300)
        assert head.startswith(b"HTTP/1.1 200"), head
        took.append(time.perf_counter() - began)
    writer.close()


async def measure(port: int, clients: int) -> tuple[float, float]:
    """Seconds a request at the median, and requests a second."""
    took: list[float] = []
    end = time.perf_counter() + SECONDS
    await asyncio.gather(*(ask(port, end, took) for _ in range(clients)))
    return statistics.median(took), len(took) / SECONDS


async def first_piece(port: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"stream": true}'
    began = time.perf_counter()
    writer.write(ASK % (len(body), body))
    await reader.readuntil(b"1\r\nx")
    writer.close()
    return time.perf_counter() - began


def main(rounds: int) -> int:
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {}
    pieces: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home, contestants(Path(home)) as ports:
        for number in range(rounds):
            for name in sorted(ports, reverse=bool(number % 2)):
                pieces.setdefault(name, []).append(asyncio.run(first_piece(ports[name])))
                for clients in (1, 16, 128):
                    seen.setdefault((name, clients), []).append(asyncio.run(measure(ports[name], clients)))
    medians = {at: tuple(statistics.median(part) for part in zip(*all_of, strict=True)) for at, all_of in seen.items()}
    for (name, clients), (took, rate) in sorted(medians.items(), key=lambda item: (item[0][1], item[0][0])):
        added = took - medians["direct", clients][0]
        print(f"c={clients:<4}{name:<10}{rate:>8.0f} requests/s {took * 1e6:>8.0f} µs, {added * 1e6:>6.0f} µs added")
    for name, all_of in pieces.items():
        print(f"first piece of a stream, {name}: {statistics.median(all_of) * 1e3:.1f} ms")
    added = medians["gateway", 1][0] - medians["direct", 1][0]
    share = medians["gateway", 16][1] / medians["haproxy", 16][1]
    prompt = statistics.median(pieces["gateway"]) < 0.1
    print(f"added at c=1: {added * 1e6:.0f} µs; of the bare HAProxy at c=16: {share:.2f}")
    return 0 if added <= MOST_ADDED and share >= LEAST_SHARE and prompt else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 15))
