"""What clients see of a service while it is changed: `python -m tests.kit.load`, its plan as JSON on the first line.

New connections come at a fixed rate, whether those before them were answered or not; beside them clients keep theirs.
Plain and streamed answers take turns. It asks until its input ends, waits for what is under way, and prints a line of
JSON for each request, so it can run where the service listens: `with load(Plan(port, key), machine.start) as running`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.kit.boot.surroundings import REPO

OK = "ok"
NEW, KEPT = "new", "kept"  # a connection for this one request, or one that its client keeps
ENDS_WITHIN = 300.0  # beyond the clients' own patience


@dataclass(frozen=True)
class Plan:
    port: int
    key: str
    rate: float = 10.0  # new connections a second
    keep: int = 4  # clients that keep their connection
    pause: float = 0.4  # seconds between two requests of one of them, on average
    patience: float = 120.0  # seconds that a client waits for its whole answer
    tokens: int = 16
    model: str = "builtin:tiny"
    address: str = "127.0.0.1"
    bulk: int = 0  # bytes that a request is larger by, as with an image


@dataclass(frozen=True)
class Seen:
    """One request. Moments are of CLOCK_MONOTONIC, which a machine shares with its host."""

    kind: str
    began: float
    took: float
    what: str  # OK, or in a word why not
    got: int = 0  # bytes of its answer
    port: int = 0  # its client's, by which the log of a gateway names it

    @property
    def ended(self) -> float:
        return self.began + self.took

    @property
    def is_cut_off(self) -> bool:
        """A word of its answer had come, and the rest did not."""
        return self.got > 0 and self.what != OK and not self.what.isdigit()


@dataclass(frozen=True)
class Result:
    seen: tuple[Seen, ...]

    @property
    def asked(self) -> int:
        return len(self.seen)

    @property
    def failing(self) -> tuple[Seen, ...]:
        return tuple(one for one in self.seen if one.what != OK)

    @property
    def failures(self) -> dict[str, int]:
        """How many of each kind of connection failed, and in which way."""
        return dict(collections.Counter(f"{one.kind}: {one.what}" for one in self.failing))

    def failed_since(self, moment: float) -> dict[str, int]:
        """Of those that began after it."""
        return Result(tuple(one for one in self.seen if one.began > moment)).failures

    @property
    def failed(self) -> int:
        return len(self.failing)

    def latency(self, share: float) -> float:
        """Seconds within which that share of the good answers was whole; 0 where there are none."""
        took = sorted(one.took for one in self.seen if one.what == OK)
        return took[min(len(took) - 1, int(share * len(took)))] if took else 0.0

    @property
    def longest_wait(self) -> float:
        """Of all, also those that failed in the end."""
        return max((one.took for one in self.seen), default=0.0)

    @property
    def gap(self) -> float:
        """The longest time in which nobody had a good answer."""
        ends = sorted(one.ended for one in self.seen if one.what == OK)
        return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)

    def to_json(self) -> dict[str, object]:
        return {
            "asked": self.asked, "failed": self.failed, "failures": self.failures, "p50": self.latency(0.5),
            "p99": self.latency(0.99), "max": self.latency(1), "longest_wait": self.longest_wait, "gap": self.gap,
        }  # fmt: skip


class Load:
    """A load that runs, and what it has seen so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._seen: list[Seen] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._seen.append(Seen(**json.loads(line)))
                self._news.notify_all()

    @property
    def result(self) -> Result:
        with self._news:
            return Result(tuple(self._seen))

    def wait_for(self, count: int, seconds: float = 600.0) -> None:
        """Return when so many more requests have ended, well or not."""
        with self._news:
            goal = len(self._seen) + count
            if not self._news.wait_for(lambda: len(self._seen) >= goal, seconds):
                raise AssertionError(f"{len(self._seen)} of {goal} requests ended within {seconds:g} s")

    def end(self, patience: float) -> None:
        """Ask nothing more, and let what is under way end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(patience + ENDS_WITHIN)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        if self.process.returncode or said:
            raise AssertionError(f"the load ended with {self.process.returncode}: {said}")


def start_here(*argv: str) -> subprocess.Popen[str]:
    """As a machine starts a command, on this host."""
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=REPO, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


@contextlib.contextmanager
def load(plan: Plan, start: Callable[..., subprocess.Popen[str]] = start_here) -> Iterator[Load]:
    """Within, clients ask; after it, its result is whole."""
    process = start(sys.executable, "-m", __name__)
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(plan)) + "\n")
    process.stdin.flush()
    running = Load(process)
    try:
        yield running
    finally:
        running.end(plan.patience)


# The process that asks


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Reader(asyncio.StreamReader):
    """Also counts what has come, whether it was read or not."""

    got = 0

    def feed_data(self, data: bytes) -> None:
        self.got += len(data)
        super().feed_data(data)


async def connect(address: str, port: int) -> tuple[Reader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = Reader(loop=loop)
    transport, protocol = await loop.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), address, port
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class Client:
    """Asks the same again and again, over one connection for as long as the server leaves it open."""

    def __init__(self, plan: Plan, *, stream: bool, keep: bool) -> None:
        self.plan, self.stream, self.keep = plan, stream, keep
        self.got = self.port = 0  # of the last answer
        self._streams: tuple[Reader, asyncio.StreamWriter] | None = None

    async def ask(self) -> str:
        reused = self._is_open()
        try:
            answer = await asyncio.wait_for(self._exchange(), self.plan.patience)
        except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError, asyncio.TimeoutError) as error:
            await self.leave()
            return failure(error, self.got) + (" on a kept connection" if reused else "")
        if not self.keep or answer.headers.get("connection", "").lower() == "close":
            await self.leave()
        return judge(answer, stream=self.stream)

    def _is_open(self) -> bool:
        return self._streams is not None and not self._streams[0].at_eof()

    async def _exchange(self) -> Answer:
        self.got = self.port = 0
        if not self._is_open():  # what every pool of connections looks for before it sends
            await self.leave()
            self._streams = await connect(self.plan.address, self.plan.port)
        assert self._streams is not None
        reader, writer = self._streams
        self.port, reader.got = writer.get_extra_info("sockname")[1], 0
        try:
            writer.write(self._request())
            await writer.drain()
            return await read_answer(reader)
        finally:
            self.got = reader.got

    def _request(self) -> bytes:
        asked = {"model": self.plan.model, "prompt": "Hello", "max_tokens": self.plan.tokens, "ignore_eos": True}
        body = json.dumps({**asked, "stream": self.stream, "user": "x" * self.plan.bulk}).encode()
        lines = (
            "POST /v1/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self.plan.key}",
            "Content-Type: application/json", f"Content-Length: {len(body)}",
            f"Connection: {'keep-alive' if self.keep else 'close'}", "", "",
        )  # fmt: skip
        return "\r\n".join(lines).encode() + body

    async def leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):  # how it ended is known; unheard, asyncio may say it on its own
                await self._streams[1].wait_closed()
            self._streams = None


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Answer(int(first.split()[1]), headers, body)


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


def judge(answer: Answer, *, stream: bool) -> str:
    """Whether the answer is whole: a stream that was broken off, or ends in an error, is 200 all the same."""
    if answer.status != 200:
        return str(answer.status)
    if b'"error"' in answer.body:
        return "error"
    if stream:
        return OK if answer.body.rstrip().endswith(b"data: [DONE]") else "cut"
    with contextlib.suppress(ValueError):
        return OK if "choices" in json.loads(answer.body) else "cut"
    return "cut"


def failure(error: Exception, got: int) -> str:
    """In a word. What ends between two chunks of an answer that had begun is cut off as well."""
    if isinstance(error, asyncio.IncompleteReadError):
        return "cut" if got else "closed"
    names = (
        (ConnectionRefusedError, "refused"), (ConnectionError, "reset"), (TimeoutError, "timeout"),
        (asyncio.TimeoutError, "timeout"), (Exception, "garbled"),
    )  # fmt: skip
    return next(name for kind, name in names if isinstance(error, kind))


async def run(plan: Plan, end: asyncio.Event, tell: Callable[[Seen], None]) -> None:
    async def ask(client: Client, kind: str) -> None:
        began = time.monotonic()
        what = await client.ask()
        tell(Seen(kind, began, time.monotonic() - began, what, client.got, client.port))

    async def pause(seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(end.wait(), seconds)

    async def keep_asking(client: Client) -> None:
        while not end.is_set():
            await ask(client, KEPT)
            await pause(plan.pause * random.uniform(0.5, 1.5))
        await client.leave()

    kept = [Client(plan, stream=number % 2 == 1, keep=True) for number in range(plan.keep)]
    tasks = [asyncio.ensure_future(keep_asking(client)) for client in kept]
    began = time.monotonic()
    for number in itertools.count(1):
        if end.is_set():
            break
        tasks.append(asyncio.ensure_future(ask(Client(plan, stream=number % 2 == 1, keep=False), NEW)))
        await pause(began + number / plan.rate - time.monotonic())
    await asyncio.gather(*tasks)


async def main() -> None:
    plan = Plan(**json.loads(sys.stdin.readline()))
    end = asyncio.Event()
    input_ends = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    input_ends.add_done_callback(lambda _: end.set())
    await run(plan, end, lambda seen: print(json.dumps(dataclasses.asdict(seen)), flush=True))


if __name__ == "__main__":
    # Whoever waits holds a descriptor.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main())
