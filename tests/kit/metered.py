"""The guard before an application with an engine like vLLM's: what clients count, and what the table says of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KINDS = {name: SimpleNamespace(name=name) for name in ("CUMULATIVE", "DELTA", "FINAL_ONLY")}


class Collector:
    """As vLLM hands outputs to the caller: one at a time, and what he does not take in time grows."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.output: Any = None
        self._ready = asyncio.Event()

    def put(self, output: Any, *, adds: bool) -> None:
        if self.output is not None and adds:
            for old, new in zip(self.output.outputs, output.outputs, strict=True):
                old.token_ids += new.token_ids
            self.output.finished |= output.finished
        else:
            self.output = output
        self._ready.set()

    async def get(self) -> Any:
        while self.output is None:
            await self._ready.wait()
        found, self.output = self.output, None
        self._ready.clear()
        return found


class State:
    """One prompt in the engine."""

    def __init__(self, prompt: dict[str, Any], params: Any, queue: Collector) -> None:
        self.prompt, self.params, self.queue = prompt["prompt_token_ids"], params, queue
        self.is_prefilling, self.made = True, 0

    def put(self, new: int, *, is_last: bool) -> None:
        self.is_prefilling, self.made = False, self.made + new
        kind = self.params.output_kind.name
        if kind == "FINAL_ONLY" and not is_last:
            return
        count = new if kind == "DELTA" else self.made
        outputs = [SimpleNamespace(index=at, token_ids=[7] * count) for at in range(self.params.n)]
        output = SimpleNamespace(
            prompt_token_ids=self.prompt, num_cached_tokens=self.params.cached, outputs=outputs, finished=is_last
        )
        self.queue.put(output, adds=kind == "DELTA")


class Engine:
    """vLLM's engine client, as far as the guard touches it: a caller who goes leaves the last output in his queue."""

    def __init__(self, policy: str = "fcfs") -> None:
        self.output_processor = SimpleNamespace(request_states=dict[str, State]())
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(policy=policy))
        self.priorities: list[int] = []
        self.errored = False
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.made = {"prompt": 0, "completion": 0}

    async def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> Collector:
        queue = Collector(f"{request_id}-0a1b2c3d")
        self.output_processor.request_states[queue.request_id] = State(prompt, params, queue)
        return queue

    async def generate(
        self, prompt: dict[str, Any], sampling_params: Any, request_id: str, *, priority: int = 0
    ) -> AsyncIterator[Any]:
        self.priorities.append(priority)
        queue = await self.add_request(request_id, prompt, sampling_params)
        working = asyncio.ensure_future(self.work(queue.request_id))
        try:
            finished = False
            while not finished:
                output = await queue.get()
                finished = output.finished
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            working.cancel()
            if state := self.output_processor.request_states.pop(queue.request_id, None):
                self.note(state)
                state.put(0, is_last=True)
            raise

    async def work(self, name: str) -> None:
        state = self.output_processor.request_states[name]
        await self.may_begin.wait()
        for number in range(state.params.tokens):
            await asyncio.sleep(0)
            if number == state.params.stops_at:
                await asyncio.Event().wait()
            is_last = number == state.params.tokens - 1
            if is_last:
                del self.output_processor.request_states[name]
            state.put(1, is_last=is_last)
            if is_last:
                self.note(state)

    def note(self, state: State) -> None:
        self.made["prompt"] += len(state.prompt)
        self.made["completion"] += state.made * state.params.n


