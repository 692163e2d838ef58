"""The tokens of each request, counted where vLLM's API server asks its engine: exact for streams, for answers in one
piece and for callers who hang up; no body is read or changed.

What is touched of vLLM is looked for, never relied on: where a version lacks it, requests are counted and tokens are
not, and a line in the journal says so.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

TELL_EVERY = 32  # tokens of a stream; what is not told is lost with a process that is killed
log = logging.getLogger("vllm.guard")
has_complained = False  # once is enough: it would be at each output

CUMULATIVE = "CUMULATIVE"  # vLLM's name of outputs that hold all tokens so far


class Call:
    """One request of a client from its key to the end of its answer, and what it has used that nobody was told yet."""

    __slots__ = (
        "asked", "begun", "cached", "completion", "guess", "is_counted", "is_limited", "is_over", "name", "priority",
        "prompt", "status", "tell",
    )  # fmt: skip

    def __init__(self, name: str, tell: Callable[[Call], None]) -> None:
        self.name, self.tell = name, tell
        self.prompt = self.cached = self.completion = 0
        self.status = self.priority = self.guess = 0
        self.is_limited = self.is_counted = self.is_over = False
        self.asked: dict[str, Question] = {}
        self.begun: Callable[[Call], None] | None = None  # told of the first token

    def take(self) -> tuple[int, int, int]:
        """What is to be told."""
        used = self.prompt, self.cached, self.completion
        self.prompt = self.cached = self.completion = 0
        return used


CALL: ContextVar[Call | None] = ContextVar("call", default=None)


class Question:
    """One prompt that the engine was asked to go on with; a request can have several."""

    __slots__ = ("cached", "call", "has_begun", "prompt", "queue", "seen", "tokens")

    def __init__(self, call: Call, tokens: int) -> None:
        self.call, self.tokens = call, tokens  # of the prompt, as far as known before there is an output
        self.prompt = self.cached = 0  # of those that are counted
        self.queue: Any = None
        self.has_begun = False
        self.seen: dict[int, int] = {}  # tokens by index, of outputs that hold all of them

    def complain(self, error: Exception) -> None:
        global has_complained
        if not has_complained:
            log.error("tokens are not counted as they should be: %r", error)
        has_complained = True

    def end(self, note: Callable[[Any], None]) -> None:
        """What was made for a caller who has gone lies in the queue that nobody reads any more."""
        left = getattr(self.queue, "output", None)
        if hasattr(left, "prompt_token_ids"):
            try:
                note(left)
            except Exception as error:
                self.complain(error)
        self.has_begun = True
        if self.call.is_over:
            self.call.tell(self.call)

    def note(self, output: Any) -> None:
        """Count what an output adds to those before."""
        call, self.has_begun = self.call, True
        prompt = len(output.prompt_token_ids or ()) + len(getattr(output, "encoder_prompt_token_ids", None) or ())
        cached = output.num_cached_tokens or 0
        if prompt != self.prompt or cached != self.cached:
            call.prompt += max(0, prompt - self.prompt)
            call.cached += max(0, cached - self.cached)
            self.prompt, self.cached = max(prompt, self.prompt), max(cached, self.cached)
        for each in output.outputs if isinstance(output.outputs, list) else ():
            call.completion += len(each.token_ids)

    def note_all(self, output: Any) -> None:
        """The same of outputs that repeat those before."""
        before = self.call.completion
        self.note(output)
        self.call.completion = before
        for each in output.outputs if isinstance(output.outputs, list) else ():
            count = len(each.token_ids)
            self.call.completion += max(0, count - self.seen.get(each.index, 0))
            self.seen[each.index] = max(count, self.seen.get(each.index, 0))


async def counted(outputs: Any, question: Question, note: Callable[[Any], None]) -> AsyncIterator[Any]:
    """The same outputs, each of them noted."""
    call = question.call
    try:
        async for output in outputs:
            try:
                is_first = not question.has_begun
                note(output)
                if is_first and call.begun:
                    call.begun(call)
                if (is_first or call.completion >= TELL_EVERY) and not output.finished:
                    call.tell(call)
            except Exception as error:  # of whatever kind: the answer is worth more than its tokens' number
                question.complain(error)
            yield output
    finally:
        with contextlib.suppress(AttributeError):
            await outputs.aclose()
        question.end(note)


class Counter:
    """Put before an engine's own methods, once for a process."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.has_priorities = policy(engine) == "priority"
        self.states: Any = getattr(getattr(engine, "output_processor", None), "request_states", None)

    @classmethod
    def put_before(cls, engine: Any) -> Counter | None:
        """None where this is no engine that is known."""
        if not callable(getattr(engine, "generate", None)):
            return None
        counter = cls(engine)
        for name in ("generate", "encode"):
            if callable(method := getattr(engine, name, None)):
                setattr(engine, name, counter.asking(method))
        if callable(method := getattr(engine, "add_request", None)):
            engine.add_request = counter.queueing(method)
        return counter

    def asking(self, method: Any) -> Any:
        takes_priority = "priority" in inspect.signature(method).parameters

        def ask(*args: Any, **words: Any) -> Any:
            call = CALL.get()
            if call is None:
                return method(*args, **words)
            if takes_priority:  # a client's own is not for a client to choose
                words["priority"] = call.priority if self.has_priorities else 0
            prompt = words.get("prompt", args[0] if args else None)
            params = words.get("sampling_params", args[1] if len(args) > 1 else None)
            question = Question(call, prompt_length(prompt))
            call.asked[str(words.get("request_id", args[2] if len(args) > 2 else ""))] = question
            is_cumulative = getattr(getattr(params, "output_kind", None), "name", "") == CUMULATIVE
            note = question.note_all if is_cumulative else question.note
            return counted(method(*args, **words), question, note)

        return ask

    @staticmethod
    def queueing(method: Any) -> Any:
        """The queue between engine and caller, in which the last output lies when the caller has gone."""

        async def queue(*args: Any, **words: Any) -> Any:
            found = await method(*args, **words)
            call = CALL.get()
            if call is not None:
                question = call.asked.get(str(words.get("request_id", args[0] if args else "")))
                if question is not None and question.queue is None:
                    question.queue = found
            return found

        return queue

    def is_waiting(self, question: Question) -> bool:
        """Whether the engine has not made a token yet; an answer in one piece shows that nowhere else."""
        if question.has_begun:
            return False
        if question.queue is None:
            return True
        name = getattr(question.queue, "request_id", None)
        get = getattr(self.states, "get", lambda _: None)
        state = get(name) or get(f"0_{name}")
        return bool(getattr(state, "is_prefilling", False))


def policy(engine: Any) -> str:
    scheduler = getattr(getattr(engine, "vllm_config", None), "scheduler_config", None)
    return str(getattr(scheduler, "policy", "fcfs"))


def prompt_length(prompt: Any) -> int:
    found = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    return len(found) if isinstance(found, list) else 0
