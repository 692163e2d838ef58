"""Talking to a served model: one question, or one after the other, each answer as it comes."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from installer.acceptance import replies
from installer.acceptance.apitest import Subject
from installer.acceptance.replies import Failed
from installer.base.errors import Exit, InstallError, UsageError
from installer.base.language import tr
from installer.base.sizes import MIB
from installer.units.api import Body, NoAnswer

LARGEST = 16 * MIB  # of a picture
PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}  # by how the file begins

FASTEST = 2000.0  # tokens/s that one answer may seem to come with


@dataclass(frozen=True)
class Reply:
    text: str
    first_seconds: float  # from the question to the first word
    seconds: float
    tokens: float
    why_ended: str  # stop, length, …

    @property
    def rate(self) -> float:
        """Tokens a second after the first; 0.0 where all that came was read in one piece."""
        after = self.seconds - self.first_seconds
        return (self.tokens - 1) / after if self.tokens > 1 and after * FASTEST > self.tokens else 0.0

    def __str__(self) -> str:
        wait, count = self.first_seconds * 1000, self.tokens
        if not self.rate:
            return tr("first word after {wait:.0f} ms, {count:.0f} tokens", wait=wait, count=count)
        return tr(
            "first word after {wait:.0f} ms, {rate:.0f} tokens/s, {count:.0f} tokens",
            wait=wait, rate=self.rate, count=count,
        )  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """How the answers are to be, beyond what was asked."""

    system: str = ""
    longest: int | None = None  # tokens


class Talk:
    """A conversation, which the model is told anew with each question; `show` gets the pieces of an answer."""

    def __init__(self, subject: Subject, wishes: Wishes, show: Callable[[str, bool], None]) -> None:
        self.subject, self.wishes, self.show = subject, wishes, show
        self.messages: list[Body] = [{"role": "system", "content": wishes.system}] if wishes.system else []

    def ask(self, text: str, picture: Path | None = None) -> Reply:
        """An answer that was broken off, by whomever, is no part of the conversation."""
        question: Body = {"role": "user", "content": [_shown(picture), _said(text)] if picture else text}
        try:
            reply = self._answer([*self.messages, question])
        except (Failed, NoAnswer) as error:
            hint = error.hint if isinstance(error, Failed) else ""
            raise InstallError(str(error), hint or self.subject.look, Exit.NOT_PROVED) from None
        self.messages += [question, {"role": "assistant", "content": reply.text}]
        return reply

    def _answer(self, messages: list[Body]) -> Reply:
        body: Body = {
            "model": self.subject.model, "messages": messages, "stream_options": {"include_usage": True},
            **({"max_tokens": self.wishes.longest} if self.wishes.longest else {}),
        }  # fmt: skip
        pieces: list[str] = []
        first = last = tokens = 0.0
        why = ""
        with self.subject.api.stream("/v1/chat/completions", body) as stream:
            replies.check_stream(stream)
            for event in stream.events():
                if event.data == b"[DONE]":
                    return Reply("".join(pieces), first, last, tokens, why)
                reply, last = replies.event(event), event.at
                choice = replies.choice(reply)
                delta = choice.get("delta")
                words, thoughts = _words(delta if isinstance(delta, dict) else {})
                first = first or (last if words or thoughts else 0.0)
                pieces.append(words)
                self.show(words or thoughts, bool(thoughts) and not words)
                tokens, why = replies.tokens(reply) or tokens, replies.text(choice, "finish_reason") or why
        raise Failed(tr("the answer broke off"))


def _words(delta: Body) -> tuple[str, str]:
    """What is said, and what is only thought."""
    return replies.text(delta, "content"), replies.text(delta, "reasoning", "reasoning_content")


def _said(text: str) -> Body:
    return {"type": "text", "text": text}


def _shown(path: Path) -> Body:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(tr("{path} cannot be read: {why}", path=path, why=error.strerror or error)) from None
    kind = next((kind for start, kind in PICTURES.items() if content.startswith(start)), None)
    if kind is None:
        raise UsageError(tr("{path} is no picture", path=path), tr("take a PNG, JPEG, GIF or WebP file"))
    if len(content) > LARGEST:
        raise UsageError(tr("{path} is larger than {most} MiB", path=path, most=LARGEST // MIB))
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
