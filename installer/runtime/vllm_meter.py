"""One request from its key to the end of its answer: whether it is taken, and what it has used.

Stands in the guard, so it needs no gateway and is the same for one API server and for many. Stdlib only.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from installer.runtime.vllm_count import CALL, Call, Counter
    from installer.runtime.vllm_drain import App, Receive, Scope, Send
    from installer.runtime.vllm_limits import NO_LIMIT, PRIORITIES, Limits, Refusal, judge
    from installer.runtime.vllm_queue import Queue
    from installer.runtime.vllm_usage_record import Record
    from installer.runtime.vllm_usage_table import Table
else:
    from vllm_count import CALL, Call, Counter
    from vllm_limits import NO_LIMIT, PRIORITIES, Limits, Refusal, judge
    from vllm_queue import Queue
    from vllm_usage_table import Table

log = logging.getLogger("vllm.guard")

TYPES = {429: "rate_limit_error", 503: "service_unavailable"}
REFUSED = (0, 0, 1, 0, 0, 0)
METRICS = (
    ("requests", "Requests that were answered."),
    ("errors", "Requests that ended in an error."),
    ("refused", "Requests that a limit refused."),
    ("prompt_tokens", "Tokens of prompts."),
    ("cached_tokens", "Tokens of prompts that the engine had in its cache."),
    ("completion_tokens", "Tokens of answers."),
)
ENGINE_DEAD = Refusal(503, "engine_dead", "The engine has died and is started again: come again.", 1)
END = b"# EOF\n"  # of a text in OpenMetrics' form


class Meter:
    counting: Callable[[Any], Any] = staticmethod(Counter.put_before)

    def __init__(self) -> None:
        self.table = Table(os.environ.get("STATE_DIRECTORY", "").partition(":")[0])
        self.limits = Limits(os.environ.get("LIMITS", ""))
        self.queue = Queue.of_environment(self.table)
        self.engine: Any = None

    def start(self, scope: Scope) -> None:
        """Called at the start of the application: vLLM has made its engine then, and is asked nothing yet."""
        counter, self.engine = None, getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
        try:
            counter = self.counting(self.engine)
        except Exception as error:  # of whatever kind: it serves without, too
            log.warning("the engine cannot be listened to: %r", error)
        if counter is None:
            log.warning("tokens are not counted: this engine is not one that is known")
        self.table.say_tokens_are_counted(counter is not None)
        if self.queue:
            self.queue.counter = counter

    def admit(self, name: str) -> Call | Refusal:
        if getattr(self.engine, "errored", False):  # it would fail at once, and so look the least busy of all replicas
            return ENGINE_DEAD
        limit, call = self.limits.of(name), Call(name, self.tell)
        call.is_limited, call.priority = limit is not NO_LIMIT, PRIORITIES[limit.priority]
        refusal = self.queue.judge() if self.queue else None
        if refusal is None and not call.is_limited:
            return call

        def do(record: Record) -> Refusal | None:
            found = refusal or judge(record, limit, self.table.active.get(name, 0))
            if found:
                record.add(REFUSED)
                return found
            record.add_recent(1, 0)
            if limit.concurrent is not None:
                self.table.begin(name, 1)
                call.is_counted = True
            return None

        return self.table.change(name, do) or refusal or call

    async def serve(self, call: Call, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        CALL.set(call)
        if self.queue:
            self.queue.enter(call, body_size(scope))

        def watched(message: dict[str, Any]) -> Any:
            if "status" in message:
                call.status = message["status"]
            return send(message)

        try:
            await app(scope, receive, watched)
        except Exception:
            call.status = 500
            raise
        finally:
            self.end(call)

    def tell(self, call: Call) -> None:
        """What a request has used so far that goes on, or that is over and whose answer is made in the background."""
        used = call.take()
        if any(used):
            self.table.add(call.name, (0, 0, 0, *used), is_limited=call.is_limited)

    def end(self, call: Call) -> None:
        call.is_over = True
        if self.queue:
            self.queue.leave(call)
        if call.is_counted:
            self.table.begin(call.name, -1)
        self.table.add(call.name, (1, int(call.status >= 400), 0, *call.take()), is_limited=call.is_limited)

    # Prometheus

    async def expose(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's metrics, and ours behind them. Nothing is compressed, for it has to be read."""
        head: dict[str, Any] = {}
        pieces: list[bytes] = []

        async def put_behind(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
                return
            pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                await self._send(head, b"".join(pieces), send)

        headers = [each for each in scope["headers"] if each[0] != b"accept-encoding"]
        await app({**scope, "headers": headers}, receive, put_behind)

    async def _send(self, head: dict[str, Any], body: bytes, send: Send) -> None:
        kind = next((value for name, value in head["headers"] if name.lower() == b"content-type"), b"")
        if head["status"] == 200 and (b"text/plain" in kind or b"openmetrics" in kind):
            is_open = body.endswith(END)
            text = self.metrics(is_open=is_open)
            body = body[: -len(END)] + text + END if is_open else body + text
        headers = [each for each in head["headers"] if each[0].lower() != b"content-length"]
        await send({**head, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def metrics(self, *, is_open: bool) -> bytes:
        """By key, whose names are plain words, and of which there are not many."""
        used, lines = self.table.totals(), []
        for name, help in METRICS:
            counter = f"vllm_install_{name}_total"
            family = counter[: -len("_total")] if is_open else counter
            lines += [f"# HELP {family} {help}", f"# TYPE {family} counter"]
            lines += [f'{counter}{{key="{key}"}} {getattr(numbers, name)}' for key, numbers in used]
        return "".join(f"{line}\n" for line in lines).encode()


def body_size(scope: Scope) -> int:
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(text) if text.isdigit() and len(text) < 12 else 0


def words_of(refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """As OpenAI's and Anthropic's clients expect it."""
    error = {"message": refusal.message, "type": TYPES[refusal.status], "param": None, "code": refusal.code}
    body = json.dumps({"error": error}).encode()
    return body, [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % refusal.retry_after),
    ]  # fmt: skip
