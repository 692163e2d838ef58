"""Requests for the measurements: a steady load that counts what fails, and as many as go in with 16 connections."""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


def ask(
    port: int, path: str, key: str = "", body: object = None, method: str = "", patience: float = 30
) -> tuple[int, bytes]:
    """Status and body; 0 where no answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    headers = {"Content-Type": "application/json"} if body else {}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request(method or ("POST" if body else "GET"), path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


def complete(port: int, key: str, tokens: int, stream: bool, patience: float = 60) -> str:
    """What is wrong with the answer; nothing where it came whole."""
    body = {"prompt": "Hello, ", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    body |= {"stream_options": {"include_usage": True}} if stream else {}
    status, answer = ask(port, "/v1/completions", key, body, patience=patience)
    if status != 200:
        return f"status {status}: {answer[:120]!r}"
    said = answer.decode(errors="replace")
    if stream:
        events = [line[6:] for line in said.splitlines() if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            return f"stream cut after {len(events)} events"
        said = events[-2]
    made = (json.loads(said).get("usage") or {}).get("completion_tokens")
    return "" if made == tokens else f"{made} of {tokens} tokens"


@dataclass
class SteadyLoad:
    """Some requests a second, plain and streaming by turns, whatever becomes of those before."""

    port: int
    keys: Callable[[], list[str]]
    per_second: float = 10
    tokens: int = 64
    sent: int = 0
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> SteadyLoad:
        self._clock = threading.Thread(target=self._tick)
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._clock.join()
        for thread in self._threads:
            thread.join()

    def _tick(self) -> None:
        for number in itertools.count():
            if self._over.wait(1 / self.per_second):
                return
            keys = self.keys()
            key, stream = keys[number // 2 % len(keys)], bool(number % 2)
            thread = threading.Thread(target=self._one, args=(key, stream))
            thread.start()
            self.sent += 1
            self._threads.append(thread)

    def _one(self, key: str, stream: bool) -> None:
        wrong = complete(self.port, key, self.tokens, stream)
        if wrong:
            self.failures.append(wrong)


def rate(port: int, request: bytes, seconds: float, connections: int = 16, processes: int = 4) -> float:
    """Requests answered with 200 in each second, by some connections that ask again as soon as they were answered."""
    pool = multiprocessing.get_context("spawn").Pool(processes)
    with pool:
        each = connections // processes
        counts = pool.starmap(_hammer, [(port, request, seconds, each)] * processes)
    return sum(counts) / seconds


def _hammer(port: int, request: bytes, seconds: float, connections: int) -> int:
    counts = [0] * connections
    # Processes that came up late would miss part of the time, so the first second is nobody's.
    threads = [
        threading.Thread(target=_repeat, args=(port, request, seconds, counts, number)) for number in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def _repeat(port: int, request: bytes, seconds: float, counts: list[int], number: int) -> None:
    begin = time.monotonic() + 1
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (now := time.monotonic()) < begin + seconds:
            connection.sendall(request)
            answer = connection.recv(65536)
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536)
            head, _, rest = answer.partition(b"\r\n\r\n")
            left = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]) - len(rest)
            while left > 0:
                left -= len(connection.recv(left))
            if now >= begin:
                assert b" 200 " in head[:20], head[:200]
                counts[number] += 1


def request(path: str, key: str, body: object = None) -> bytes:
    text = json.dumps(body).encode() if body else b""
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text
