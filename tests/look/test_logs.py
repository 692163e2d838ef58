"""What `logs` hands on to journalctl: times and numbers that it could not read are refused in our words."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from installer.base.errors import UsageError
from installer.base.host import Host
from installer.cli import cli
from installer.look import logs


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "never"], ["--since=never"], ["-S", "never"], ["-Snever"], ["--until", "never"], ["-U", "never"],
        ["-n", "5", "--since", "never"],
    ],
)  # fmt: skip
def test_a_time_that_is_none_is_refused_before_anything_is_shown(words: list[str]) -> None:
    done = CliRunner().invoke(cli, ["logs", *words])
    assert isinstance(done.exception, UsageError), done.output
    assert done.exception.message == "'never' is no time"
    assert "--since today" in done.exception.hint
    assert done.output == ""


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["--lines=x"], "x"), (["--lines", "x"], "x"), (["-nx"], "x"), (["-n", "x"], "x"), (["--lines="], ""),
        (["--lines=-1"], "-1"), (["-n99999999999"], "99999999999"), (["-o", "cat", "-n", "ten"], "ten"),
    ],
)  # fmt: skip
def test_a_number_of_lines_that_is_none_is_refused_before_anything_is_shown(words: list[str], number: str) -> None:
    done = CliRunner().invoke(cli, ["logs", *words])
    assert isinstance(done.exception, UsageError), done.output
    assert done.exception.message == f"{number!r} is no number of lines"
    assert "-n 50" in done.exception.hint
    assert done.output == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "-1h"], ["--since=today"], ["-S", "2026-11-30 08:00"], ["-S-2h"], ["-U", "now"], ["-n", "5"], [],
        ["-n5"], ["--lines=+5"], ["--lines=all"], ["--lines", "5"], ["-n"], ["-n", "-r"], ["-n", "PRIORITY=3"],
        ["-n", "/usr/bin/python3"],
    ],
)  # fmt: skip
def test_any_other_word_is_journalctls_business(words: list[str]) -> None:
    logs._check(words, Host())
