"""Reading the answers of a server that may be broken: what a test looks for, or why it failed."""

from __future__ import annotations

from installer.base.language import tr
from installer.units.api import Answer, Body, Event, Stream


class Failed(Exception):
    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text, self.hint = text, hint


def checked(answer: Answer) -> Answer:
    if answer.status != 200:
        raise Failed(f"{answer.status}: {answer.words}")
    return answer


def good(answer: Answer) -> Body:
    reply = checked(answer).json()
    if not reply:
        raise Failed(tr("the answer is no JSON object: {body}", body=shown(answer.body)))
    return reply


def check_stream(stream: Stream) -> None:
    if stream.status != 200:
        checked(Answer(stream.status, stream.rest()))
    if stream.kind != "text/event-stream":
        raise Failed(tr("the stream is of type {kind} instead of text/event-stream", kind=stream.kind or tr("none")))


def event(heard: Event) -> Body:
    reply = heard.json()
    if "error" in reply:
        raise Failed(tr("the stream ended in an error: {words}", words=Answer(200, heard.data).words))
    if not reply:
        raise Failed(tr("an event of the stream is no JSON object: {body}", body=shown(heard.data)))
    return reply


def choice(reply: Body) -> Body:
    choices = reply.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def message(reply: Body) -> Body:
    found = choice(reply).get("message")
    return found if isinstance(found, dict) else {}


def said(reply: Body) -> str:
    """What the model said; a model that thinks first may not have said more."""
    return text(message(reply), "content", "reasoning", "reasoning_content")


def text(holder: Body, *names: str) -> str:
    return next((value for name in names if isinstance(value := holder.get(name), str) and value), "")


def objects(value: object) -> list[Body]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def pieces(content: object) -> list[str]:
    """What is said in the parts of an answer; a model that thinks first may not have said more."""
    return [said for part in objects(content) if (said := text(part, "text", "thinking"))]


def tokens(reply: Body, counted: str = "completion_tokens") -> float:
    usage = reply.get("usage")
    return number(usage.get(counted)) if isinstance(usage, dict) else 0


def number(value: object) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def shown(body: bytes) -> str:
    return repr(body[:200].decode(errors="replace"))
