"""Pictures of terminals: what is left when a program has moved about on the screen, folded as a terminal folds."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from scripts.terminal import picture, record, settled


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("10 %\r20 %\r30 %\r\n", "30 %"),
        ("\x1b[?25lold\r\nolder\r\n\x1b[1A\x1b[2K\x1b[1A\x1b[2Knew\r\n\x1b[?25h", "new"),
        ("a\r\nb\r\nc\r\n\x1b[2A\x1b[2K\rB", "a\nB\nc"),
        ("\x1b[1mbold\x1b[0m", "\x1b[1mbold\x1b[0m"),
    ],
)
def test_what_is_left_on_the_screen(sent: str, left: str) -> None:
    assert settled(sent) == left


def test_a_program_has_a_terminal_of_that_size_and_gets_ctrl_c() -> None:
    size = "import os, sys, time\nprint(sys.stdout.isatty(), os.get_terminal_size().columns, flush=True)\n"
    waits = f"{size}try:\n print('begun', flush=True); time.sleep(600)\nexcept KeyboardInterrupt:\n print('ended')"
    shown = settled(record([sys.executable, "-c", waits], {}, 77, 20, until="begun"))
    assert shown.replace("^C", "") == "True 77\nbegun\nended"
    assert settled(record([sys.executable, "-c", size], {}, 77, 20)) == "True 77"


def test_a_picture_shows_every_character_and_fetches_nothing() -> None:
    svg = picture("title", "vllm-install status", "  indented <&>\n" + "x" * 45 + "\n" + "模型" * 12, 40)
    tree = ElementTree.fromstring(svg)
    lines = [text.text.replace("\xa0", " ") for text in tree.iter("{http://www.w3.org/2000/svg}text") if text.text]
    assert lines[:2] == ["title", "# "]
    assert "  indented <&>" in lines
    assert [line for line in lines if "x" in line] == ["x" * 40, "x" * 5]
    assert sum(line.count("模") for line in lines) == 12
    assert "url(http" not in svg
    assert "@import" not in svg
