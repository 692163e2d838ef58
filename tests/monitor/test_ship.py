"""Logs leave without a key and without a prompt, in the form that each server takes, each once, whatever it answers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.monitor import logs, ship, sinks
from installer.monitor.ship import Task
from installer.monitor.sinks import BadEntry, deliver
from installer.runtime import vllm_notify
from installer.runtime.vllm_notify import NotTaken
from installer.spec.keys import Key, digest
from installer.units.render import unit
from tests.kit.targets import KEYS, target

KEY = "q7Xw2_Vb9.Lm4+Zt8Kp1Rs6Hd3"
PROMPT = "the patient is called Miller"
UNIT = unit(target(kind="cpu", keys=(*KEYS, Key("kunde", digest(KEY)))), Layout("qwen3vl"))
BOOT = "0123456789abcdef0123456789abcdef"
REMOTE = Path("/usr/lib/systemd/systemd-journal-remote")


def entry(number: int, message: object = "INFO all is well", **more: object) -> bytes:
    fields = {
        "__CURSOR": f"s=1;i={number}", "__REALTIME_TIMESTAMP": str(1_767_000_000_000_000 + number),
        "__MONOTONIC_TIMESTAMP": str(1000 + number), "_BOOT_ID": BOOT, "_MACHINE_ID": BOOT, "_HOSTNAME": "gpu1",
        "_SYSTEMD_UNIT": "qwen3vl.service", "PRIORITY": "6", "MESSAGE": message, "_PID": "7",
        "_CMDLINE": f"vllm --api-key {KEY}", "_EXE": "/usr/bin/python3", **more,
    }  # fmt: skip
    return json.dumps(fields).encode()


CLEAN = ship.cleaner({"qwen3vl.service": UNIT})


def read(number: int = 1, message: object = "INFO all is well", **more: object) -> dict[str, str]:
    found = ship.read(entry(number, message, **more), CLEAN)
    assert found
    return dict(found)


@pytest.mark.parametrize(
    "line",
    [
        KEY, f"key={KEY}", f"the key '{KEY}' is unknown.", f'{{"api_key": "{KEY}"}}', f"({KEY})", f"Bearer {KEY}",
        "Authorization: Bearer sk-qwen3vl-abcdefghijklmnop", "HF_TOKEN=hf_abcdefghijklmnopqrst",
        f"Received request cmpl-1: prompt: '{PROMPT}', params: ...", f'{{"prompt": "{PROMPT}"}}',
        f"messages=[{{'content': '{PROMPT}'}}]", list(f"prompt={PROMPT} {KEY}".encode()),
    ],
)  # fmt: skip
def test_no_key_and_no_prompt_leaves(line: object) -> None:
    said = json.dumps(read(message=line, MESSAGE_ID=KEY))
    for secret in (KEY, "Miller", "abcdefghijklmnop"):
        assert secret not in said
    assert "_CMDLINE" not in said


def test_what_is_no_secret_stays_as_it_is() -> None:
    line = 'INFO 127.0.0.1:55 "POST /v1/chat/completions HTTP/1.1" 200 OK from 192.0.2.7'
    found = read(message=line, UNIT="qwen3vl.service", EXIT_STATUS="78")
    assert (found["MESSAGE"], found["EXIT_STATUS"], found["_PID"]) == (line, "78", "7")


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"3", b"null", b'{"MESSAGE": "x"}', b"[" * 100_000, entry(1, __REALTIME_TIMESTAMP="x")]
)
def test_what_is_no_entry_is_passed_over(line: bytes) -> None:
    assert ship.read(line, CLEAN) is None


WELL = '{"errors": false}'


class Server(HTTPServer):
    """Answers what it is told, one after the other, and then that all is well."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers, self.came = list(answers), list[tuple[str, dict[str, str], bytes]]()
        self.drips = False
        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((self.path, dict(self.headers), body))
        status, text = self.server.answers.pop(0) if self.server.answers else (200, WELL)
        if self.server.drips:
            self.drip()
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(text.encode())

    def drip(self) -> None:
        """A status line without an end, for as long as somebody listens."""
        with contextlib.suppress(OSError):
            while not select.select([self.connection], [], [], 0.05)[0]:
                self.wfile.write(b"H")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_elasticsearch_gets_each_entry_once_whatever_is_repeated(server: Server) -> None:
    entries = [read(1), read(2, "two\nlines")]
    deliver("elasticsearch", server.url, "ApiKey abc", entries)
    deliver("elasticsearch", server.url, "", entries)
    (path, headers, body), (_, bare, again) = server.came
    assert path == "/_bulk?filter_path=errors,items.create.status"
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/x-ndjson", "ApiKey abc")
    assert "Authorization" not in bare
    assert body == again, "the same ids"
    assert body.endswith(b"\n")
    lines = [json.loads(line) for line in body.decode().splitlines()]
    assert [list(line) for line in lines[::2]] == [["create"], ["create"]]
    assert len({line["create"]["_id"] for line in lines[::2]}) == 2
    first = lines[1]
    assert (first["@timestamp"], first["message"], first["systemd_unit"]) == (
        1_767_000_000_000, "INFO all is well", "qwen3vl.service",
    )  # fmt: skip
    assert lines[3]["message"] == "two\nlines"


