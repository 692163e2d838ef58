"""Text that others wrote, made fit to be shown and logged: a name may hold terminal codes, line breaks or a password.

The one filter for terminal, journal and status line, on either side. Stdlib only, because it runs with vLLM too.
"""

from __future__ import annotations

import itertools
import os
import re

KEPT = "\n\t\u00a0\u3000"  # line breaks, and blanks that Python does not call printable
BREAKS = re.compile(r"[\t\n\v\f\r]")
LONGEST = 400
CREDENTIALS = re.compile(r"(?<=://)\S*@")
# What may be shown of a command line: an option, an assignment, an address with a user or a key ends it.
HARMLESS_WORD = re.compile(r"(?!-|sk-)[^=@]+")


def harmless(text: str) -> str:
    """The text with everything spelt out that a terminal would obey, or that shows it in another order than it has."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in KEPT else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, longest: int = LONGEST) -> str:
    """The same on one line of bounded length, so that nobody begins a line in our name."""
    line = harmless(BREAKS.sub(" ", text.strip()))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def without_password(text: str) -> str:
    """User and password of a URL are for nobody else; one that was typed wrong may have a / or an @ in it."""
    return CREDENTIALS.sub("***@", text)


def command(arguments: str) -> str:
    """Another process by its words up to the first option, because a password may follow.

    Of its arguments, as /proc has them: with \\0 between, or with blanks where it gave itself another title.
    """
    words = arguments.replace("\0", " ").split()
    end = 2 if words[1:2] == ["-m"] and os.path.basename(words[0]).startswith("python") else 0
    return one_line(" ".join([*words[:end], *itertools.takewhile(HARMLESS_WORD.fullmatch, words[end:])]), 80)
