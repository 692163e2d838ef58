"""The command line as data, read out of click: what the reference and the man page are made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import click

from installer.cli import cli
from installer.verbs.examples import EXAMPLES

PROGRAM = "vllm-install"


@dataclass(frozen=True)
class Option:
    names: str  # as typed, with what follows: --service NAME
    help: str


@dataclass(frozen=True)
class Verb:
    """One command, or one below another: `models pull`."""

    name: str
    usage: str
    paragraphs: tuple[str, ...]
    options: tuple[Option, ...]
    examples: tuple[str, ...]


def verbs(group: click.Group = cli, above: str = "") -> Iterator[Verb]:
    """Every command in the order of --help, those below a command after it."""
    for name, command in group.commands.items():
        full = f"{above}{name}"
        yield _verb(full, command)
        if isinstance(command, click.Group):
            yield from verbs(command, f"{full} ")


def _verb(name: str, command: click.Command) -> Verb:
    context = click.Context(command, info_name=f"{PROGRAM} {name}", max_content_width=1000)
    pieces = command.collect_usage_pieces(context)
    # The help option is said once for all of them.
    records = (option.get_help_record(context) for option in command.params if isinstance(option, click.Option))
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return Verb(
        name,
        " ".join([PROGRAM, name, *pieces]),
        tuple(" ".join(paragraph.split()) for paragraph in paragraphs),
        tuple(Option(names, " ".join(help.split())) for names, help in filter(None, records)),
        EXAMPLES[name],
    )