class Application:
    """Answers as vLLM's API server does: it asks the engine, and stops when the client has gone."""

    def __init__(self, engine: Any) -> None:
        self.state = SimpleNamespace(engine_client=engine)
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"] == "/v1/completions":
            body = json.loads(await whole(receive))
            self.asked += 1
            working = asyncio.ensure_future(self.complete(f"cmpl-{self.asked}", body, send))
            going = asyncio.ensure_future(gone(receive))
            await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
            for each in (going, working):
                each.cancel()
            await asyncio.gather(working, going, return_exceptions=True)
            if not working.cancelled():
                working.result()
        elif scope["path"] == "/broken":
            raise RuntimeError("broken")
        elif scope["path"] == "/metrics":
            kind = dict(scope["headers"]).get(b"accept", b"text/plain")
            text = b"# TYPE vllm:x counter\nvllm:x 1\n" + (b"# EOF\n" if b"openmetrics" in kind else b"")
            await answer(send, 200, text, kind)
        else:
            await answer(send, 404 if scope["path"] == "/nowhere" else 200, b"{}", b"application/json")

    async def complete(self, name: str, body: dict[str, Any], send: Any) -> None:
        kind = "DELTA" if body.get("stream") else body.get("kind", "FINAL_ONLY")
        params = SimpleNamespace(
            output_kind=KINDS[kind], n=body.get("n", 1), tokens=body["tokens"], cached=body.get("cached", 0),
            stops_at=body.get("stops_at"),
        )  # fmt: skip
        prompt = {"type": "token", "prompt_token_ids": [3] * body["prompt"]}
        outputs = self.state.engine_client.generate(
            prompt, params, f"{name}-0", priority=body.get("priority", 0)
        )  # as vLLM does: what a client says of its priority is handed on
        if body.get("stream"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            async for output in outputs:
                count = sum(len(each.token_ids) for each in output.outputs)
                await send({"type": "http.response.body", "body": b"%d\n" % count, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        async for output in outputs:
            last = output
        count = sum(len(each.token_ids) for each in last.outputs)
        await answer(send, 200, b"%d" % count, b"application/json")


async def whole(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(send: Any, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Asked:
    """A request under way."""

    def __init__(self, guard: Any, scope: dict[str, Any], body: bytes) -> None:
        self.sent: list[dict[str, Any]] = []
        self.has_gone, self.was_read, self.body = asyncio.Event(), False, body
        self.task = asyncio.ensure_future(self._run(guard, scope))

    async def _run(self, guard: Any, scope: dict[str, Any]) -> None:
        await guard(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self.was_read:
            self.was_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.has_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def until(self, tokens: int) -> None:
        """As many pieces of a stream have come."""
        while sum(bool(message.get("body")) for message in self.sent) < tokens:
            await asyncio.sleep(0)

    async def hang_up(self) -> None:
        self.has_gone.set()
        await asyncio.wait((self.task,))

    async def end(self) -> Asked:
        await self.task
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0].get("status", 0))

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


class Metered:
    """A guard of its own with its table, limits and keys in a folder, and clocks that stand until they are set on."""

    def __init__(self, module: Any, place: Path, engine: Any = None) -> None:
        self.place, self.engine = place, engine
        self.second, self.wall = 1000.0, 1_790_000_000.0
        self.application = Application(engine)
        (place / "keys").write_text(
            "".join(
                f"{name} {role} {hashlib.sha256(f'sk-{name}'.encode()).hexdigest()} {expiry}\n"
                for name, role, expiry in (
                    ("probe", "inference", "-"), ("a", "inference", "-"), ("b", "inference", "-"),
                    ("a-old-2", "inference", "2999-01-01T00:00:00Z"), ("prom", "metrics", "-"),
                )
            )
        )  # fmt: skip
        self.guard = module.Guard(self.application)
        self.table = self.guard.meter.table
        self.table.clock = self.guard.meter.limits.clock = lambda: self.second
        self.table.wall = lambda: self.wall

    def start(self) -> Metered:
        self.guard.meter.start({"app": self.application})
        return self

    def limit(self, text: str) -> None:
        (self.place / "limits.new").write_text(text)
        (self.place / "limits.new").replace(self.place / "limits")
        self.second += 1

    def ask(self, key: str = "a", path: str = "/v1/completions", method: str = "POST", **body: Any) -> Asked:
        headers = [(b"authorization", f"Bearer sk-{key}".encode())]
        headers += [(name.encode(), value.encode()) for name, value in body.pop("headers", {}).items()]
        scope = {
            "type": body.pop("type", "http"), "path": path, "method": method, "client": ("192.0.2.7", 1),
            "headers": headers, **body.pop("scope", {}),
        }  # fmt: skip
        return Asked(self.guard, scope, json.dumps({"prompt": 5, "tokens": 3, **body}).encode())

    async def answered(self, key: str = "a", **body: Any) -> Asked:
        return await self.ask(key, **body).end()

    def used(self, key: str = "a") -> Any:
        """What the table says of a key; None where it was never asked with."""
        return dict(self.table.totals()).get(key)
