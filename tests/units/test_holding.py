"""What a service writes of the callers it holds: read as numbers, and as nothing wherever it is anything else."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from installer.base.host import Host
from installer.base.layout import Layout
from installer.units.graph import handle
from installer.units.holding import LONGEST, STALE, Holding, holding, without_count

LAYOUT = Layout("qwen3vl")
MEMBER = handle(LAYOUT)


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def says(host: Host, text: str) -> Holding | None:
    host.write(MEMBER.holding, text)
    return holding(host, MEMBER)


def told(**changed: object) -> str:
    return json.dumps({"since": now() - 8.5, "waiting": 12, "hold": 120, **changed})


def test_who_waits_is_read(host: Host) -> None:
    assert holding(host, MEMBER) is None
    assert says(host, told()) == Holding(waiting=12, longest=8, limit=120)
    assert says(host, told(since=now() + 60)) == Holding(waiting=12, longest=0, limit=120)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Holding(12, 8, 120), "12 callers wait, longest 8 s"),
        (Holding(1, 8, 120), "1 caller waits, longest 8 s"),
        (Holding(0, 120, 120), "nobody waits; it has been starting for 120 s"),
        (Holding(3, 120, 120), "3 callers wait, longest 120 s"),
        (Holding(0, 121, 120), "callers are told to come again: it has been starting for 121 s"),
    ],
)
def test_it_is_said_in_words(seen: Holding, words: str) -> None:
    assert seen.words == words


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "null", "12", '"x"', "\0", "{" * 2000, "[" * 4000, "9" * 4000,
        told(waiting="12"), told(waiting=None), told(waiting=True), told(waiting=-1), told(waiting=1 << 31),
        told(waiting=[]), told(hold="\x1b[2J"), told(hold=float("nan")), told(hold=float("inf")), told(since={}),
        told(since=-0.5), '{"since": 1, "waiting": 1}', told() + " " * LONGEST,
    ],
    ids=itertools.count(),  # the texts hold the time of day, and each process that collects them has another
)  # fmt: skip
def test_what_is_no_number_is_not_believed(host: Host, text: str) -> None:
    assert says(host, text) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda each: st.lists(each), max_leaves=3))
def test_whatever_stands_there_is_numbers_or_nothing(host: Host, value: object) -> None:
    found = says(host, told(since=value, waiting=value, hold=value))
    assert found is None or all(type(each) is int for each in (found.waiting, found.longest, found.limit))


def test_no_link_is_followed_and_nothing_is_waited_for(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(told())
    host.make_dir(LAYOUT.run_dir)
    real = host.at(MEMBER.holding)
    real.symlink_to(outside)
    assert holding(host, MEMBER) is None
    real.unlink()
    os.mkfifo(real)
    assert holding(host, MEMBER) is None
    real.unlink()
    real.mkdir()
    assert holding(host, MEMBER) is None


@pytest.mark.root
def test_a_file_of_somebody_else_is_not_the_service_s(host: Host) -> None:
    assert says(host, told())
    os.chown(host.at(LAYOUT.run_dir), 65534, 65534)
    assert holding(host, MEMBER) is None
    os.chown(host.at(MEMBER.holding), 65534, 65534)
    assert holding(host, MEMBER)


def test_what_nobody_goes_on_writing_says_nothing(host: Host) -> None:
    assert says(host, told())
    long_ago = time.time() - STALE - 1
    os.utime(host.at(MEMBER.holding), (long_ago, long_ago))
    assert holding(host, MEMBER) is None


@pytest.mark.parametrize("counted", ["; 12 callers wait, longest 8 s", "; 1 caller waits, longest 0 s", ""])
def test_a_stage_is_the_same_whoever_waits_for_it(counted: str) -> None:
    assert without_count(f"loading weights{counted}") == "loading weights"
    assert without_count(f"{counted} x") == f"{counted} x"
