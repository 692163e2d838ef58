"""With the real vLLM: a unit, and a script with an adapter, are adopted and serve; its flags are its own parser's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from installer.base.assets import RUNTIME
from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from tests.kit import adapter
from tests.kit.boot import compiled
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.hub import Hub
from tests.kit.life import ask, cli
from tests.kit.memory import share

FIXTURE = REPO / "tests/fixtures/adopt/qwen3vl.service"
KEY = "sk-qwen-3f0aKq7ZpVn2RtYx8LmB4cWd6EhJ1sUg5Ti9oAeQyXw"
MODEL, NAME = Path("/data/models/Qwen3-VL-8B-Instruct"), "Qwen/Qwen3-VL-8B-Instruct"


def test_the_flags_of_vllm_are_those_of_its_own_parser(cpu_engine: str) -> None:
    python = REPO / "build/opt/engines" / cpu_engine / "bin/python"
    script = Path(__file__).with_name("serve_flags.py")
    said = subprocess.run([python, script], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    text = json.dumps(json.loads(said), indent=1) + "\n"
    if os.environ.get("GOLDEN") == "write":
        (RUNTIME / "vllm_flags.json").write_text(text)
    assert (RUNTIME / "vllm_flags.json").read_text() == text


@pytest.fixture(scope="module")
def machine(cpu_engine: str) -> Iterator[Machine]:
    with Machine(network=True, store=True) as machine:
        compiled.give(machine)
        builtin.MakeBuiltin(MODEL).apply(Host(machine.root), Report())
        yield machine


def test_the_cloud_hosts_unit_is_adopted_and_serves(machine: Machine) -> None:
    port = free_port()  # the machine shares this host's network, for the package index
    machine.write("/opt/qwen3vl/.env", f"PORT={port}\nMAX_MODEL_LEN=512\n", 0o600)
    machine.write("/etc/systemd/system/qwen3vl.service", FIXTURE.read_text())
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "qwen3vl")
    done = cli(machine, "adopt", "qwen3vl", "ENGINE=cpu", "--yes", timeout=600)
    assert KEY not in done.out + done.err
    assert ask(machine, "GET", "/v1/models", port=port).status == 401
    body = {"model": NAME, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
    answer = ask(machine, "POST", "/v1/chat/completions", KEY, body, port)
    assert (answer.status, bool(answer.json["choices"][0]["message"]["content"])) == (200, True), answer
    assert ask(machine, "GET", "/v1/models", KEY, port=port).json["data"][0]["max_model_len"] == 512
    assert cli(machine, "deploy", "--json").changes == []
    machine.run("systemctl", "stop", "qwen3vl")


def test_a_script_s_adapter_and_its_weights_are_adopted_and_answer_by_their_names(machine: Machine) -> None:
    """From a home, which the sandbox hides but for the adapter; nothing is fetched, nothing can be loaded beside it."""
    port = free_port()
    adapter.write(machine.at("/home/ana/sql"))
    with Hub() as hub:
        hub.add("Org/Tiny", builtin.files())
        snapshot_download("Org/Tiny", cache_dir=machine.at("/home/ana/hf/hub"), endpoint=hub.url, token=False)
    machine.run("chown", "-R", "4711:4711", "/home/ana/hf")
    machine.write(
        "/root/run.sh",
        "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 HF_HOME=/home/ana/hf\n"
        f"exec vllm serve Org/Tiny --served-model-name base --port {port} --api-key {KEY} --max-model-len 512 "
        "--enable-lora --lora-modules sql=/home/ana/sql\n",
    )
    words = ("ENGINE=cpu", "OFFLINE=yes", f"GPU_MEMORY_UTILIZATION={share()}", "--service", "llm", "--yes")
    done = cli(machine, "adopt", "/root/run.sh", *words, timeout=600)
    assert "none can be; name them with LORA" in done.out
    assert "/home/ana/hf/hub stays as it is" in done.out
    listed = {one["id"]: one for one in ask(machine, "GET", "/v1/models", KEY, port=port).json["data"]}
    assert (sorted(listed), listed["sql"]["parent"]) == (["base", "sql"], "base")
    assert said(machine, port, "base") == said(machine, port, "base") != said(machine, port, "sql")
    body = {"lora_name": "other", "lora_path": "/home/ana/sql"}
    assert ask(machine, "POST", "/v1/load_lora_adapter", KEY, body, port).status == 403
    assert cli(machine, "status", "--service", "llm", "--json").json["adapters"] == ["sql=/home/ana/sql"]
    assert cli(machine, "deploy", "--service", "llm", "--json").changes == []


def said(machine: Machine, port: int, model: str) -> str:
    body = {"model": model, "prompt": "The tiny model", "max_tokens": 24, "temperature": 0}
    answer = ask(machine, "POST", "/v1/completions", KEY, body, port)
    assert answer.status == 200, answer
    return str(answer.json["choices"][0]["text"])
