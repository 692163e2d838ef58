"""Help that guides: what `vllm-install` alone says, the verbs by what they are for, and examples that can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from installer.base.layout import STATES
from installer.cli import VERBS, cli
from installer.verbs import options
from installer.verbs.examples import EXAMPLES
from installer.verbs.help import Formatter, complete


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{above}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")


def test_every_verb_stands_in_one_group_and_has_examples() -> None:
    grouped = [verb.name for verbs in VERBS.values() for verb in verbs]
    assert sorted(name or "" for name in grouped) == sorted(cli.commands)
    assert set(EXAMPLES) == {path for path, _ in commands()}


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_can_be_typed(example: str) -> None:
    """Past the shell and past click, up to where the verb itself begins; and it fits beside its indent."""
    assert len(example) <= 72
    ours = next(part for part in re.split("[|>]", example) if "vllm-install" in part)
    words = shlex.split(ours)
    words = words[words.index("vllm-install") + 1 :]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    context = command.make_context("vllm-install", words)
    assert context.command is command


def test_an_example_is_shown_in_one_line_however_long() -> None:
    command = click.Command("deploy", help="Deploy.")
    complete(command, "deploy")
    shown = command.get_help(click.Context(command, max_content_width=40, terminal_width=40))
    for line in EXAMPLES["deploy"]:
        assert f"    {line}\n" in f"{shown}\n"


def test_other_text_is_still_wrapped() -> None:
    formatter = Formatter(width=20)
    formatter.write_text("one two three four five six")
    assert formatter.getvalue() == "one two three four\nfive six\n"


@pytest.mark.parametrize(
    ("there", "meant"),
    [((), "qwen3vl"), (("coder",), "coder"), (("coder", "embed"), "qwen3vl"), (("qwen3vl",), "qwen3vl")],
)
def test_who_names_no_service_means_the_only_one(
    there: tuple[str, ...], meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "known_services", lambda: list(there))
    assert cli.commands["status"].make_context("status", []).params["service"] == meant
    assert cli.commands["status"].make_context("status", ["--service=other"]).params["service"] == "other"
    assert cli.commands["deploy"].make_context("deploy", []).params["service"] == "qwen3vl"


def test_every_option_that_names_a_service_completes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "known_services", lambda: ["coder", "embed"])
    silent = []
    for name, command in commands():
        named = [each for each in command.params if "--service" in each.opts]
        offered = [[item.value for item in each.shell_complete(click.Context(command), "co")] for each in named]
        silent += [name for names in offered if names != ["coder"]]
    assert silent == []


def test_a_record_makes_a_service_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from installer.base import host

    record = tmp_path / STATES.relative_to("/") / "coder/state.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    real = host.Host
    monkeypatch.setattr(host, "Host", lambda: real(tmp_path))
    assert options.the_service() == "coder"
