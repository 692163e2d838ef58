"""The tests that a served model has to pass: what its clients will ask of it, one after the other."""

from __future__ import annotations

import base64
import json
import re
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from installer.acceptance import replies
from installer.acceptance.replies import Failed
from installer.base.language import mark, tr
from installer.base.report import Report
from installer.families.known import family_counting
from installer.flow.prove import ANSWERS_WITHOUT_KEY, ANSWERS_WRONG_KEY
from installer.spec.keys import generate
from installer.units.api import Answer, Api, Body, Event, NoAnswer, gauge

PASSED, FAILED, SKIPPED = mark("passed"), mark("failed"), mark("skipped")
MOST_EVENTS = 1000  # of a short answer; a server that sends more has gone astray
LONGEST_STREAM = 4096  # tokens of the answer that is broken off
FREED_WITHIN = 10.0  # seconds in which the engine has to drop a request whose client is gone
POLL = 0.1
WORDS_ON_LENGTH = re.compile(r"context|length|longer|too long|too large|maximum|exceed", re.IGNORECASE)
COLOUR = (220, 30, 30)
WEATHER: Body = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city right now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Subject:
    """The served model, as far as it is known before anything is asked."""

    api: Api
    model: str
    context: int | None  # tokens; None where vLLM chose it
    look: str  # the command that shows the server's log
    no_tools: str = ""  # why there is nothing to test; empty where there is
    no_image: str = ""
    is_ours: Callable[[], str] | None = None  # sees that it runs and that the port is its own; says what it saw


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float = 0.0
    text: str = ""  # what was seen, why it failed, or why it does not apply
    hint: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


class DoesNotApply(Exception):
    """There is nothing to test, for the reason given."""


def run(subject: Subject, report: Report) -> list[Outcome]:
    """Every test in turn; what rests on one that failed is not run, so that the first failure is the cause."""
    done: dict[str, Outcome] = {}
    # A throwaway server has its port to itself.
    for name, test, needs in TESTS if subject.is_ours else TESTS[1:]:
        before = done.get(needs)
        if before is not None and before.status == FAILED:
            done[name] = Outcome(name, SKIPPED, text=tr("not run, because {test} failed", test=tr(needs)))
        elif before is not None and before.status == SKIPPED:
            done[name] = Outcome(name, SKIPPED, text=before.text)
        else:
            with report.waiting(tr(name)) as say:
                done[name] = _attempt(name, test, subject)
                say(tr(done[name].status))
    return list(done.values())


def _attempt(name: str, test: Callable[[Subject], Seen], subject: Subject) -> Outcome:
    began = time.monotonic()

    def outcome(status: str, text: str, hint: str = "", figures: Mapping[str, float] | None = None) -> Outcome:
        return Outcome(name, status, round(time.monotonic() - began, 3), text, hint, figures or {})

    try:
        seen = test(subject)
    except DoesNotApply as reason:
        return outcome(SKIPPED, str(reason))
    except NoAnswer as error:
        return outcome(FAILED, str(error), subject.look)
    except Failed as failed:
        return outcome(FAILED, failed.text, failed.hint or subject.look)
    return outcome(PASSED, seen.text, figures=seen.figures)


# Who answers, and to whom


def listens(subject: Subject) -> Seen:
    assert subject.is_ours is not None
    return Seen(subject.is_ours())


def models(subject: Subject) -> Seen:
    card = _card(subject)
    context = card.get("max_model_len")
    if subject.context is not None and context != subject.context:
        raise Failed(tr("its context is {given} instead of {asked}", given=context, asked=subject.context))
    return Seen(
        tr("{model}, context {context}", model=subject.model, context=context), {"context": replies.number(context)}
    )


def _card(subject: Subject) -> Mapping[str, object]:
    answer = subject.api.ask("GET", "/v1/models")
    if answer.status in (401, 403):
        raise Failed(
            tr("the key was refused: {status} {words}", status=answer.status, words=answer.words),
            tr("ask with a key of the service (--key-file, OPENAI_API_KEY), or make one: vllm-install set-apikey"),
        )
    listed = replies.good(answer).get("data")
    cards = {card.get("id"): card for card in listed if isinstance(card, dict)} if isinstance(listed, list) else {}
    if subject.model not in cards:
        served = ", ".join(map(str, cards)) or tr("no model")
        raise Failed(
            tr("it serves {served} instead of {model}", served=served, model=subject.model),
            tr("vllm-install deploy puts the unit right"),
        )
    return cards[subject.model]


def _context(subject: Subject) -> int:
    context = int(replies.number(_card(subject).get("max_model_len")))
    if context <= 0:
        raise DoesNotApply(tr("the server does not tell its context"))
    return context


def no_key(subject: Subject) -> Seen:
    return _refused(subject.api.with_key(None), ANSWERS_WITHOUT_KEY)


def wrong_key(subject: Subject) -> Seen:
    return _refused(subject.api.with_key(generate("wrong")), ANSWERS_WRONG_KEY)


