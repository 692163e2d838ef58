"""One whole life with the real vLLM on a tiny real checkpoint: what a stand-in could be wrong about."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema

from installer.look.formats import PLACEHOLDER
from tests.kit import openai_client
from tests.kit.boot import compiled
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.life import MODEL, ask, chat, cli, engine_pid, is_gone, is_up, main_pid, processes, serves, until
from tests.kit.memory import share

PROGRAMS = "/opt/vllm-install"
UNIT = "/etc/systemd/system/qwen3vl.service"
START = 240  # seconds; a loaded machine of two cores needs a quarter of them


def is_healthy(machine: Machine) -> None:
    """No false finding, and figures from the real metrics."""
    assert cli(machine, "doctor", "--json").json["findings"] == []
    found = cli(machine, "status", "--json").json
    jsonschema.validate(found, json.loads((REPO / "docs/status-schema.json").read_text()))
    assert found["load"]["cache_tokens"] == found["kv_tokens"] > 1024
    assert found["load"]["generated"] > 0
    assert found["load"]["waiting"] == 0
    assert max(found["load"]["first_token"].values()) >= 2, "answers were given"


def test_a_whole_life(cpu_engine: str, tmp_path: Path) -> None:
    port = free_port()  # the machine shares this host's network, for the package index
    # On the CPU the share is one of all memory, and this test is not alone on the host.
    options = ("--model", "builtin:tiny", "--engine", "cpu", "--gpu-memory-utilization", share(), "--port", str(port))
    with Machine(network=True, store=True) as machine:
        compiled.give(machine)
        bare = snapshot(machine.root, [PROGRAMS])
        done = cli(machine, "deploy", *options, timeout=600)
        assert "checking that it imports" not in done.err, "the engine at hand was not taken"
        first = main_pid(machine)
        assert cpu_engine in processes(machine)[first]
        serves(machine, done.key, port)
        streamed = chat(machine, done.key, port, stream=True)
        events = [line.removeprefix("data: ") for line in streamed.body.splitlines() if line]
        assert events[-1] == "[DONE]"
        said = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
        assert "".join(said)
        assert len(said) > 2, "the answer came in one piece"

        assert cli(machine, "deploy", "--json").changes == []
        assert main_pid(machine) == first
        is_healthy(machine)
        variables = cli(machine, "client-config", "--format", "env").out.replace(PLACEHOLDER, done.key)
        assert openai_client.ask(variables, tmp_path).strip(), "the openai package was not answered"
        for form in ("opencode", "vscode", "jetbrains", "open-webui"):
            is_answered_as_it_says(machine, form, done.key)
        is_answered_as_claude_code_asks(machine, done.key)

        old = set(processes(machine))
        machine.run("kill", "-KILL", str(engine_pid(machine)))
        until("another process", lambda: main_pid(machine) not in (0, first) and is_up(machine), machine, START)
        assert not old & set(processes(machine)), "left over from before"
        serves(machine, done.key, port)
        assert cli(machine, "deploy", "--json").changes == []
        assert cli(machine, "status", "--json").json["restarts"] == 1, machine.evidence()
        (note,) = cli(machine, "doctor", "--json").json["findings"]
        assert (note["id"], note["severity"]) == ("restarted-by-itself", "note")

        machine.shell(f"sed -i 's/--shutdown-timeout/--no-such-flag 3 &/' {UNIT}; systemctl daemon-reload")
        machine.run("systemctl", "restart", "qwen3vl", check=False, timeout=START)
        faults = cli(machine, "doctor", "--json", code=8).json["findings"]
        assert faults[0]["id"] == "flag-unknown"
        assert "--no-such-flag 3" in faults[0]["cause"]
        assert cli(machine, "status", "--json", code=3).json["problem"] == faults[0]

        nest = "import os; os.chdir('/var/cache/qwen3vl'); [(os.mkdir('d'), os.chdir('d')) for _ in range(1500)]"
        machine.run(
            "setpriv", "--reuid=vllm-qwen3vl", "--regid=vllm-qwen3vl", "--clear-groups", sys.executable, "-c", nest
        )
        cli(machine, "uninstall", "--yes", "--purge")
        assert not machine.at(PROGRAMS).exists()
        is_gone(machine, bare)


def is_answered_as_it_says(machine: Machine, form: str, key: str) -> None:
    """At the address and for the model that the client reads there, by the route that it appends."""
    text = cli(machine, "client-config", "--format", form).out
    url = urlsplit(re.findall(r"http://[\w.:/]+", text)[-1])
    path = url.path.removesuffix("/chat/completions") + "/chat/completions"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    assert MODEL in text
    answer = ask(machine, "POST", path, key, body, url.port or 0)
    assert (answer.status, answer.body.strip().endswith("data: [DONE]")) == (200, True), (form, answer)


def is_answered_as_claude_code_asks(machine: Machine, key: str) -> None:
    text = cli(machine, "client-config", "--format", "claude-code").out
    said = dict(line.split("=", 1) for line in text.splitlines())
    port = urlsplit(said["ANTHROPIC_BASE_URL"]).port or 0
    words = [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]
    body = {
        "model": said["ANTHROPIC_DEFAULT_HAIKU_MODEL"], "max_tokens": int(said["CLAUDE_CODE_MAX_OUTPUT_TOKENS"]),
        "system": words, "messages": [{"role": "user", "content": words}], "metadata": {"user_id": "x"}, "stream": True,
    }  # fmt: skip
    answer = ask(machine, "POST", "/v1/messages?beta=true", key, body, port)
    events = re.findall(r"^event: (\w+)", answer.body, re.MULTILINE)
    assert (answer.status, events[0], events[-1]) == (200, "message_start", "message_stop"), answer
    count = ask(machine, "POST", "/v1/messages/count_tokens", key, {**body, "stream": False}, port)
    assert (count.status, count.json["input_tokens"] > 0) == (200, True), count
