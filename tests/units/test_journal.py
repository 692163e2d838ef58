"""Which lines of a journal are a run's, and which of those came after a moment of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.units.journal import Entry, Passage, journal, last_entry, of_kernel_since, tell, unit_entries

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
    assert f"--unit {UNIT} --lines 400 --quiet --output=json --output-fields=MESSAGE " in words
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


def test_each_entry_has_the_run_that_it_belongs_to(said: Path) -> None:
    lines = (
        {"MESSAGE": "of the service", "_SYSTEMD_INVOCATION_ID": "a"},
        {"MESSAGE": "of systemd about it", "_SYSTEMD_INVOCATION_ID": "systemd's own", "INVOCATION_ID": "b"},
        {"MESSAGE": "of nobody's", "INVOCATION_ID": 7},
        {"MESSAGE": None, "INVOCATION_ID": "too long"},
    )
    said.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    assert unit_entries(Host(), UNIT, 5) == [
        Entry("of the service", "a"), Entry("of systemd about it", "b"), Entry("of nobody's", ""),
    ]  # fmt: skip
    words = (said.parent / "words").read_text()
    assert "--output=json --output-fields=MESSAGE,_SYSTEMD_INVOCATION_ID,INVOCATION_ID --lines=5" in words
    assert words.endswith(f" --unit={UNIT}\n")


def test_a_journal_that_cannot_be_read_is_an_error_with_its_last_words(said: Path) -> None:
    program = said.parent / "bin/journalctl"
    program.write_text("#!/bin/sh\necho hint >&2; echo 'no permission' >&2; exit 1\n")
    with pytest.raises(InstallError, match=r"the journal cannot be read: no permission$"):
        unit_entries(Host(), UNIT, 5)
    program.write_text("#!/bin/sh\nexit 1\n")  # as where nothing matches
    if os.geteuid() == 0:
        assert unit_entries(Host(), UNIT, 5) == []


def test_a_host_without_a_journal_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("installer.base.host.PATH", str(tmp_path))
    for read in (lambda: unit_entries(Host(), UNIT, 5), lambda: of_kernel_since(Host(), "", 9, "Xid", 5)):
        with pytest.raises(InstallError, match="no journalctl on this host"):
            read()


# The kernel's


@pytest.fixture
def kernel(said: Path) -> Path:
    """A directory with what the kernel has said last, what of all matches, and what it says after a cursor."""
    script = f"""cd {said.parent}; echo "$*" >>words
case "$*" in *--grep=*) cat matching;; *--after-cursor=*) cat later;; *) cat newest;; esac"""
    (said.parent / "bin/journalctl").write_text(f"#!/bin/sh\n{script}\n")
    return said.parent


def lines(*entries: tuple[int, str]) -> str:
    found = ({"__CURSOR": f"c{at}", "__REALTIME_TIMESTAMP": f"{at:04}", "MESSAGE": text} for at, text in entries)
    return "".join(json.dumps(each) + "\n" for each in found)


def test_at_first_of_the_kernel_only_what_matches_is_read_and_nothing_twice(kernel: Path) -> None:
    """What comes between the two questions is after the cursor, and so the next look's."""
    (kernel / "newest").write_text(lines((7, "usb")))
    (kernel / "matching").write_text(lines((3, "Xid 79"), (7, "Xid 48"), (8, "Xid 31")))
    assert of_kernel_since(Host(), "", 50, "Xid", 5) == Passage(("Xid 79", "Xid 48"), "c7")
    first, second = (kernel / "words").read_text().splitlines()
    assert "--lines=1 " in first
    assert "--lines=50 " in second
    assert second.endswith(" _TRANSPORT=kernel --boot --grep=Xid")


def test_later_all_that_came_is_read(kernel: Path) -> None:
    (kernel / "later").write_text(lines((8, "Xid 31"), (9, "usb")))
    assert of_kernel_since(Host(), "c7", 50, "Xid", 5) == Passage(("Xid 31", "usb"), "c9")
    assert (kernel / "words").read_text().endswith(" _TRANSPORT=kernel --boot --after-cursor=c7\n")
    (kernel / "later").write_text("")
    assert of_kernel_since(Host(), "c7", 50, "Xid", 5) == Passage((), "c7"), "nothing new, and nothing forgotten"


def test_a_kernel_that_has_said_nothing_is_asked_no_further(kernel: Path) -> None:
    (kernel / "newest").write_text("")
    assert of_kernel_since(Host(), "", 50, "Xid", 5) == Passage((), "")
    assert len((kernel / "words").read_text().splitlines()) == 1


# What is told


def test_what_is_told_is_one_line_of_the_service_s_journal(said: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = said.parent / "bin/logger"
    logger.write_text(f'#!/bin/sh\necho "$*" >{said.parent}/words\ncat >{said}\nexit 1\n')
    logger.chmod(0o755)  # one that fails keeps nobody from anything
    tell("two\nlines\x1b[2J", Host(), Layout("qwen3vl"))
    message, *rest = said.read_text().splitlines()
    assert message.startswith("MESSAGE=two")
    assert "\x1b" not in message
    assert rest == ["PRIORITY=5", f"OBJECT_SYSTEMD_UNIT={UNIT}"]
    assert (said.parent / "words").read_text() == "--journald\n"
    assert capsys.readouterr().err == ""


def test_without_a_logger_it_is_told_to_whoever_reads_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("installer.base.host.PATH", str(tmp_path))
    tell("two\nlines", Host(), Layout("qwen3vl"))
    assert len(capsys.readouterr().err.splitlines()) == 1
