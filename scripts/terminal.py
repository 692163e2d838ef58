"""A command in a terminal of its own, and the picture of what it leaves on the screen."""

from __future__ import annotations

import fcntl
import html
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterable, Mapping, Sequence

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len, get_character_cell_size
from rich.console import Console
from rich.text import Text

# What a program may send beside text: line ends, moves of the cursor, erasures, and what shows or hides it.
_CONTROL = re.compile(r"(\r?\n|\r|\x1b\[[\d;?]*[A-Zhl])")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_UP = re.compile(r"\x1b\[(\d*)A")
_TEXT = re.compile(r'(<text [^>]*? x=")([\d.]+)("[^>]* textLength=")([\d.]+)("[^>]*>)([^<]*)</text>')
_PIECES = re.compile(r"[\u0020-\u2e7f]+|.")
# The pictures must not fetch a font from anywhere.
_PLAIN_SVG = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def record(
    command: Sequence[str], environment: Mapping[str, str], columns: int, lines: int, until: str | None = None
) -> str:
    """All that a command sends to its terminal; it gets Ctrl-C as soon as `until` matches what stands there."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    )  # fmt: skip
    os.close(its)
    said = b""
    os.set_blocking(ours, False)
    while process.poll() is None:
        said += _waiting(ours)
        if until and re.search(until, _COLOUR.sub("", settled(said.decode(errors="replace")))):
            os.killpg(process.pid, signal.SIGINT)
            until = None
        time.sleep(0.05)
    said += _waiting(ours)
    os.close(ours)
    return said.decode(errors="replace")


def _waiting(terminal: int) -> bytes:
    said = b""
    try:
        while piece := os.read(terminal, 65536):
            said += piece
    except OSError:  # nothing more for now, or nobody at the other end
        pass
    return said


def settled(sent: str) -> str:
    """What stands on the screen in the end, colours as they were sent."""
    screen, row, returned = [""], 0, False
    for piece in _CONTROL.split(sent):
        if piece in ("\n", "\r\n"):
            row, returned = row + 1, False
            screen += [""] * (row + 1 - len(screen))
        elif piece == "\r":
            returned = True
        elif moved := _UP.fullmatch(piece):
            row = max(0, row - int(moved[1] or 1))
        elif piece == "\x1b[2K":
            screen[row] = ""
        elif piece and not _CONTROL.fullmatch(piece):
            screen[row] = piece if returned else screen[row] + piece
            returned = False
    return "\n".join(screen).rstrip()


def picture(title: str, typed: str, shown: str, columns: int) -> str:
    """An SVG of a terminal in which a command was typed."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("# ", "bold green"), (typed, "bold")), soft_wrap=True)
    for line in Text.from_ansi(shown).split("\n", allow_blank=True):
        for part in _folded(line, columns):
            console.print(part, soft_wrap=True)
    # Some viewers would otherwise swallow what a line is indented by.
    svg = console.export_svg(title=title, code_format=_PLAIN_SVG).replace("<text ", '<text xml:space="preserve" ')
    return _TEXT.sub(_in_columns, svg)


def _in_columns(text: re.Match[str]) -> str:
    """The same text with each wide character in a place of its own, which takes two columns."""
    before, x, between, length, after, escaped = text.groups()
    plain = html.unescape(escaped)
    if cell_len(plain) == len(plain):
        return text[0]
    pieces, at, column = "", float(x), float(length) / len(plain)
    for piece in _PIECES.findall(plain):
        wide = column * cell_len(piece)
        pieces += f"{before}{at:g}{between}{wide:g}{after}{html.escape(piece).replace(' ', '&#160;')}</text>"
        at += wide
    return pieces


def _folded(line: Text, columns: int) -> Iterable[Text]:
    """As a terminal breaks a line: where it is full, be it within a word."""
    cuts, used = [], 0
    for index, character in enumerate(line.plain):
        width = get_character_cell_size(character)
        if used + width > columns:
            cuts.append(index)
            used = 0
        used += width
    return line.divide(cuts)
