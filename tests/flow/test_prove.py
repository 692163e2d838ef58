"""The proof, against answers and starts of every kind: what passes, and what it says of the rest."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from installer.base.changes import Handover, Restart
from installer.base.errors import Exit
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.flow.prove import NotProved, Server, Silent, Start
from installer.units.api import Answer
from installer.units.graph import handle
from installer.units.holding import Holding
from installer.units.render import process_digest
from installer.units.systemd import MainProcess
from tests.kit.targets import DEFAULT_KEY, PROBE_KEY, wanted, with_settings

LAYOUT = Layout("qwen3vl")
HOST = Host(Path("/nowhere"))
WANT = with_settings(wanted(), max_model_len=1024)
MODEL = WANT.target.model.id
LISTED = {"data": [{"id": MODEL, "max_model_len": 1024}]}
STREAMED = b'data: {"choices": [1]}\n\ndata: [DONE]\n\n'


class Scripted(Server):
    """A service that gives each question the answer of a table, or that of a sound one."""

    answers: dict[str, Answer] = {}  # noqa: RUF012 each test has a class of its own

    def ask(self, method: str, path: str, key: str | None, body: dict[str, object] | None = None) -> Answer:
        known = {None: "none", PROBE_KEY: "probe", DEFAULT_KEY: "default"}.get(key, "wrong")
        if body is not None:
            assert (method, body["model"], body["max_tokens"]) == ("POST", MODEL, 1), "a proof costs next to nothing"
            assert body.get("prompt", "Hi") == "Hi"
        if path.endswith("/chat/completions"):
            assert body
            assert (known, body["messages"]) == ("probe", [{"role": "user", "content": "Hi"}])
            return self.answers["chat"]
        asked = "stream" if body and body.get("stream") else path.rpartition("/")[2]
        if found := self.answers.get(f"{asked} {known}"):
            return found
        if known in ("none", "wrong"):
            return Answer(401, b"")
        if asked == "stream":
            return Answer(200, STREAMED)
        return Answer(200, json.dumps(LISTED if asked == "models" else {"choices": [1]}).encode())


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    """A service that is up and answers as the class says."""

    class Answers(Scripted):
        answers: dict[str, Answer] = {}  # noqa: RUF012

    monkeypatch.setattr(prove, "wait_until_ready", lambda *_: None)
    monkeypatch.setattr(prove, "Server", Answers)
    return Answers


def serve() -> None:
    prove.serving(WANT, HOST, Report())


def accept() -> None:
    prove.keys_in_force(WANT, HOST, DEFAULT_KEY)


def test_a_sound_service_is_proved(up: type[Scripted]) -> None:
    serve()
    accept()


def test_where_no_context_was_asked_for_any_is_right(up: type[Scripted]) -> None:
    prove.serving(with_settings(WANT, max_model_len=None), HOST, Report())


def models(**changed: object) -> Answer:
    return Answer(200, json.dumps({"data": [{"id": MODEL, "max_model_len": 1024, **changed}]}).encode())


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("models none", Answer(200, b""), "without a key was answered with 200 instead of 401"),
        ("models none", Answer(403, b""), "without a key was answered with 403 instead of 401"),
        ("models wrong", Answer(200, b""), "with a wrong key was answered with 200 instead of 401"),
        ("models wrong", Answer(403, b""), "with a wrong key was answered with 403 instead of 401"),
        ("models probe", Answer(401, b""), "with the probe key was answered with 401 instead of 200"),
        ("models probe", Answer(403, json.dumps(LISTED).encode()), "the probe key was answered with 403"),
        ("models probe", models(id="other"), f"it serves other instead of {MODEL}"),
        ("models probe", Answer(200, b"{}"), "it serves no model instead"),
        ("models probe", models(max_model_len=512), "its context is 512 instead of 1024"),
        ("completions probe", Answer(200, b"{}"), "completion was answered with 200"),
        ("completions probe", Answer(500, b'{"choices": [1]}'), "completion was answered with 500"),
        ("stream probe", Answer(200, b"data: [DONE]\n\n"), "with 200 and 1 events"),
        ("stream probe", Answer(200, b"data: 1\n\ndata: 2\n\n"), "with 200 and 2 events"),
        ("stream probe", Answer(500, STREAMED), "with 500 and 2 events"),
    ],
)
def test_what_a_client_relies_on_is_seen_to_hold(up: type[Scripted], question: str, answer: Answer, said: str) -> None:
    up.answers = {question: answer}
    with pytest.raises(NotProved) as caught:
        serve()
    assert said in caught.value.message
    assert caught.value.exit_code == Exit.NOT_PROVED


def test_it_serves_by_every_name_that_it_was_given(up: type[Scripted]) -> None:
    want = with_settings(WANT, served_model_name=("qwen", "chat"))
    names = (MODEL, "qwen", "chat")
    for missing in names:
        listed = [{"id": name, "max_model_len": 1024} for name in names if name != missing]
        up.answers = {"models probe": Answer(200, json.dumps({"data": listed}).encode())}
        with pytest.raises(NotProved, match="instead of"):
            prove.serving(want, HOST, Report())
    listed = [{"id": name, "max_model_len": 1024} for name in names]
    up.answers = {"models probe": Answer(200, json.dumps({"data": listed}).encode())}
    prove.serving(want, HOST, Report())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, b"{}"), None),
        (Answer(400, b'{"error": {"message": "the maximum context length is 8 tokens"}}'), "shortest chat"),
        (Answer(500, b"it broke"), "shortest chat was answered with 500: it broke"),
        (Answer(400, b'{"error": {"message": "a source language is missing"}}'), None),
    ],
)
def test_a_model_with_a_template_has_to_hold_a_chat(
    up: type[Scripted], tmp_path: Path, answer: Answer, said: str | None
) -> None:
    """One that is asked in another form, such as one that translates, is only warned of."""
    host, warned = Host(tmp_path), list[str]()
    host.write(WANT.target.model.path / "chat_template.jinja", "{{ messages }}")
    up.answers = {"chat": answer}
    report = Report()
    report.warn = warned.append  # type: ignore[method-assign]
    if said is None:
        prove.serving(WANT, host, report)
        assert ["a source language" in text for text in warned] == [True] * (b"language" in answer.body)
        return
    with pytest.raises(NotProved, match=said) as caught:
        prove.serving(WANT, host, report)
    assert "set-context 1024 --service qwen3vl" in caught.value.hint


def test_a_model_without_a_template_is_asked_for_no_chat(up: type[Scripted], tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.write(WANT.target.model.path / "config.json", "{}")
    up.answers = {"chat": Answer(500, b"there is no chat template")}
    prove.serving(WANT, host, Report())


def test_a_question_about_keys_waits_for_seconds_only(up: type[Scripted]) -> None:
    waits: list[float] = []
    up.ask = lambda self, *_: waits.append(self.within) or Answer(401 if len(waits) < 3 else 200, b"")  # type: ignore
    accept()
    assert set(waits) == {10}


@pytest.mark.parametrize("role", ["probe", "default"])
@pytest.mark.parametrize("status", [200, 403, 401, 404, 500, 503])
def test_a_key_that_is_taken_may_be_one_that_opens_little(up: type[Scripted], role: str, status: int) -> None:
    """A metrics key is refused by its role with 403; with 401 it is refused as a key."""
    up.answers = {f"models {role}": Answer(status, b"")}
    if status in (200, 403):
        accept()
        return
    with pytest.raises(NotProved, match=f"with a valid key was answered with {status} instead of 200"):
        accept()


@pytest.mark.parametrize("question", ["models none", "models wrong"])
def test_keys_are_in_force_only_where_all_others_are_refused(up: type[Scripted], question: str) -> None:
    up.answers = {question: Answer(403, b"")}
    with pytest.raises(NotProved, match="403 instead of 401"):
        accept()


# Starts


ON = {"ActiveState": "active", "SubState": "running", "StatusText": "", "NRestarts": "0", "Result": "success"}
BEGINS = ON | {"ActiveState": "activating", "SubState": "start", "Job": "7", "InvocationID": "new"}
FAILED = ON | {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "InvocationID": "new"}
REFUSED = "error: unrecognized arguments: --{run}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """This host, whose systemd tells a story and whose journal has one line for each run."""
    programs = {
        # What `follow` wrote for this call, or else for the last one: of this unit, as far as it is asked for.
        "systemctl": f"""[ "$*" = "show qwen3vl.service --property $4" ] || exit 1
            cd {tmp_path}; read -r n <n; [ ! -e $((n + 1)) ] || echo $((n + 1)) >n
            grep -E "^($(echo "$4" | tr , '|'))=" $n""",
        "journalctl": 'for word; do case $word in INVOCATION_ID=*) echo "$said${word#INVOCATION_ID=}";; esac; done',
    }
    programs["journalctl"] = f"said='{REFUSED.format(run='')}'; {programs['journalctl']}"
    for name, script in programs.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "n").write_text("1\n")
    monkeypatch.setattr("installer.base.host.PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(prove, "POLL", 0)
    return Host()


def follow(host: Host, tmp_path: Path, *story: dict[str, str], start: Start = prove.NOT_WATCHED) -> None:
    for number, now in enumerate(story, 1):
        (tmp_path / str(number)).write_text("".join(f"{name}={value}\n" for name, value in now.items()))
    prove.wait_until_ready(handle(LAYOUT), host, Report(), start)


def why(host: Host, tmp_path: Path, *story: dict[str, str], start: Start = prove.NOT_WATCHED) -> str:
    with pytest.raises(NotProved) as caught:
        follow(host, tmp_path, *story, start=start)
    return caught.value.message


def test_a_stranger_in_its_place_gets_no_key_and_proves_nothing(host: Host) -> None:
    asked: list[str | None] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        want = with_settings(WANT, host="127.0.0.1", port=server.server_port)
        service = Server(want, handle(LAYOUT, want.target), host)
        assert service.ask("GET", "/v1/models", None).status == 200
        with pytest.raises(Silent, match=r"is held by .*, not by qwen3vl\.service") as caught:
            service.ask("GET", "/v1/models", PROBE_KEY)
        server.shutdown()
    assert asked == [None]
    assert caught.value.hint == "journalctl -u qwen3vl -n 200"


def test_a_start_of_several_takes_the_place_of_all_their_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "invocation", lambda _, unit: f"run of {unit}")
    monkeypatch.setattr(prove, "last_entry", lambda _, unit: f"end of {unit}")
    start = prove.started_by([Restart("a", along=("a@1", "a@2")), Handover("b")], HOST, is_first=True)
    assert start == Start(True, frozenset({"run of a", "run of a@1", "run of a@2"}), {"b": "end of b"})


def test_a_journal_that_cannot_be_waited_for_is_read_all_the_same(host: Host, tmp_path: Path) -> None:
    program = tmp_path / "bin/journalctl"
    program.write_text(program.read_text().replace("#!/bin/sh\n", '#!/bin/sh\n[ "$1" != --sync ] || exit 1\n'))
    assert REFUSED.format(run="new") in why(host, tmp_path, BEGINS, FAILED)


def test_a_start_is_followed_to_its_end(host: Host, tmp_path: Path) -> None:
    follow(host, tmp_path, ON | {"Job": "7"}, BEGINS, BEGINS | {"StatusText": "loading"}, ON)


def test_a_start_that_failed_is_explained_by_its_own_words(host: Host, tmp_path: Path) -> None:
    old = ON | {"ActiveState": "deactivating", "Job": "7", "InvocationID": "old"}
    said = why(host, tmp_path, old, BEGINS, FAILED, start=Start(before=frozenset(["old"])))
    assert said == f"qwen3vl.service did not come up (exit-code): {REFUSED.format(run='new')}"


def test_a_start_that_was_followed_by_another_is_explained_by_its_own_words(host: Host, tmp_path: Path) -> None:
    """The next run has said nothing yet, or something of its own."""
    crashed = BEGINS | {"NRestarts": "1", "InvocationID": "next"}
    assert REFUSED.format(run="new") in why(host, tmp_path, BEGINS, crashed)


def test_a_service_that_waits_for_its_next_start_has_failed(host: Host, tmp_path: Path) -> None:
    waits = FAILED | {"ActiveState": "activating", "SubState": "auto-restart", "Job": "8"}
    assert REFUSED.format(run="new") in why(host, tmp_path, BEGINS, waits)


def test_a_start_that_never_began_is_not_explained_by_the_run_before(host: Host, tmp_path: Path) -> None:
    never = FAILED | {"InvocationID": "old", "Result": "dependency"}
    said = why(host, tmp_path, never, start=Start(before=frozenset(["old"])))
    assert said == "qwen3vl.service did not come up (dependency)"
    none = {name: value for name, value in never.items() if name != "InvocationID"}
    assert why(host, tmp_path, none) == "qwen3vl.service did not come up (dependency)"


# Handovers


UNDER_WAY = ON | {"ActiveState": "reloading", "SubState": "reload", "Job": "7", "InvocationID": "one"}
KEPT = ON | {"ReloadResult": "exit-code", "InvocationID": "one"}
OVER = KEPT | {"ReloadResult": "success"}
HANDED_OVER = Start(since={"qwen3vl.service": "c1"})


def speaks(tmp_path: Path, *texts: str) -> None:
    """A journal of a run that goes on: its first entry was there before the handover."""
    lines = [json.dumps({"__CURSOR": f"c{number}", "MESSAGE": text}) for number, text in enumerate(texts, 1)]
    (tmp_path / "said").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "bin/journalctl").write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")


def holds(monkeypatch: pytest.MonkeyPatch, *story: Holding | None) -> None:
    told = list(story)
    monkeypatch.setattr(prove, "holding", lambda *_: told.pop(0) if len(told) > 1 else told[0])


def test_a_handover_is_followed_to_its_end(host: Host, tmp_path: Path) -> None:
    no_job = UNDER_WAY | {"Job": ""}
    follow(host, tmp_path, ON | {"Job": "7"}, UNDER_WAY, no_job | {"StatusText": "loading"}, OVER, start=HANDED_OVER)


def test_a_successor_that_did_not_come_up_is_explained_by_its_own_words(host: Host, tmp_path: Path) -> None:
    speaks(tmp_path, REFUSED.format(run="before"), REFUSED.format(run="successor"))
    said = why(host, tmp_path, UNDER_WAY, KEPT, start=HANDED_OVER)
    assert said == f"the successor of qwen3vl.service did not come up (exit-code): {REFUSED.format(run='successor')}"


def test_a_reload_that_failed_long_ago_is_nobody_s_handover(host: Host, tmp_path: Path) -> None:
    follow(host, tmp_path, KEPT)


def test_a_service_that_dies_while_it_is_handed_over_has_failed(host: Host, tmp_path: Path) -> None:
    speaks(tmp_path, "before", REFUSED.format(run="one"))
    crashed = BEGINS | {"NRestarts": "1", "InvocationID": "next"}
    said = why(host, tmp_path, UNDER_WAY, crashed, start=HANDED_OVER)
    assert said == f"qwen3vl.service did not come up (success): {REFUSED.format(run='one')}"


def test_nothing_is_asked_while_callers_are_held(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a handover that failed the engine before may have to start anew, in a unit that is active all the time."""
    holds(monkeypatch, Holding(3, 1, 120), Holding(3, 2, 120), None)
    follow(host, tmp_path, ON)
    assert prove.holding(host, LAYOUT) is None, "it was looked at until nobody was held any more"


