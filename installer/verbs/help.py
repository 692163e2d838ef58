"""The --help of every verb: in the user's language, and in lines that fit where characters are wide."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable

import click

from installer.base.cells import pad, width, wrap
from installer.base.language import ENGLISH, choose, tr
from installer.verbs.examples import EXAMPLES

WIDEST_TERM = 30
GAP = 2
PROMPT = "$ "


class Formatter(click.HelpFormatter):
    """Click's, but for how text is measured and broken into lines."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, tr("Usage: ") if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        self.write(" " * self.current_indent + tr("{title}:", title=heading) + "\n")

    def write_text(self, text: str) -> None:
        """A paragraph that begins with a prompt is a list of commands, each in a line of its own, however long."""
        indent, columns = " " * self.current_indent, self.width - self.current_indent
        paragraphs = [
            [f"  {line.removeprefix(PROMPT)}" for line in paragraph.splitlines()]
            if paragraph.startswith(PROMPT)
            else wrap(paragraph, columns)
            for paragraph in text.split("\n\n")
        ]
        self.write("\n\n".join("\n".join(indent + line for line in lines) for lines in paragraphs) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = WIDEST_TERM, col_spacing: int = GAP) -> None:
        rows = list(rows)
        column = min(max(width(term) for term, _ in rows), col_max) + col_spacing
        indent = " " * self.current_indent
        for term, text in rows:
            first, *more = wrap(text, max(self.width - column - GAP, 10)) or [""]
            if width(term) + col_spacing > column:
                self.write(f"{indent}{term}\n")
                term = ""
            for start, line in ((term, first), *(("", line) for line in more)):
                self.write(f"{indent}{pad(start, column)}{line}".rstrip() + "\n")


def punctuated(said: str) -> str:
    """What click says of a mistake; it puts sentences together with an English full stop and a blank."""
    if choose(sys.argv, os.environ) == ENGLISH:
        return said
    return re.sub(r"(?<=')\.( |$)|(?<=。) ", lambda found: "。" if "." in found[0] else "", said, flags=re.MULTILINE)


def complete(command: click.Command, path: str = "") -> None:
    """Give a command its examples, and turn what its decorators say in English into the user's language; those below
    it, too."""
    if path in EXAMPLES:
        command.epilog = "\n\n".join([tr("Examples:"), "\n".join(PROMPT + line for line in EXAMPLES[path])])
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            parameter.help = tr(parameter.help)
            if isinstance(parameter.show_default, str):
                parameter.show_default = tr(parameter.show_default)
    if command.help:
        command.help = tr(inspect.cleandoc(command.help))  # some versions of Python have done this already
        command.short_help = command.help.partition("\n")[0]
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        complete(below, f"{path} {name}".strip())
