"""Talking to a model over real HTTP: an answer as it comes, a conversation, a picture, and answers that break off."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.acceptance.apitest import Subject
from installer.acceptance.chat import Reply, Talk, Wishes
from installer.base.errors import Exit, InstallError, UsageError
from installer.units.api import Api

PNG = b"\x89PNG\r\n\x1a\n"


class Model(http.server.BaseHTTPRequestHandler):
    """Answers with the events that the test laid out, and keeps what it was asked."""

    server: Served

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"".join(b"data: " + event.encode() + b"\n\n" for event in self.server.events))

    def log_message(self, *_: object) -> None:
        pass


class Served(http.server.HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Model)
        self.asked: list[dict[str, object]] = []
        self.status, self.events = 200, whole("Hel", "lo")

    @property
    def subject(self) -> Subject:
        return Subject(Api("127.0.0.1", self.server_address[1], "sk-test", 10), "tiny", 1024, "vllm-install logs")


def piece(**delta: str) -> str:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": None}]})


def whole(*words: str, tokens: int = 7) -> list[str]:
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": tokens}})
    return [*(piece(content=word) for word in words), end, usage, "[DONE]"]


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def talk(served: Served, wishes: Wishes | None = None) -> tuple[Talk, list[tuple[str, bool]]]:
    shown: list[tuple[str, bool]] = []
    return Talk(served.subject, wishes or Wishes(), lambda text, thought: shown.append((text, thought))), shown


def test_an_answer_is_shown_as_it_comes_and_counted(served: Served) -> None:
    talking, shown = talk(served)
    reply = talking.ask("Hi")
    assert [text for text, _ in shown if text] == ["Hel", "lo"]
    assert (reply.text, reply.tokens, reply.why_ended) == ("Hello", 7, "stop")
    assert 0 < reply.first_seconds <= reply.seconds
    assert "7 tokens" in str(reply)


def test_what_is_only_thought_is_shown_apart_and_is_no_part_of_the_answer(served: Served) -> None:
    served.events = [piece(reasoning="hm"), *whole("yes")]
    talking, shown = talk(served)
    assert talking.ask("?").text == "yes"
    assert shown[:2] == [("hm", True), ("yes", False)]


def test_a_conversation_is_told_anew_with_each_question(served: Served) -> None:
    talking, _ = talk(served, Wishes("Be brief.", 5))
    talking.ask("one")
    talking.ask("two")
    assert served.asked[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "two"},
    ]
    assert served.asked[1]["max_tokens"] == 5


def test_no_bound_is_sent_where_none_was_asked_for(served: Served) -> None:
    talk(served)[0].ask("one")
    assert "max_tokens" not in served.asked[0]


def test_a_picture_goes_with_the_question(served: Served, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(PNG)
    talk(served)[0].ask("What?", tmp_path / "red.png")
    messages = served.asked[0]["messages"]
    assert isinstance(messages, list)
    shown, said = messages[0]["content"]
    assert shown["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert said == {"type": "text", "text": "What?"}


@pytest.mark.parametrize("content", [b"", b"text", b"<svg/>"])
def test_what_is_no_picture_is_not_sent(served: Served, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "red.png").write_bytes(content)
    with pytest.raises(UsageError, match="is no picture"):
        talk(served)[0].ask("What?", tmp_path / "red.png")
    assert served.asked == []


def test_a_picture_that_is_not_there_or_too_large(served: Served, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        talk(served)[0].ask("What?", tmp_path / "red.png")
    with open(tmp_path / "large.png", "wb") as file:
        file.write(PNG)
        file.truncate(17 << 20)
    with pytest.raises(UsageError, match="is larger than 16 MiB"):
        talk(served)[0].ask("What?", tmp_path / "large.png")


@pytest.mark.parametrize(
    ("status", "events", "why"),
    [
        (200, [piece(content="Hel")], "the answer broke off"),
        (200, [piece(content="Hel"), json.dumps({"error": {"message": "out of memory"}})], "out of memory"),
        (500, [], "500"),
        (200, ["garbage"], "no JSON object"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error_and_no_part_of_the_conversation(
    served: Served, status: int, events: list[str], why: str
) -> None:
    served.status, served.events = status, events
    talking, _ = talk(served)
    with pytest.raises(InstallError, match=why) as caught:
        talking.ask("one")
    assert (caught.value.exit_code, caught.value.hint) == (Exit.NOT_PROVED, "vllm-install logs")
    assert talking.messages == []


def test_nobody_listens() -> None:
    with Served() as server:
        pass
    with pytest.raises(InstallError, match="Connection refused"):
        talk(server)[0].ask("one")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (2.1, "first word after 100 ms, 100 tokens/s, 201 tokens"),
        (0.1001, "first word after 100 ms, 201 tokens"),  # all of it was read at once, whenever it was made
        (0.1, "first word after 100 ms, 201 tokens"),
    ],
)
def test_no_speed_is_said_of_what_came_in_one_piece(seconds: float, said: str) -> None:
    assert str(Reply("text", 0.1, seconds, 201, "stop")) == said