def _refused(api: Api, otherwise: str) -> Seen:
    status = api.ask("GET", "/v1/models").status
    if status != 401:
        raise Failed(tr(otherwise, status=status), "vllm-install keys")
    return Seen("401")


# Answers


def completion(subject: Subject) -> Seen:
    body: Body = {"model": subject.model, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    answer = subject.api.ask("POST", "/v1/completions", body)
    if answer.status in (404, 405, 501) and "does not exist" not in answer.words:
        raise DoesNotApply(
            tr("the model completes no text: {status} {words}", status=answer.status, words=answer.words)
        )
    reply = replies.good(answer)
    if not replies.text(replies.choice(reply), "text"):
        raise Failed(tr("the answer holds no text: {body}", body=replies.shown(answer.body)))
    return Seen(tr("{count} tokens", count=replies.tokens(reply)), {"tokens": replies.tokens(reply)})


def chat(subject: Subject) -> Seen:
    answer = _chat(subject, [{"role": "user", "content": "Hello"}], max_tokens=16)
    if answer.status == 400 and "chat template" in answer.words:
        raise DoesNotApply(tr("the model has no chat template"))
    reply = replies.good(answer)
    if not replies.said(reply):
        raise Failed(tr("the answer holds no text: {body}", body=replies.shown(answer.body)))
    return Seen(tr("{count} tokens", count=replies.tokens(reply)), {"tokens": replies.tokens(reply)})


def messages(subject: Subject) -> Seen:
    """As clients of Anthropic's API ask."""
    asked: Body = {"model": subject.model, "max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
    reply = replies.good(_where_served(subject, "/v1/messages", asked))
    return _said_in(replies.pieces(reply.get("content")), reply, "output_tokens")


def responses(subject: Subject) -> Seen:
    """As newer clients of OpenAI's API ask."""
    asked: Body = {"model": subject.model, "input": "Hello", "max_output_tokens": 16}
    reply = replies.good(_where_served(subject, "/v1/responses", asked))
    parts = [part for each in replies.objects(reply.get("output")) for part in replies.pieces(each.get("content"))]
    return _said_in(parts, reply, "output_tokens")


def _where_served(subject: Subject, route: str, asked: Body) -> Answer:
    answer = subject.api.ask("POST", route, asked)
    if answer.status in (404, 405, 501) and "does not exist" not in answer.words:
        raise DoesNotApply(tr("the server has no {route}", route=route))
    return answer


def _said_in(pieces: list[str], reply: Body, counted: str) -> Seen:
    if not pieces:
        raise Failed(tr("the answer holds no text: {body}", body=replies.shown(json.dumps(reply).encode())))
    tokens = replies.tokens(reply, counted)
    return Seen(tr("{count} tokens", count=tokens), {"tokens": tokens})


def streaming(subject: Subject) -> Seen:
    wanted = min(64, _context(subject) // 4)
    body: Body = {
        "model": subject.model, "prompt": "Hello", "max_tokens": wanted, "ignore_eos": True, "temperature": 0,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    with subject.api.stream("/v1/completions", body) as stream:
        replies.check_stream(stream)
        *events, last = [*islice(stream.events(), MOST_EVENTS)] or [Event(0, b"")]
    if last.data != b"[DONE]":
        count = len(events) + bool(last.data)
        raise Failed(tr("the stream broke off after {count} events, without [DONE]", count=count))
    heard = [(event.at, replies.event(event)) for event in events]
    texts = [at for at, reply in heard if replies.text(replies.choice(reply), "text")]
    tokens = max((replies.tokens(reply) for _, reply in heard), default=0)
    if len(texts) < 2:
        raise Failed(
            tr(
                "the answer of {tokens:.0f} tokens came in {count} pieces: it is not streamed",
                tokens=tokens,
                count=len(texts),
            )
        )
    rate = (tokens - 1) / (texts[-1] - texts[0]) if tokens > 1 and texts[-1] > texts[0] else 0.0
    figures = {
        "first_token_seconds": round(texts[0], 4), "tokens_per_second": round(rate, 1),
        "chunks": len(texts), "tokens": tokens,
    }  # fmt: skip
    said = tr(
        "first token after {wait:.0f} ms, {rate:.0f} tokens/s, {count} chunks",
        wait=texts[0] * 1000,
        rate=rate,
        count=len(texts),
    )
    return Seen(said, figures)


def cancel(subject: Subject) -> Seen:
    """A client that goes away must not leave its request to the engine."""
    before = _requests(subject)
    if before is None:
        raise Failed(tr("/metrics does not tell how many requests run"))
    if before:
        raise DoesNotApply(
            tr("others use the service now ({count:.0f} requests), so it could not be told", count=before)
        )
    wanted = min(LONGEST_STREAM, _context(subject) - 8)
    body: Body = {"model": subject.model, "prompt": "Hello", "max_tokens": wanted, "ignore_eos": True}
    with subject.api.stream("/v1/completions", body) as stream:
        replies.check_stream(stream)
        for count, _ in enumerate(stream.events()):
            if count == 2:
                break
    began = time.monotonic()
    while (left := _requests(subject)) != 0:
        if time.monotonic() - began > FREED_WITHIN:
            raise Failed(
                tr(
                    "{seconds:.0f} s after the client went away {count:.0f} requests still run",
                    seconds=FREED_WITHIN,
                    count=left or 0,
                )
            )
        time.sleep(POLL)
    freed = time.monotonic() - began
    said = tr("no request runs {seconds:.1f} s after the client went away", seconds=freed)
    return Seen(said, {"freed_seconds": round(freed, 3)})


def _requests(subject: Subject) -> float | None:
    metrics = replies.checked(subject.api.ask("GET", "/metrics")).body.decode(errors="replace")
    names = family_counting(metrics).metrics
    running, waiting = gauge(metrics, names.running), gauge(metrics, names.waiting)
    return None if running is None else running + (waiting or 0)


def long_prompt(subject: Subject) -> Seen:
    context = _context(subject)
    body: Body = {"model": subject.model, "prompt": [1] * (context + 1), "max_tokens": 1}
    answer = subject.api.ask("POST", "/v1/completions", body)
    if answer.status != 400:
        raise Failed(
            tr(
                "a prompt of {count} tokens was answered with {status} instead of 400",
                count=context + 1,
                status=answer.status,
            )
        )
    if not WORDS_ON_LENGTH.search(answer.words):
        raise Failed(
            tr(
                "a prompt of {count} tokens was refused without saying why: {words}",
                count=context + 1,
                words=answer.words,
            )
        )
    return Seen(f"400: {answer.words}")


# What only some models can


def tools(subject: Subject) -> Seen:
    """The model calls a function, is told its result, and answers with it."""
    if subject.no_tools:
        raise DoesNotApply(subject.no_tools)
    question: Body = {"role": "user", "content": "What is the weather in Paris right now? Use the tool."}
    length = min(512, _context(subject) // 4)
    first = replies.good(_chat(subject, [question], max_tokens=length, tools=[WEATHER], tool_choice="auto"))
    message = replies.message(first)
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        raise Failed(
            tr("the model answered in text instead of calling the tool: {words!r}", words=replies.said(first)[:200]),
            tr("check that --tool-call-parser is the one of this model's family"),
        )
    call = calls[0] if isinstance(calls[0], dict) else {}
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    text = function.get("arguments") if isinstance(function, dict) else None
    arguments = Answer(200, str(text).encode()).json()
    if name != "get_weather" or not isinstance(arguments.get("city"), str):
        shown = replies.shown(json.dumps(call).encode())
        raise Failed(tr("the call of the tool is not one that can be made: {call}", call=shown))
    result: Body = {"role": "tool", "tool_call_id": call.get("id"), "content": '{"weather": "sunny", "celsius": 21}'}
    asked: Body = {"role": "assistant", "content": message.get("content") or "", "tool_calls": calls}
    second = replies.good(_chat(subject, [question, asked, result], max_tokens=length, tools=[WEATHER]))
    if not replies.said(second):
        raise Failed(tr("told the result of the tool, the model said nothing"))
    return Seen(tr("called {call}, then said {words!r}", call=f"{name}({text})", words=replies.said(second)[:60]))


def image(subject: Subject) -> Seen:
    if subject.no_image:
        raise DoesNotApply(subject.no_image)
    url = "data:image/png;base64," + base64.b64encode(png(64, COLOUR)).decode()
    parts = [
        {"type": "text", "text": "Which colour is this picture? Answer with one word."},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    reply = replies.good(_chat(subject, [{"role": "user", "content": parts}], max_tokens=64))
    if not replies.said(reply):
        raise Failed(tr("shown a picture, the model said nothing"))
    return Seen(tr("shown a red picture, it said {words!r}", words=replies.said(reply)[:60]))


def png(side: int, colour: tuple[int, int, int]) -> bytes:
    """A square picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# name, test, the test that must have passed before
TESTS: tuple[tuple[str, Callable[[Subject], Seen], str], ...] = (
    (mark("listens"), listens, ""),
    (mark("models"), models, "listens"),
    (mark("no-key"), no_key, "models"),
    (mark("wrong-key"), wrong_key, "models"),
    (mark("completion"), completion, "models"),
    (mark("chat"), chat, "completion"),
    (mark("messages"), messages, "chat"),
    (mark("responses"), responses, "chat"),
    (mark("streaming"), streaming, "completion"),
    (mark("cancel"), cancel, "streaming"),
    (mark("long-prompt"), long_prompt, "completion"),
    (mark("tools"), tools, "chat"),
    (mark("image"), image, "chat"),
)


def _chat(subject: Subject, messages: list[Body], **more: object) -> Answer:
    body: Body = {"model": subject.model, "messages": messages, "temperature": 0, **more}
    return subject.api.ask("POST", "/v1/chat/completions", body)
