"""systemd's syntax: words and lines of a unit, written and read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from installer.base.errors import UsageError
from installer.base.language import tr

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,+@-]+")


def literal(text: str) -> str:
    """Text that ends a line: no specifier in it is expanded, and the line below stays a line of its own."""
    if text.endswith("\\"):
        raise UsageError(
            tr("{text!r} ends with a backslash, which in a systemd unit joins it with the next line", text=text)
        )
    return _without_specifiers(text)


def quote(word: str) -> str:
    """One word of a list directive, such as NAME=VALUE."""
    return word if _PLAIN_WORD.fullmatch(word) else quote_path(word)


def quote_path(path: str) -> str:
    """A path in BindReadOnlyPaths=, where a bare colon would end it."""
    return '"' + _without_specifiers(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _without_specifiers(text: str) -> str:
    if not text.isprintable():
        raise UsageError(tr("{text!r} holds a character that cannot stand in a systemd unit", text=text))
    return text.replace("%", "%%")


def quote_exec(args: Sequence[str]) -> str:
    """A command line for ExecStart=: the started process receives exactly these arguments."""
    return " ".join(quote(arg).replace("$", "$$") for arg in args)


def split_exec(line: str) -> list[str]:
    """The arguments that systemd makes of an ExecStart= value, ours or written by hand."""
    words: list[str] = []
    for match in re.finditer(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\\.|[^\s"'\\])+""", line):
        pieces = re.findall(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|((?:\\.|[^\s"'\\])+)""", match[0])
        word = "".join(re.sub(r"\\(.)", r"\1", "".join(piece)) for piece in pieces)
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


def exec_line(unit_text: str, directive: str = "ExecStart") -> list[str]:
    """The arguments of a directive in a unit's text; empty where there is none."""
    joined = unit_text.replace("\\\n", " ")
    found = re.findall(rf"^{directive}\s*=(.*)$", joined, re.MULTILINE)
    return split_exec(found[-1]) if found else []


def environment(unit_text: str) -> dict[str, str]:
    """The variables that a unit's text gives its process; an empty assignment takes back those before it."""
    found: dict[str, str] = {}
    for line in re.findall(r"^[^\S\n]*Environment[^\S\n]*=(.*)$", unit_text, re.MULTILINE):
        words = split_exec(line)
        found = {**found, **dict(word.partition("=")[::2] for word in words)} if words else {}
    return found


def sandbox(unit_text: str) -> list[str]:
    """The directives that confine a service, and those that open its devices, as they stand in its unit."""
    groups = re.findall(r"^SupplementaryGroups=.*$", unit_text, re.MULTILINE)
    part = unit_text.partition("\n# Sandbox\n")[2].partition("\n[Install]")[0]
    return [*groups, *(line for line in part.splitlines() if line and not line.startswith("#"))]


FILTERS = {"literal": literal, "quote": quote, "quote_path": quote_path, "quote_exec": quote_exec}
