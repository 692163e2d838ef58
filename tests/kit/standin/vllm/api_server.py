"""The routes of vLLM's server that clients, probes and the guard meet."""

import asyncio
import collections
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from vllm import __version__, faults
from vllm.asgi import Receive, Scope, Send


class EngineDead(Exception):
    """The engine process is gone."""


class Engine:
    """The engine process, seen from the API server."""

    def __init__(self) -> None:
        self.running = 0
        self.generated = 0
        self.first_tokens: list[float] = []
        self.died = asyncio.Event()
        self._ids = itertools.count()
        self._queues: dict[int, asyncio.Queue[str | None]] = {}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # Under another argv[0] an interpreter finds its library only when told where it is.
        self._process = await asyncio.create_subprocess_exec(
            "VLLM::EngineCore", str(Path(__file__).with_name("engine_core.py")), executable=sys.executable,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        self._reader = asyncio.ensure_future(self._read(self._process))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            message = json.loads(line)
            if message["id"] in self._queues:
                self._queues[message["id"]].put_nowait(message["token"])
        self.died.set()

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def generate(self, max_tokens: int) -> AsyncIterator[str]:
        assert self._process is not None
        assert self._process.stdin is not None
        key = next(self._ids)
        queue = self._queues[key] = asyncio.Queue()
        self.running += 1
        began = time.monotonic()
        fresh = True
        try:
            self._process.stdin.write(json.dumps({"id": key, "max_tokens": max_tokens}).encode() + b"\n")
            while (token := await self._next(queue)) is not None:
                self.generated += 1
                if fresh:
                    self.first_tokens.append(time.monotonic() - began)
                    fresh = False
                yield token
        finally:
            self.running -= 1
            del self._queues[key]

    async def _next(self, queue: "asyncio.Queue[str | None]") -> str | None:
        got, died = asyncio.ensure_future(queue.get()), asyncio.ensure_future(self.died.wait())
        done, waiting = await asyncio.wait({got, died}, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if got not in done:
            raise EngineDead
        return got.result()


class EngineClient:
    """What middleware finds of the engine. Whoever wraps its methods finds none here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def errored(self) -> bool:
        return self._engine.died.is_set()


USAGE = {"input_tokens": 3, "output_tokens": 3}
OTHER_APIS: dict[tuple[str, str], Callable[[str], dict[str, Any]]] = {
    ("POST", "/v1/messages"): lambda text: {
        "type": "message", "role": "assistant", "content": [{"type": "text", "text": text}], "usage": USAGE,
    },
    ("POST", "/v1/responses"): lambda text: {
        "object": "response", "usage": USAGE,
        "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}],
    },
}  # fmt: skip


class Application:
    """An ASGI application without a key check of its own: the guard in front of it is what is tested."""

    def __init__(self, engine: Engine, models: list[str], context: int, *, calls_tools: bool = False) -> None:
        self.engine = engine
        self.model, self.models = models[0], models
        self.context = context
        self.calls_tools = calls_tools
        self.completions = 0
        self.answers: collections.Counter[tuple[str, str, str]] = collections.Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and scope["path"] not in ("/metrics", "/health"):
                self.answers[scope["path"], scope["method"], f"{message['status'] // 100}xx"] += 1
            await send(message)

        await self._answer_to(scope, receive, counted)

    async def _answer_to(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        body = (await receive()).get("body", b"")
        route = (scope["method"], scope["path"])
        if route in (("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/invocations")):
            await self._complete(send, json.loads(body or b"{}"), chat="chat" in scope["path"])
        elif route in OTHER_APIS:
            text = "" if faults.value("mute-api") == scope["path"] else "The quick brown"
            await _answer(send, 200, json.dumps(OTHER_APIS[route](text)).encode())
        elif route == ("GET", "/metrics") and faults.value("metrics") == "missing":
            await _error(send, 404, "Not Found")
        elif route == ("GET", "/metrics"):
            await _answer(send, 200, self._metrics().encode(), b"text/plain; version=0.0.4")
        elif route == ("GET", "/health") and self.engine.died.is_set():
            await _answer(send, 503, b"")
        elif (found := self._plain(route)) is not None:
            await _answer(send, 200, json.dumps(found).encode() if found else b"")
        else:
            await _error(send, 404, "Not Found")

    def _plain(self, route: tuple[str, str]) -> Any:
        card = {"object": "model", "owned_by": "vllm", "max_model_len": self.context}
        return {
            ("GET", "/health"): "",
            ("GET", "/ping"): "",
            ("GET", "/version"): {"version": __version__},
            ("GET", "/load"): {"server_load": self.engine.running},
            ("GET", "/docs"): {"title": "stand-in"},
            ("GET", "/openapi.json"): {"openapi": "3.1.0"},
            ("GET", "/v1/models"): {"object": "list", "data": [{"id": name, **card} for name in self.models]},
            ("POST", "/tokenize"): {"count": 3, "max_model_len": self.context, "tokens": [1, 2, 3]},
            ("POST", "/detokenize"): {"prompt": "The quick brown"},
        }.get(route)

    async def _complete(self, send: Send, request: dict[str, Any], *, chat: bool) -> None:
        if request.get("model", self.model) not in self.models:
            await _error(send, 404, f"The model `{request['model']}` does not exist.")
            return
        tokens = int(request.get("max_completion_tokens") or request.get("max_tokens") or 16)
        self.completions += 1
        refusal = self._refusal(request, tokens)
        if refusal:
            await _error(send, *refusal)
            return
        try:
            if request.get("stream"):
                await self._stream(send, request, tokens, chat=chat)
            else:
                text = "".join([token async for token in self.engine.generate(tokens)])
                text = "" if faults.value("mute") is not None else text
                choice = {"message": self._message(request, text)} if chat else {"text": text}
                await _answer(send, 200, json.dumps(self._answer(choice, tokens, chat=chat)).encode())
        except EngineDead:
            if request.get("stream"):
                error = b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n'
                await send({"type": "http.response.body", "body": error})
            else:
                await _error(send, 500, "EngineCore encountered an issue.")

    def _refusal(self, request: dict[str, Any], tokens: int) -> tuple[int, str] | None:
        if (every := int(faults.number("fail", 0))) and self.completions % every == 0:
            return 500, "Internal Server Error"
        if tokens > self.context:
            limit = f"This model's maximum context length is {self.context}."
            return 400, f"max_tokens is too large: {tokens}. {limit}"
        if isinstance(request.get("prompt"), list) and len(request["prompt"]) > self.context:
            given = int(faults.number("long-prompts", 0))
            words = f"The decoder prompt (length {len(request['prompt'])}) is longer than the maximum model length."
            return (given, "no") if given else (400, words)
        template = int(faults.number("template", 0)) if "messages" in request else 0
        if template + tokens > self.context:
            words = (
                f"This model's maximum context length is {self.context} tokens. However, your prompt contains at least"
            )
            return 400, f"{words} {template} input tokens."
        if request.get("tools") and not self.calls_tools:
            return 400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        if '"image_url"' in json.dumps(request.get("messages", [])) and faults.value("sees") is None:
            return 400, f"{self.model} is not a multimodal model"
        return None

    @staticmethod
    def _message(request: dict[str, Any], text: str) -> dict[str, Any]:
        """A call of the tool that is offered, until its result is among the messages."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        told = any(each["role"] == "tool" for each in request.get("messages", []))
        if request.get("tools") and not told and faults.value("talks") is None:
            function = {"name": request["tools"][0]["function"]["name"], "arguments": '{"city": "Paris"}'}
            message |= {"content": None, "tool_calls": [{"id": "call-1", "type": "function", "function": function}]}
        return message

    async def _stream(self, send: Send, request: dict[str, Any], tokens: int, *, chat: bool) -> None:
        fault = faults.value("stream")
        await send(_start(200, b"text/plain" if fault == "plain" else b"text/event-stream"))

        async def event(choices: list[Any], **more: object) -> None:
            reply = {**self._answer({}, 1, chat=chat), "choices": choices, "usage": None, **more}
            data = b"data: " + (b"{" if fault == "garbled" else json.dumps(reply).encode()) + b"\n\n"
            with contextlib.suppress(*((ConnectionError,) if faults.value("deaf") is not None else ())):
                await send({"type": "http.response.body", "body": data, "more_body": True})

        words = [word async for word in self.engine.generate(tokens)] if fault == "piece" else None
        if words:
            await event([self._choice("".join(words), chat=chat)])
        else:
            async for word in self.engine.generate(tokens):
                await event([self._choice(word, chat=chat)])
        if request.get("stream_options", {}).get("include_usage"):
            await event([], usage={"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3})
        ending = b"" if fault == "cut" else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": ending})

    @staticmethod
    def _choice(text: str, *, chat: bool) -> dict[str, Any]:
        return {"index": 0, "finish_reason": None, **({"delta": {"content": text}} if chat else {"text": text})}

    def _answer(self, choice: dict[str, Any], tokens: int, *, chat: bool) -> dict[str, Any]:
        return {
            "id": "cmpl-standin",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": [{"index": 0, "finish_reason": "length", **choice}],
            "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3},
        }

    def _metrics(self) -> str:
        labels = f'engine="0",model_name="{self.model}"'
        values = {
            "vllm:generation_tokens_total": ("counter", self.engine.generated),
            "vllm:prompt_tokens_total": ("counter", 3 * len(self.engine.first_tokens)),
            "vllm:num_requests_running": ("gauge", faults.number("running", self.engine.running)),
            "vllm:num_requests_waiting": ("gauge", faults.number("waiting", 0)),
            "vllm:kv_cache_usage_perc": ("gauge", faults.number("kv-usage", 0)),
            "vllm:num_preemptions_total": ("counter", faults.number("preemptions", 0)),
        }
        lines = []
        for name, (kind, value) in values.items():
            lines += [f"# TYPE {name} {kind}", f"{name}{{{labels}}} {float(value)}"]
        first = self.engine.first_tokens
        lines.append("# TYPE vllm:time_to_first_token_seconds histogram")
        for bound in (0.001, 0.01, 0.1, 1.0, 10.0, float("inf")):
            le = "+Inf" if bound == float("inf") else bound
            count = float(sum(seconds <= bound for seconds in first))
            lines.append(f'vllm:time_to_first_token_seconds_bucket{{{labels},le="{le}"}} {count}')
        lines.append("# TYPE vllm:inter_token_latency_seconds histogram")
        for bound in ("0.01", "1.0", "+Inf"):  # each token took half a second, where asked
            count = self.engine.generated if bound != "0.01" or faults.value("slow-tokens") is None else 0
            lines.append(f'vllm:inter_token_latency_seconds_bucket{{{labels},le="{bound}"}} {float(count)}')
        for (path, method, status), count in self.answers.items():
            row = f'http_requests_total{{handler="{path}",method="{method}",status="{status}"}}'
            lines.append(f"{row} {float(count)}")
        if faults.value("metrics") == "garbled":
            lines = [line[::-1] for line in lines]
        lines.append(f'vllm:cache_config_info{{block_size="128",engine="0",num_gpu_blocks="{self.context}"}} 1.0')
        return "\n".join(lines) + "\n"


def _start(status: int, kind: bytes, length: int | None = None) -> dict[str, Any]:
    size = [] if length is None else [(b"content-length", str(length).encode())]
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *size]}


async def _answer(send: Send, status: int, body: bytes, kind: bytes = b"application/json") -> None:
    await send(_start(status, kind, len(body)))
    await send({"type": "http.response.body", "body": body})


async def _error(send: Send, status: int, message: str) -> None:
    await _answer(send, status, json.dumps({"error": {"message": message, "code": status}}).encode())
