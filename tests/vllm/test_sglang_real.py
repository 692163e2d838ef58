"""The real SGLang, on the CPU with a stand-in for its compiled kernels: a whole life of a service with it.

One machine, deployed once; every test finds the service serving and leaves it so, but the last, which takes it away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.boot.machine import SGLANG_STORE, Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import SERVICE, Answer, ask, cli, is_gone, is_up, main_pid, processes, unit, until

START = 400  # seconds; a loaded machine of two cores needs a third of them
PROGRAMS = "/opt/vllm-install"
MODEL = "tiny"  # SGLang takes no name with a colon
TOKENS = ("--sglang-args", "--max-total-tokens 8192")


@dataclass
class Deployed:
    key: str
    before: dict[str, str]


@pytest.fixture(scope="module")
def machine(sglang_wheels: Path) -> Iterator[Machine]:
    with Machine(store=SGLANG_STORE) as machine:
        yield machine


@pytest.fixture(scope="module")
def service(machine: Machine, sglang_wheels: Path) -> Deployed:
    before = snapshot(machine.root, [PROGRAMS])
    options = (
        "--model",
        "builtin:tiny",
        "--served-model-name",
        MODEL,
        "--engine",
        "cpu",
        "--find-links",
        str(sglang_wheels),
        "--offline",
    )
    made = cli(machine, "deploy", "--engine-family", "sglang", *options, *TOKENS, "--context", "1024", timeout=900)
    return Deployed(made.key, before)


def chat(machine: Machine, key: str, *, stream: bool = False) -> Answer:
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    return ask(machine, "POST", "/v1/chat/completions", key, body)


def serves(machine: Machine, key: str) -> None:
    assert ask(machine, "GET", "/v1/models").status == 401
    answer = chat(machine, key)
    assert answer.status == 200, answer
    assert answer.json["choices"][0]["message"]["content"], answer


def test_it_serves_and_answers_nobody_without_a_key(machine: Machine, service: Deployed) -> None:
    serves(machine, service.key)
    answer = chat(machine, service.key, stream=True)
    assert answer.body.rstrip().endswith("data: [DONE]"), answer
    for path in ("/v1/models", "/generate", "/flush_cache", "/server_info", "/metrics", "/docs", "/nothing"):
        assert ask(machine, "GET", path).status == 401, path
    for path in ("/flush_cache", "/update_weights_from_disk", "/abort_request", "/server_info", "/docs"):
        assert ask(machine, "POST", path, service.key, {}).status == 403, path


def test_status_and_test_know_it(machine: Machine, service: Deployed) -> None:
    shown = cli(machine, "status", "--json").json
    assert (shown["engine_family"], shown["engine"], shown["ready"]) == ("sglang", "cpu", True)
    assert shown["kv_tokens"] == 8192
    assert shown["load"]["running"] == 0
    assert cli(machine, "doctor", "--json").json["findings"] == []
    report = cli(machine, "test", "--json", timeout=400).json
    assert {each["name"]: each["status"] for each in report["tests"] if each["status"] == "failed"} == {}, report


def test_a_key_is_changed_without_a_restart(machine: Machine, service: Deployed) -> None:
    pid = main_pid(machine)
    key = cli(machine, "set-apikey").key
    assert chat(machine, service.key).status == 401
    service.key = key
    serves(machine, key)
    assert main_pid(machine) == pid


def test_its_context_is_changed_while_callers_wait(machine: Machine, service: Deployed) -> None:
    cli(machine, "set-context", "512", timeout=START)
    serves(machine, service.key)
    (model,) = ask(machine, "GET", "/v1/models", service.key).json["data"]
    assert model["max_model_len"] == 512


def test_what_each_key_has_used_is_counted(machine: Machine, service: Deployed) -> None:
    before = used(machine)
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 7, "ignore_eos": True}
    answer = ask(machine, "POST", "/v1/completions", service.key, body).json["usage"]
    after = used(machine)
    told = {name: after[name] - before[name] for name in ("requests", "prompt_tokens", "completion_tokens")}
    assert told == {"requests": 1, "prompt_tokens": answer["prompt_tokens"], "completion_tokens": 7}


def used(machine: Machine) -> dict[str, int]:
    (row,) = [each for each in cli(machine, "usage", "--json").json["keys"] if each["key"] == "default"]
    return dict(row)


def test_no_request_makes_it_read_a_file(machine: Machine, service: Deployed) -> None:
    for url in ("file:///etc/passwd", "/etc/x.png", "http://127.0.0.1/x.png"):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
        assert ask(machine, "POST", "/v1/chat/completions", service.key, body).status == 400, url


def test_a_scheduler_that_is_killed_comes_back(machine: Machine, service: Deployed) -> None:
    pid = main_pid(machine)
    scheduler = next(number for number, line in processes(machine).items() if line.startswith("sglang::scheduler"))
    machine.run("kill", "-KILL", str(scheduler))
    until("another main process", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine, START)
    serves(machine, service.key)


def test_a_stop_lets_an_answer_finish(machine: Machine, service: Deployed) -> None:
    script = """
