"""The file that node-exporter reads: its form, whatever names hold, and that it is there whole or as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.monitor import textfile
from installer.monitor.textfile import NAME, TEXTFILES, Family, Row

FAMILIES = (Family("up", "Whether."), Family("seen_total", "How often.", "counter"))


def test_rows_stand_together_below_the_head_of_their_family() -> None:
    rows = [Row("seen_total", {"a": "1"}, 2), Row("up", {}, 1), Row("seen_total", {"a": "2"}, 0.5)]
    assert textfile.text(FAMILIES, rows) == (
        "# HELP up Whether.\n# TYPE up gauge\nup 1\n"
        '# HELP seen_total How often.\n# TYPE seen_total counter\nseen_total{a="1"} 2\nseen_total{a="2"} 0.5\n'
    )


def test_the_same_labels_twice_are_said_once_else_the_whole_file_is_refused() -> None:
    rows = [Row("up", {"a": "1"}, 1), Row("up", {"a": "1"}, 0)]
    assert textfile.text(FAMILIES, rows).splitlines()[2:] == ['up{a="1"} 1']


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ('a"b\\c', 'a\\"b\\\\c'),
        ("a\nup 7\r", "a up 7"),
        ("\x1b[31m", "\\\\x1b[31m"),
        ("\udcff", "\\\\udcff"),
        ("x" * 5000, "x" * 199 + "…"),
    ],
)
def test_what_others_named_stays_within_its_quotes(value: str, written: str) -> None:
    assert textfile.text(FAMILIES, [Row("up", {"a": value}, 1)]).splitlines()[2:] == [f'up{{a="{written}"}} 1']


def test_numbers_that_are_none_have_their_own_words() -> None:
    numbers = (1e300, float("inf"), -float("inf"), float("nan"))
    said = [textfile.text(FAMILIES, [Row("up", {}, number)]).splitlines()[2] for number in numbers]
    assert said == [f"up {int(1e300)}", "up +Inf", "up -Inf", "up NaN"]


def test_a_remark_is_one_line() -> None:
    said = textfile.text(FAMILIES, [Row("up", {}, 0, note="no\nup 1")])
    assert said.splitlines()[2:] == ["# why: no up 1", "up 0"]


def place(root: Path) -> Path:
    (root / TEXTFILES.relative_to("/")).mkdir(parents=True)
    return root / TEXTFILES.relative_to("/")


def test_nothing_is_written_where_node_exporter_is_not_installed(tmp_path: Path) -> None:
    assert not textfile.place("up 1\n", Host(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_everybody_may_read_it_and_what_a_killed_one_left_goes(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / f".{NAME}.0123").write_text("up")
    assert textfile.place("up 1\n", Host(tmp_path))
    assert (os.listdir(folder), (folder / NAME).read_text()) == ([NAME], "up 1\n")
    assert (folder / NAME).stat().st_mode & 0o777 == 0o644


def test_a_link_in_its_place_or_in_that_of_its_directory_is_not_followed(tmp_path: Path) -> None:
    folder, other = place(tmp_path), tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("theirs")
    (folder / NAME).symlink_to(other / "file")
    textfile.place("up 1\n", Host(tmp_path))
    assert ((other / "file").read_text(), (folder / NAME).is_symlink()) == ("theirs", False)
    (folder / NAME).unlink()
    folder.rmdir()
    folder.symlink_to(other)
    with pytest.raises(OSError, match="Not a directory"):
        textfile.place("up 1\n", Host(tmp_path))
    assert os.listdir(other) == ["file"]
