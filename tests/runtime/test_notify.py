"""Telling somebody who may be dead, slow or hostile: it ends, and says what became of it and nothing of a secret."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from installer.runtime import vllm_notify
from installer.runtime.vllm_notify import NOT_TAKEN, PARTLY, TAKEN, tell

MESSAGE = {
    "summary": "qwen3vl on <gpu1>: it & all failed",
    "findings": [
        {"id": "gpu-lost", "severity": "fault", "cause": "a GPU <is> gone", "commands": ["sudo reboot", "no other"]}
    ],
}
SECRET = "T00000/B1111/very-secret"


class Hook(HTTPServer):
    """A webhook that answers as it is told, and remembers what came."""

    def __init__(self, status: int = 200, leads_to: str = "") -> None:
        self.status, self.leads_to = status, leads_to
        self.came: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"


class Answers(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.came.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        if self.server.leads_to:
            self.send_header("Location", self.server.leads_to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


class Slow(socketserver.BaseRequestHandler):
    """Answers a byte at a time, each within the patience for a byte, and never ends."""

    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.server.over.wait(0.05):  # type: ignore[attr-defined]
            try:
                self.request.sendall(b"x")
            except OSError:
                return


class Mute(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.over.wait()  # type: ignore[attr-defined]


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with ExitStack() as stack:
        made = Hook()
        stack.enter_context(serving(made))
        yield made


def task(url: str = "", command: list[str] | None = None, form: str = "json") -> dict[str, object]:
    return {"url": url, "command": command or [], "form": form, "message": MESSAGE}


def test_a_url_gets_the_message_as_json(hook: Hook) -> None:
    assert tell(task(hook.url)) == TAKEN
    assert [(path, json.loads(body)) for path, body in hook.came] == [(f"/{SECRET}", MESSAGE)]


def test_slack_gets_a_text_in_which_nothing_is_a_link_or_a_name(hook: Hook) -> None:
    assert tell(task(hook.url, form="slack")) == TAKEN
    text = json.loads(hook.came[0][1])["text"]
    assert text.splitlines() == [
        "*qwen3vl on &lt;gpu1&gt;: it &amp; all failed*",
        "fault: a GPU &lt;is&gt; gone [gpu-lost]",
        "    `sudo reboot`",
    ]


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 429, 500, 503])
def test_a_refusal_is_said_without_the_secret_and_no_redirect_is_followed(
    hook: Hook, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    leads = Hook(status, leads_to=hook.url)
    with serving(leads):
        assert tell(task(leads.url)) == NOT_TAKEN
    said = capsys.readouterr().err
    assert f"the URL did not take the message: 127.0.0.1:{leads.server_address[1]} answers {status}" in said
    assert "secret" not in said
    assert ("redirects are not followed" in said) == (status < 400)
    assert (len(leads.came), hook.came) == (1, [])


@pytest.mark.parametrize("kind", [Slow, Mute])
def test_one_that_never_answers_is_given_up(
    kind: type[socketserver.BaseRequestHandler], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_notify, "WITHIN", 1)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    with serving(server):
        assert tell(task(f"http://127.0.0.1:{server.server_address[1]}/{SECRET}")) == NOT_TAKEN
    said = capsys.readouterr().err
    assert "did not take the message: " in said
    assert "secret" not in said


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "http://127.0.0.1:1/x"])
def test_what_is_no_server_is_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(task(url)) == NOT_TAKEN
    assert "the URL did not take the message: " in capsys.readouterr().err


def test_a_command_gets_its_words_as_they_are_and_the_message(tmp_path: Path) -> None:
    program = tmp_path / "tell"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"json.dump([sys.argv[1:], json.load(sys.stdin)], open({str(tmp_path / 'told')!r}, 'w'))\n"
    )
    program.chmod(0o755)
    words = ["$(touch /x)", "a b", "; rm -r /", "%n", "*"]
    assert tell(task(command=[str(program), *words])) == TAKEN
    assert json.loads((tmp_path / "told").read_text()) == [words, MESSAGE]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/bin/false"], "exit status 1"),
        (["/no/such"], "No such file"),
        (["/bin/sh", "-c", "kill -9 $$"], "exit status -9"),
        (["/bin/sh", "-c", "sleep 1000 & sleep 1000"], "longer than 1 s"),
    ],
)
def test_a_command_that_fails_or_hangs_is_said(
    command: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "longer" in said:
        monkeypatch.setattr(vllm_notify, "WITHIN", 1)
    assert tell(task(command=command)) == NOT_TAKEN
    assert said in capsys.readouterr().err


def test_one_of_two_is_enough_and_the_other_is_said(hook: Hook, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(task(hook.url, ["/bin/false"])) == PARTLY
    assert len(hook.came) == 1
    assert capsys.readouterr().err == "the command did not take the message: exit status 1\n"
    assert tell(task("http://127.0.0.1:1/", ["/bin/cat"])) == PARTLY
    assert tell(task("http://127.0.0.1:1/", ["/bin/false"])) == NOT_TAKEN


def test_it_is_run_with_its_message_in_a_credential(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "message").write_text(json.dumps(task(hook.url)))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        vllm_notify.main()
    assert (ended.value.code, len(hook.came)) == (TAKEN, 1)
