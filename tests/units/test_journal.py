"""Which lines of a journal are a run's, and which of those came after a moment of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.units.journal import journal, last_entry

UNIT = "qwen3vl.service"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What journalctl prints: of each call the words too, in a file beside it."""
    program = tmp_path / "bin/journalctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/words\ncat {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setattr("installer.base.host.PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path / "said"


def entries(*texts: object) -> str:
    return "".join(json.dumps({"__CURSOR": f"c{n}", "MESSAGE": text}) + "\n" for n, text in enumerate(texts, 1))


def test_a_run_that_went_on_is_read_from_a_moment_on(said: Path) -> None:
    said.write_text(entries("old", "older\nstill", "new", list(b"by\xfftes"), None) + "no json\n[]\n")
    assert journal(Host(), UNIT, 400, "run", "c2") == ["new", "by�tes"]
    assert journal(Host(), UNIT, 400, "run", "c5") == []
    assert journal(Host(), UNIT, 400, "run", "rotated away")[:3] == ["old", "older", "still"]
    words = (said.parent / "words").read_text()
    assert f"--unit {UNIT} --lines 400" in words
    assert words.endswith(" _SYSTEMD_INVOCATION_ID=run + INVOCATION_ID=run\n")


def test_a_run_is_read_as_it_was_printed(said: Path) -> None:
    said.write_text("one\ntwo\n")
    assert journal(Host(), UNIT, 400, "run") == ["one", "two"]
    assert "json" not in (said.parent / "words").read_text()
    assert journal(Host(), UNIT, 400, "") == []


def test_the_last_entry_is_known_by_its_cursor(said: Path) -> None:
    said.write_text(entries("last"))
    assert last_entry(Host(), UNIT) == "c1"
    for nothing in ("", "no json\n", "[]\n", '{"__CURSOR": 7}\n'):
        said.write_text(nothing)
        assert last_entry(Host(), UNIT) == "none", "so that it is a handover still"
