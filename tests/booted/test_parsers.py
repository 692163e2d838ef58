"""The parsers of a deployed service: chosen by its model, kept, changed and refused, as seen in its unit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from installer.base.host import Host
from installer.model import builtin
from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, cli, main_pid, standin

UNIT = f"/etc/systemd/system/{SERVICE}.service"
MODEL = "/srv/models/Org/Name"
TEMPLATE = '{% if tools %}{{ tools }}{% endif %}<tool_call>{"name": …, "arguments": …}</tool_call>{{ enable_thinking }}'


def parsers(machine: Machine) -> list[str]:
    """The words after each flag that is about parsers, in the unit's ExecStart."""
    line = next(line for line in machine.at(UNIT).read_text().splitlines() if line.startswith("ExecStart="))
    words = line.split()
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser")
    return [f"{word} {words[i + 1]}" for i, word in enumerate(words) if word in flags[1:]] + [
        word for word in words if word == flags[0]
    ]


def test_parity_rows_10_and_28_parsers_come_with_the_model_and_by_setting(
    boot: Callable[..., Machine], standin_wheels: Path
) -> None:
    machine = boot()
    folder = machine.at(MODEL)
    folder.mkdir(parents=True)
    builtin.write(folder, Host())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    options = (*standin(standin_wheels)[2:], "--models-dir", "/srv/models", "--model", "Org/Name")

    wrong = cli(machine, "deploy", *options, "--tool-call-parser", "hermse", code=2)
    assert "did you mean hermes" in wrong.err
    config = folder / "config.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "quantized as bitsandbytes, which cannot be run here" in cli(machine, "deploy", *options, code=3).err
    config.write_text(json.dumps(plain))
    assert not machine.at(UNIT).exists()

    done = cli(machine, "deploy", *options)
    assert "Qwen3: tool calls by hermes, reasoning by qwen3, text only" in done.err
    assert parsers(machine) == [
        "--tool-call-parser hermes", "--reasoning-parser qwen3", "--enable-auto-tool-choice",
    ]  # fmt: skip
    before = main_pid(machine)
    assert cli(machine, "deploy", *options, "--json").changes == []
    assert main_pid(machine) == before

    cli(machine, "set", "TOOL_CALL_PARSER=none", "REASONING_PARSER=deepseek_r1")
    assert parsers(machine) == ["--reasoning-parser deepseek_r1"]
    cli(machine, "rollback")
    assert len(parsers(machine)) == 3
    assert "no such parser" in cli(machine, "set", "REASONING_PARSER=hermes", code=2).err