import http.client, json, sys
body = {"model": sys.argv[2], "prompt": "Hi", "max_tokens": 64, "ignore_eos": True, "stream": True}
connection = http.client.HTTPConnection("127.0.0.1", 8000)
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {sys.argv[1]}"}
connection.request("POST", "/v1/completions", json.dumps(body), headers)
answer = connection.getresponse()
answer.readline()
print("first", flush=True)
print(answer.read().decode().split()[-1])
"""
    streaming = machine.start("/usr/bin/python3", "-c", script, service.key, MODEL)
    assert streaming.stdout
    assert streaming.stdout.readline() == "first\n", streaming.communicate()
    machine.run("systemctl", "stop", SERVICE)
    assert streaming.communicate(timeout=120)[0] == "[DONE]\n"
    assert unit(machine, "Result") == {"Result": "success"}
    machine.run("systemctl", "start", SERVICE, timeout=START)
    serves(machine, service.key)


def test_a_gateway_finds_it_by_its_door(machine: Machine, service: Deployed) -> None:
    """On a busy host a check of it comes too late now and then, which two in a row would make a loss of."""
    cli(machine, "set", "TLS=self", timeout=START)
    try:
        until("the gateway asks it", lambda: found_by_the_gateway(machine) == [(True, "UP")], machine)
        cli(machine, "test")
    finally:
        cli(machine, "set", "TLS=none", timeout=START)
    serves(machine, service.key)


def found_by_the_gateway(machine: Machine) -> list[tuple[bool, str]]:
    members = json.loads(machine.cli("status", "--json", check=False).stdout)["members"]
    return [(member["ready"], member["gateway"]) for member in members]


def test_to_vllm_and_back_with_the_same_key(machine: Machine, service: Deployed) -> None:
    """The stand-in in vLLM's place: a switch is a change like any other, and `rollback` knows the one before."""
    planned = cli(machine, "set", "ENGINE_FAMILY=vllm", "--dry-run")
    assert "SGLANG_ARGS" in planned.err
    cli(machine, "set", "ENGINE_FAMILY=vllm", timeout=START)
    assert cli(machine, "status", "--json").json["engine_family"] == "vllm"
    assert ask(machine, "GET", "/v1/models").status == 401
    assert chat(machine, service.key).status == 200
    cli(machine, "rollback", timeout=START)
    assert cli(machine, "status", "--json").json["engine_family"] == "sglang"
    serves(machine, service.key)


def test_nothing_is_left_of_it(machine: Machine, service: Deployed) -> None:
    cli(machine, "uninstall", "--yes", "--purge")
    assert not machine.at(PROGRAMS).exists()
    is_gone(machine, service.before)
    assert "sglang::" not in machine.run("ps", "ax", "-o", "args").stdout