def test_callers_are_not_held_for_ever(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(monkeypatch, Holding(3, prove.HELD_FOR + 1, 120))
    assert "holds its callers and does not serve" in why(host, tmp_path, ON)


def test_progress_is_told_once_however_many_wait(host: Host, tmp_path: Path) -> None:
    report, told = Report(), list[str]()
    report.note = told.append  # type: ignore[method-assign]
    stages = (
        "loading weights",
        "loading weights; 1 caller waits, longest 0 s",
        "loading weights; 9 callers wait, longest 3 s",
    )
    story = [*(UNDER_WAY | {"StatusText": stage} for stage in stages), OVER]
    for number, now in enumerate(story, 1):
        (tmp_path / str(number)).write_text("".join(f"{name}={value}\n" for name, value in now.items()))
    prove.wait_until_ready(handle(LAYOUT), host, report, HANDED_OVER)
    assert told == ["loading weights"]


def test_what_is_handed_over_has_to_be_the_successor(up: type[Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before answers as well."""
    digests = [process_digest(WANT.target, LAYOUT), "of another unit"]
    monkeypatch.setattr(prove, "running_process", lambda *_: MainProcess(1, digests[0], frozenset(), is_up=True))
    prove.serving(WANT, HOST, Report(), HANDED_OVER)
    digests.pop(0)
    with pytest.raises(NotProved, match=r"qwen3vl\.service runs on as it was"):
        prove.serving(WANT, HOST, Report(), HANDED_OVER)
    serve()


@pytest.mark.parametrize("is_first", [True, False])
def test_what_helps_depends_on_whether_a_service_is_there(host: Host, tmp_path: Path, is_first: bool) -> None:
    with pytest.raises(NotProved) as caught:
        follow(host, tmp_path, FAILED, start=Start(is_first))
    assert ("vllm-install set VLLM_ARGS=" in caught.value.hint) != is_first


def test_flags_that_vllm_refuses_are_taken_back_by_the_verb_that_there_is() -> None:
    lines = [REFUSED.format(run="x")]
    later = prove.reason_in(lines, "it ended", "look", "coder")
    first = prove.reason_in(lines, "it ended", "look", "coder", is_first=True)
    assert later.hint == "sudo vllm-install set VLLM_ARGS= --service coder"
    assert first.hint == "run the same command without those vLLM flags"
    assert first.message == later.message


def test_a_worker_that_ends_itself_is_not_the_reason_but_what_it_said() -> None:
    """As vLLM 0.32.0 said it; a worker that a signal ended said nothing."""
    lines = [
        "(Worker pid=9) ERROR 11-29 00:41:14 [multiproc_executor.py:1063] WorkerProc hit an exception.",
        "(Worker pid=9) ERROR 11-29 00:41:14 [multiproc_executor.py:1063] ValueError: No common block size for 7.",
        "(EngineCore pid=8) ERROR 11-29 00:41:14 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly"
        " (exit code: {code}), shutting down executor.",
    ]
    ended, killed = ([line.format(code=code) for line in lines] for code in (0, -9))
    assert "No common block size" in prove.reason_in(ended, "it ended", "look").message
    assert "died unexpectedly" in prove.reason_in(killed, "it ended", "look").message


def test_where_nothing_was_said_it_is_said_where_to_look() -> None:
    silent = prove.reason_in([], "it ended", "journalctl -u x")
    assert (silent.message, silent.hint) == ("it ended", "journalctl -u x")


def test_where_nothing_is_known_the_last_words_are_shown() -> None:
    lines = [f"line {number}" for number in range(1, 12)]
    said = prove.reason_in(lines, "it ended", "look").message
    assert said == "it ended\nits last words:\n" + "\n".join(f"    line {number}" for number in range(4, 12))


@pytest.mark.parametrize("is_way_back", [False, True])
def test_others_that_do_not_come_are_waited_for_and_not_by_whoever_goes_back(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_way_back: bool
) -> None:
    """One of them may be what has failed: it is back as it was, and serves as soon as they do."""
    monkeypatch.setattr(prove, "BACK_WITHIN" if is_way_back else "OTHERS_WITHIN", 0.0)
    told: list[str] = []
    report = Report()
    report.warn = told.append  # type: ignore[method-assign]
    story = BEGINS | {"StatusText": "waiting for the group: 10.0.0.2"}
    (tmp_path / "1").write_text("".join(f"{name}={value}\n" for name, value in story.items()))
    expected = "the other hosts have not come: waiting for the group: 10.0.0.2"
    with nullcontext() if is_way_back else pytest.raises(NotProved, match=expected):
        prove.serving(WANT, host, report, Start(is_way_back=is_way_back))
    assert told == ([expected] if is_way_back else [])
