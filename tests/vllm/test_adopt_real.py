"""The cloud host's unit with the real vLLM: adopted, it serves with its old key; its flags are the real parser's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from installer.base.assets import RUNTIME
from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.life import ask, cli

FIXTURE = REPO / "tests/fixtures/adopt/qwen3vl.service"
KEY = "sk-qwen-3f0aKq7ZpVn2RtYx8LmB4cWd6EhJ1sUg5Ti9oAeQyXw"
MODEL = "Qwen/Qwen3-VL-8B-Instruct"


def test_the_flags_of_vllm_are_those_of_its_own_parser(cpu_engine: str) -> None:
    python = REPO / "build/opt/engines" / cpu_engine / "bin/python"
    script = Path(__file__).with_name("serve_flags.py")
    said = subprocess.run([python, script], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    text = json.dumps(json.loads(said), indent=1) + "\n"
    if os.environ.get("GOLDEN") == "write":
        (RUNTIME / "vllm_flags.json").write_text(text)
    assert (RUNTIME / "vllm_flags.json").read_text() == text


def test_the_cloud_hosts_unit_is_adopted_and_serves(cpu_engine: str) -> None:
    port = free_port()  # the machine shares this host's network, for the package index
    with Machine(network=True, store=True) as machine:
        builtin.MakeBuiltin(Path("/data/models/Qwen3-VL-8B-Instruct")).apply(Host(machine.root), Report())
        machine.write("/opt/qwen3vl/.env", f"PORT={port}\nMAX_MODEL_LEN=512\n", 0o600)
        machine.write("/etc/systemd/system/qwen3vl.service", FIXTURE.read_text())
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "qwen3vl")
        done = cli(machine, "adopt", "qwen3vl", "ENGINE=cpu", "--yes", timeout=600)
        assert KEY not in done.out + done.err
        assert ask(machine, "GET", "/v1/models", port=port).status == 401
        body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        answer = ask(machine, "POST", "/v1/chat/completions", KEY, body, port)
        assert (answer.status, bool(answer.json["choices"][0]["message"]["content"])) == (200, True), answer
        assert ask(machine, "GET", "/v1/models", KEY, port=port).json["data"][0]["max_model_len"] == 512
        assert cli(machine, "deploy", "--json").changes == []
