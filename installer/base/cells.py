"""Text on a terminal, where a Chinese character is as wide as two Latin ones."""

from __future__ import annotations

import re
import unicodedata

WIDE = "\u2e80-\u2fdf\u3040-\u9fff\uf900-\ufaff\uff01-\uff60"
OPENING = "(\\[\u201c\u2018\u3008\u300a\u300c\u300e\u3010\uff08"  # never ends a line
# Never begins a line.
CLOSING = ")\\]\u201d\u2019\u3001\u3002\u3009\u300b\u300d\u300f\u3011\uff01\uff09\uff0c\uff0e\uff1a\uff1b\uff1f"
# A word, or one character of a script that breaks its lines anywhere.
PIECES = rf"[{OPENING}]*(?:[^\s{WIDE}]+|[{WIDE}])[{CLOSING}]*|\s+"


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(_columns(character) for character in text)


def pad(text: str, columns: int) -> str:
    """The text, filled with spaces to so many columns; to the right of them where the number is negative."""
    spaces = " " * (abs(columns) - width(text))
    return text + spaces if columns > 0 else spaces + text


def wrap(text: str, columns: int) -> list[str]:
    """One paragraph in lines of at most so many columns; a word that is longer than that has a line of its own."""
    lines, line = [], ""
    for piece in re.findall(PIECES, " ".join(text.split())):
        if width(line) + width(piece.rstrip()) > columns and line:
            lines.append(line.rstrip())
            line = ""
        line += piece if line or not piece.isspace() else ""
    return [*lines, line.rstrip()] if line.strip() else lines


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
