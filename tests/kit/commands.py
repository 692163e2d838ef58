"""Whether a command that we tell people to run is one that our command line takes."""

from __future__ import annotations

import re
import shlex

import click

from installer.cli import cli


def check_ours(commands: list[str]) -> None:
    """Raises click's own complaint about a command of ours that is misspelt; others are not ours to judge."""
    for command in commands:
        for part in re.split(r"&&|;", command):
            words = shlex.split(part, comments=True)
            if "vllm-install" in words:
                _parse(cli, words[words.index("vllm-install") + 1 :])


def _parse(group: click.Group, words: list[str]) -> None:
    context = group.make_context("vllm-install", ["--help"], resilient_parsing=True)
    name, command, rest = group.resolve_command(context, words)
    assert command is not None
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        _parse(command, rest)
    else:
        command.make_context(name, rest, parent=context)