def bulk_answer(*status: int) -> str:
    return json.dumps({"errors": True, "items": [{"create": {"status": each}} for each in status]})


@pytest.mark.parametrize(
    ("status", "error"), [((201, 409), None), ((201, 429), NotTaken), ((400, 201), BadEntry), ((400, 503), NotTaken)]
)
def test_elasticsearch_answers_for_each_entry(server: Server, status: tuple[int, ...], error: Any) -> None:
    server.answers = [(200, bulk_answer(*status))]
    if error is None:
        deliver("elasticsearch", server.url, "", [read(1), read(2)])
        return
    with pytest.raises(NotTaken) as caught:
        deliver("elasticsearch", server.url, "", [read(1), read(2)])
    assert caught.type is error


@pytest.mark.parametrize("said", ["", "{", "[]", "null", "{}", '{"errors": true}', '{"errors": true, "items": [3]}'])
def test_what_is_no_elasticsearch_has_taken_nothing(server: Server, said: str) -> None:
    server.answers = [(200, said)]
    with pytest.raises(NotTaken, match="answers what no such server would"):
        deliver("elasticsearch", server.url, "", [read()])


def test_loki_gets_streams_of_few_labels_and_lines_with_all_fields(server: Server) -> None:
    server.answers = [(204, "")]
    about = read(2, "Started", UNIT="other.service", _SYSTEMD_UNIT="init.scope")
    deliver("loki", server.url, "", [read(1), about, read(3)])
    path, headers, body = server.came[0]
    assert (path, headers["Content-Type"]) == ("/loki/api/v1/push", "application/json")
    streams = json.loads(body)["streams"]
    assert [stream["stream"] for stream in streams] == [
        {"job": "vllm-install", "host": "gpu1", "unit": "qwen3vl.service"},
        {"job": "vllm-install", "host": "gpu1", "unit": "other.service"},
    ]
    assert [stamp for stamp, _ in streams[0]["values"]] == ["1767000000000001000", "1767000000000003000"]
    assert json.loads(streams[0]["values"][0][1])["message"] == "INFO all is well"


@pytest.mark.skipif(not REMOTE.exists(), reason="scripts/host-packages machine installs it")
def test_the_real_journal_remote_has_every_entry_and_field(tmp_path: Path) -> None:
    entries = [read(1), read(2, f"two\nlines, {KEY} and ä"), *(read(number) for number in range(3, 200))]
    done = subprocess.run(
        [REMOTE, f"--output={tmp_path}/of.journal", "--split-mode=none", "-"],
        input=sinks.export(entries), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        ["journalctl", f"--file={tmp_path}/of.journal", "--output=json", "--all"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(found) == len(entries)
    assert found[0]["MESSAGE"] == "INFO all is well"
    assert found[1]["MESSAGE"] == "two\nlines, [secret] and ä"
    assert {name: found[0][name] for name in ("_SYSTEMD_UNIT", "_HOSTNAME", "_PID", "PRIORITY")} == {
        "_SYSTEMD_UNIT": "qwen3vl.service", "_HOSTNAME": "gpu1", "_PID": "7", "PRIORITY": "6",
    }  # fmt: skip


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 429, 500, 503])
def test_what_a_server_does_not_take_now_is_no_fault_of_an_entry(server: Server, status: int) -> None:
    server.answers = [(status, "")]
    with pytest.raises(NotTaken, match=f"answers {status}") as caught:
        deliver("loki", server.url, "", [read()])
    assert (caught.type, len(server.came)) == (NotTaken, 1), "and no redirect is followed"


def test_a_server_that_never_ends_its_answer_is_waited_for_no_longer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_notify, "WITHIN", 1)
    server.drips = True
    with pytest.raises(NotTaken, match="it took longer than 1 s"):
        deliver("loki", server.url, "", [read()])


def test_what_waits_is_tried_until_it_is_taken(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ship, "PAUSES", (0.0,))
    server.answers = [(503, ""), (503, ""), (429, ""), (204, "")]
    ship.send(Task("loki", server.url), [read()])
    said = capsys.readouterr().err.splitlines()
    assert len(server.came) == 4
    assert [line.partition(":")[0] for line in said] == ["logs wait in the journal", "logs are taken again"]


