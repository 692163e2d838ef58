"""Who enters the host that the demo leaves running types what our messages and documents say, and it works."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from scripts import demo
from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, cli, standin


def test_what_is_typed_there_works(machine: Machine, standin_wheels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.furnish(machine)
    cli(machine, "deploy", *standin(standin_wheels))
    demo.say_how_to_enter(machine)
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("enter it:"))
    enter = shlex.split(said.removeprefix("enter it:"))
    assert enter[0] == "sudo"

    def typed(words: str) -> str:
        done = subprocess.run(enter[1:], input=f"{words}\nexit\n", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + machine.evidence()
        return done.stdout

    assert SERVICE in typed("vllm-install status")
    assert "nothing is wrong" in typed("sudo vllm-install doctor")
    assert "default" in typed("sudo --preserve-env=HF_TOKEN A=b vllm-install keys")
    page = typed("man vllm-install")
    assert "set-apikey" in page
    assert "EXIT STATUS" in page
