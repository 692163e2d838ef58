"""`test` on a running service (row 25 of the features): a planted fault of each kind fails the right test in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.life import MODEL, SERVICE, ask, cli, is_up, main_pid, processes, serves, standin, unit, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
FAULTS = f"/var/cache/{SERVICE}/standin"  # what the stand-in is told to do wrong
PROBE_KEY = f"/var/lib/vllm-install/{SERVICE}/probe-key"
EVERY = [
    "listens", "models", "no-key", "wrong-key", "completion", "chat", "messages", "responses", "streaming", "cancel",
    "long-prompt", "tools", "image",
]  # fmt: skip
FOREIGN = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]))"


@pytest.fixture(scope="module")
def key(machine: Machine, standin_wheels: Path) -> str:
    return cli(machine, "deploy", *standin(standin_wheels), "--tool-call-parser", "hermes").key


@pytest.fixture(autouse=True)
def _it_serves_before_and_after(machine: Machine, key: str) -> Iterator[None]:
    serves(machine, key)
    yield
    until("it serves again", lambda: is_up(machine), machine)
    serves(machine, key)
    machine.run("systemctl", "reset-failed", SERVICE)


@contextlib.contextmanager
def fault(machine: Machine, words: str) -> Iterator[None]:
    machine.write(FAULTS, words)
    try:
        yield
    finally:
        machine.at(FAULTS).unlink()


def outcomes_of(machine: Machine, *args: str, code: int = 0, stdin: str = "") -> dict[str, dict[str, Any]]:
    """The outcome of every test by its name."""
    report = cli(machine, "test", "--json", *args, code=code, stdin=stdin).json
    outcomes = {outcome["name"]: outcome for outcome in report["tests"]}
    for status in ("passed", "failed", "skipped"):
        assert report[status] == sum(outcome["status"] == status for outcome in outcomes.values())
    return outcomes


def fails(machine: Machine, name: str, words: str, *args: str, stdin: str = "") -> dict[str, Any]:
    """This test, and of the others only such as are not run for its sake."""
    outcomes = outcomes_of(machine, *args, code=6, stdin=stdin)
    failed = [outcome for outcome in outcomes.values() if outcome["status"] == "failed"]
    assert [outcome["name"] for outcome in failed] == [name], failed
    assert re.search(words, failed[0]["text"]), failed[0]
    return failed[0]


def test_a_sound_service_passes_all_that_applies(machine: Machine, key: str) -> None:
    outcomes = outcomes_of(machine)
    assert list(outcomes) == EVERY
    assert {name for name, outcome in outcomes.items() if outcome["status"] == "skipped"} == {"image"}
    assert outcomes["image"]["text"] == "the model takes no images"
    assert outcomes["streaming"]["figures"].keys() == {
        "first_token_seconds", "tokens_per_second", "chunks", "tokens",
    }  # fmt: skip
    assert outcomes["streaming"]["figures"]["chunks"] == outcomes["streaming"]["figures"]["tokens"] == 64
    assert 'get_weather({"city": "Paris"})' in outcomes["tools"]["text"]


def test_an_image_is_sent_where_the_model_takes_one(machine: Machine) -> None:
    """Row 7 of the features, as far as a stand-in can show it."""
    with fault(machine, "sees"):
        assert outcomes_of(machine, "--image")["image"]["status"] == "passed"
    failed = fails(machine, "image", "is not a multimodal model", "--image")
    assert failed["hint"]


def test_what_is_switched_off_is_not_run(machine: Machine) -> None:
    assert outcomes_of(machine, "--no-tools")["tools"]["text"] == "not asked for (--no-tools)"


def test_the_table_and_the_file_for_ci_say_the_same(machine: Machine, key: str) -> None:
    done = cli(machine, "test", "--image", "--junit", "/root/junit.xml", code=6)
    suite = ET.fromstring(machine.at("/root/junit.xml").read_text()).find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": str(len(EVERY)), "failures": "1", "errors": "0", "skipped": "0"}
    assert [case.get("name") for case in suite] == EVERY
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == f"400: {MODEL} is not a multimodal model"
    for name in EVERY:
        assert re.search(rf"^{name} +(passed|failed) +\d+\.\d\d s ", done.out, re.MULTILINE), done.out
    assert "failed: image: 400:" in done.out
    assert f"{len(EVERY) - 1} passed, 1 failed, 0 skipped" in done.out
    machine.at("/root/junit.xml").unlink()


def test_what_is_for_ci_goes_through_no_link_that_somebody_made(machine: Machine) -> None:
    """In /tmp many kernels see to that; in any other directory that all may write nobody does."""
    machine.shell("mkdir -m 777 /srv/all; echo kept >/srv/kept; ln -s /srv/kept /srv/all/x; chown -h nobody /srv/all/x")
    refused = cli(machine, "test", "--junit", "/srv/all/x", code=3)
    assert "/srv/all/x is no regular file" in refused.err
    assert " passed, " in refused.out
    assert machine.at("/srv/kept").read_text() == "kept\n"
    machine.shell("rm -r /srv/all /srv/kept")


def test_no_key_is_ever_printed(machine: Machine, key: str) -> None:
    probe = machine.at(PROBE_KEY).read_text().strip()
    for args in ((), ("--json",), ("--junit", "-"), ("--key-file", "-")):
        done = cli(machine, "test", *args, stdin=key)
        assert key not in done.out + done.err
        assert probe not in done.out + done.err


# Faults


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        ("mute", "completion", "the answer holds no text"),
        ("mute-api=/v1/messages", "messages", "the answer holds no text"),
        ("mute-api=/v1/responses", "responses", "the answer holds no text"),
        ("stream=cut", "streaming", r"broke off after 65 events, without \[DONE\]"),
        ("stream=piece", "streaming", "came in 1 pieces: it is not streamed"),
        ("stream=garbled", "streaming", "an event of the stream is no JSON object: '{'"),
        ("stream=plain", "streaming", "of type text/plain instead of text/event-stream"),
        ("metrics=missing", "cancel", "404: Not Found"),
        ("metrics=garbled", "cancel", "/metrics does not tell"),
        ("deaf token-seconds=0.02", "cancel", "after the client went away 1 requests still run"),
        ("long-prompts=200", "long-prompt", "1025 tokens was answered with 200 instead of 400"),
        ("long-prompts=500", "long-prompt", "1025 tokens was answered with 500 instead of 400"),
        ("long-prompts=400", "long-prompt", "refused without saying why: no"),
        ("talks", "tools", "answered in text instead of calling the tool: 'The quick brown"),
    ],
)
def test_a_fault_fails_the_test_that_is_for_it(machine: Machine, words: str, name: str, said: str) -> None:
    with fault(machine, words):
        assert fails(machine, name, said)["hint"]


def test_a_hung_engine_fails_the_first_answer_and_holds_up_nothing_else(machine: Machine) -> None:
    with fault(machine, "hang"):
        outcomes = outcomes_of(machine, "--timeout", "10", code=6)
    assert re.search(r"no answer from http://127.0.0.1:8000/v1/completions within 10 s", outcomes["completion"]["text"])
    assert outcomes["models"]["status"] == "passed", "which is why nobody may trust it"
    assert {outcomes[name]["text"] for name in ("chat", "streaming")} == {"not run, because completion failed"}


def test_a_dead_engine_fails_the_first_answer(machine: Machine) -> None:
    pid = main_pid(machine)
    with fault(machine, "die-on-completion"):
        failed = fails(machine, "completion", r"EngineCore encountered an issue|no answer from")
        assert failed["hint"] == f"vllm-install logs --service {SERVICE}"
    until("another process", lambda: main_pid(machine) not in (0, pid), machine)


def test_a_wrong_model_name_is_said(machine: Machine) -> None:
    ours = machine.at(UNIT).read_text()
    machine.write(UNIT, ours.replace(f"--served-model-name {MODEL}", "--served-model-name other"))
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")
    fails(machine, "models", f"it serves other instead of {MODEL}")
    machine.write(UNIT, ours)
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")


def test_a_wrong_key_is_said(machine: Machine) -> None:
    failed = fails(machine, "models", "the key was refused: 401 Incorrect", "--key-file", "-", stdin="sk-" + "x" * 40)
    assert "--key-file" in failed["hint"]


def test_a_key_of_a_lesser_role_is_said(machine: Machine) -> None:
    lesser = cli(machine, "set-apikey", "--name", "watch", "--role", "metrics").key
    fails(machine, "models", "the key was refused: 403 .* does not allow", "--key-file", "-", stdin=lesser)
    cli(machine, "keys", "revoke", "watch")


def test_a_stopped_service_is_said(machine: Machine) -> None:
    machine.run("systemctl", "stop", SERVICE)
    failed = fails(machine, "listens", rf"{SERVICE}.service does not run \(inactive\)")
    assert failed["hint"] == f"sudo systemctl start {SERVICE}"
    measuring = cli(machine, "bench", code=3)
    assert f"{SERVICE}.service does not run (inactive)" in measuring.err
    assert failed["hint"] in measuring.err
    machine.run("systemctl", "start", SERVICE)


def test_a_failed_service_is_said_with_its_cause(machine: Machine) -> None:
    machine.run("systemctl", "stop", SERVICE)
    with fault(machine, "die-at-start=2"):
        machine.run("systemctl", "start", SERVICE, check=False)
        machine.run("journalctl", "--sync")
        fails(machine, "listens", r"has failed\nits last words:\n(.*\n)*.*Failed with result .exit-code")
        assert "has failed\nits last words:" in cli(machine, "bench", code=3).err
    machine.run("systemctl", "start", SERVICE)


def test_a_service_that_starts_is_waited_for(machine: Machine) -> None:
    with fault(machine, "stall=load"):
        machine.run("systemctl", "restart", "--no-block", SERVICE)
        until("it loads", lambda: "loading" in unit(machine, "StatusText")["StatusText"], machine)
        tool = machine.start(sys.executable, "-m", "installer", "test")
        assert tool.stderr is not None
        assert any("loading weights" in line for line in tool.stderr)
    out, err = tool.communicate(timeout=300)
    assert tool.returncode == 0, out + err


def test_a_foreign_process_on_the_port_is_named(machine: Machine) -> None:
    """The unit was moved to another port by hand, and somebody took the old one."""
    ours = machine.at(UNIT).read_text()
    machine.write(UNIT, ours.replace("--port 8000", "--port 8001"))
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")
    foreign = machine.start(sys.executable, "-c", FOREIGN, "8000")
    try:
        until("it listens", lambda: "8000" in machine.run("ss", "-ltn", "sport = :8000").stdout, machine)
        failed = fails(machine, "listens", r"port 8000 is held by pid \d+ \(.*python")
        assert "stop pid" in failed["hint"]
    finally:
        os.killpg(foreign.pid, signal.SIGKILL)
        foreign.communicate()
        machine.write(UNIT, ours)
        machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")


# Who may


def as_nobody(machine: Machine, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    user = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    return machine.run(*user, sys.executable, "-m", "installer", *args, check=False, env=env)


def test_whoever_is_not_root_brings_a_key(machine: Machine, key: str) -> None:
    done = as_nobody(machine, "test")
    assert done.returncode == 3, done
    assert "OPENAI_API_KEY" in done.stderr
    done = as_nobody(machine, "test", "--json", env={"OPENAI_API_KEY": key})
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["failed"] == 0


# client-config, against the service


def test_what_client_config_prints_works(machine: Machine, key: str) -> None:
    """Rows 23, 29 and 32 of the features: pasted as it is, it gets an answer."""
    script = cli(machine, "client-config", "--format", "curl").out
    answer = machine.run("sh", "-euc", script, env={"OPENAI_API_KEY": key}).stdout
    assert json.loads(answer)["choices"][0]["message"]["content"]
    machine.write("/root/.env", cli(machine, "client-config", "--format", "env").out)
    read = (
        'set -a; . /root/.env; curl -s $OPENAI_API_BASE/models -H "Authorization: Bearer $0"; echo; echo $AGENT_MODEL'
    )
    listed, model = machine.run("sh", "-euc", read, key).stdout.splitlines()
    assert json.loads(listed)["data"][0]["id"] == model == MODEL
    machine.at("/root/.env").unlink()


def test_the_address_for_another_host_answers_there(machine: Machine, key: str) -> None:
    machine.shell("ip address add 10.9.8.7/32 dev lo; ip route add 10.9.9.0/24 dev lo src 10.9.8.7")
    asked = cli(machine, "client-config", "--format", "curl", "--for", "10.9.9.1", "--json").json
    assert asked["base_url"] == "http://10.9.8.7:8000/v1"
    answer = machine.run("sh", "-euc", asked["text"], env={"OPENAI_API_KEY": key}).stdout
    assert json.loads(answer)["choices"]
    machine.shell("ip route delete 10.9.9.0/24 dev lo; ip address delete 10.9.8.7/32 dev lo")


def test_nothing_of_the_tests_stays_with_the_service(machine: Machine) -> None:
    before = processes(machine)
    cli(machine, "test")
    until("they are the same", lambda: processes(machine) == before, machine)
    assert (
        'num_requests_running{engine="0"'
        in ask(machine, "GET", "/metrics", machine.at(PROBE_KEY).read_text().strip()).body
    )