def test_an_entry_that_is_never_taken_keeps_no_other_back(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[str] = []

    def picky(to: str, url: str, authorization: str, entries: list[dict[str, str]]) -> None:
        if any("bad" in each["MESSAGE"] for each in entries):
            raise BadEntry("x answers 400")
        taken.extend(each["MESSAGE"] for each in entries)

    monkeypatch.setattr(ship, "deliver", picky)
    ship.send(Task("loki", server.url), [read(n, "bad" if n in (3, 6) else str(n)) for n in range(8)])
    assert taken == ["0", "1", "2", "4", "5", "7"]
    assert capsys.readouterr().err == "entries that are not taken, and left out: 2; x answers 400\n"


def test_a_long_text_is_cut_before_a_word() -> None:
    found = read(message=f"{'a ' * (ship.LONGEST_TEXT // 2 - 5)}{KEY} {'b' * 99}")
    assert found["MESSAGE"].endswith(f"a [{len(KEY) + 101} more characters]")
    assert KEY[:5] not in found["MESSAGE"]


def test_a_long_word_is_searched_for_nothing() -> None:
    assert read(message=f"before {'token' * 2000}, {'b' * 256}")["MESSAGE"] == f"before [a long word], {'b' * 256}"


@pytest.mark.parametrize(("size", "most"), [(20, ship.MOST), (4000, ship.LARGEST // 4000 + 17)])
def test_neither_many_nor_large_entries_are_sent_at_once(size: int, most: int, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes((b"x" * (size - 1) + b"\n") * 2000)
    with (tmp_path / "lines").open("rb") as file:
        sent = [len(lines) for lines in ship.batches(file.fileno())]
    assert sum(sent) == 2000
    assert max(sent) <= most


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its entries, which journalctl prints after the one that is named, and what it was asked."""
    program = tmp_path / "bin/journalctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nnext=0\n'
        f"for word; do case $word in --after-cursor=*) next=${{word##*i=}}; esac; done\n"
        f"tail -n +$((next + 1)) {tmp_path}/journal\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr("installer.base.host.PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path / "journal"


def test_it_goes_on_where_it_was_and_follows_our_units_alone(
    server: Server, journal: Path, host: Host, tmp_path: Path
) -> None:
    host.write(Path("/etc/systemd/system/qwen3vl.service"), UNIT)
    host.write(Path("/etc/systemd/system/sshd.service"), "[Service]\nSlice=system.slice\n")
    os.mkfifo(host.at(Path("/etc/systemd/system/strange.service")))
    place, task = tmp_path / "cursor", Task("loki", server.url, since=1_767_000_000)
    journal.write_bytes(b"".join(entry(number, str(number)) + b"\n" for number in (1, 2, 3)))
    ship.follow(task, place, host)
    with journal.open("ab") as file:
        file.write(entry(4, f"4 {KEY}") + b"\nno entry\n")
    ship.follow(task, place, host)
    came = [line for _, _, body in server.came for stream in json.loads(body)["streams"] for line in stream["values"]]
    assert [json.loads(line)["message"] for _, line in came] == ["1", "2", "3", "4 [secret]"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ("--since=@1767000000 " in asked[0], "--after-cursor=s=1;i=3" in asked[1]) == (True, True)
    assert asked[0].endswith("--unit=qwen3vl.service")
    assert place.read_text() == "s=1;i=4"


def test_a_service_that_comes_begins_another_run(
    server: Server, journal: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.write(Path("/etc/systemd/system/qwen3vl.service"), UNIT)
    journal.write_bytes(entry(1) + b"\n")
    seen = iter([ship.our_units(host), {}])
    monkeypatch.setattr(ship, "our_units", lambda _: next(seen))
    ship.follow(Task("loki", server.url), tmp_path / "cursor", host)
    assert server.came == [], "its keys are to be known first"
    assert not (tmp_path / "cursor").exists(), "and what it would have sent is read again"


# What sets it up


@pytest.fixture
def open_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "check_tool", lambda: None)
    monkeypatch.setattr(logs, "_check_open", lambda: None)


def test_a_server_that_takes_nothing_changes_nothing(server: Server, host: Host, open_tool: None) -> None:
    server.answers = [(404, "")]
    with pytest.raises(Refused, match="the server does not take logs"):
        list(logs.beginning(Task("loki", server.url), host))


def test_nothing_that_was_typed_stands_in_the_unit_and_all_goes_again(
    server: Server, host: Host, open_tool: None
) -> None:
    changes = list(logs.beginning(Task("loki", server.url, "Bearer very-secret"), host))
    texts = {change.path: change for change in changes if hasattr(change, "text")}
    assert texts[logs.TASK].mode == 0o600
    assert "secret" not in texts[logs.UNIT].text
    assert texts[logs.UNIT].text.endswith("[Install]\nWantedBy=multi-user.target\n"), "or enabling it does nothing"
    assert server.url not in texts[logs.UNIT].text
    assert [json.loads(body)["streams"][0]["stream"]["job"] for _, _, body in server.came] == ["vllm-install"]
    for path, change in texts.items():
        host.write(path, change.text, change.mode)
    known = logs.known(host)
    assert known
    assert known == Task("loki", server.url, "Bearer very-secret", known.since)
    assert known.since
    gone = [change for change in logs.ending(host) if hasattr(change, "only_if_empty")]
    assert [change.path for change in gone][:2] == [logs.UNIT, logs.TASK]


def test_a_header_comes_only_from_where_nobody_else_can_put_a_file(host: Host) -> None:
    """Else whoever owns a directory on the way would have any file of root's sent away."""
    file = Path("/etc/logs/token")
    host.write(file, "Bearer very-secret\n", 0o600)
    assert logs.authorization(str(file), host) == "Bearer very-secret"
    host.at(file.parent).chmod(0o777)
    with pytest.raises(Refused, match="others than root can change /etc/logs"):
        logs.authorization(str(file), host)
