"""The outcome of tests as CI and programs read it, and the small readers of what a server says."""

from __future__ import annotations

import re
import zlib
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.acceptance import results
from installer.acceptance.apitest import COLOUR, FAILED, PASSED, SKIPPED, Outcome, Subject, png
from installer.units.api import Answer, Api, gauge

SUBJECT = Subject(Api("::1", 8000, None, 1), "<model> & co", 1024, "")
ODD = st.text(st.one_of(st.sampled_from("<>&\"']]>\0\x1b\ud800\ufffe\r\n日😀"), st.characters()), max_size=30)
OUTCOMES = st.builds(Outcome, st.just("chat"), st.sampled_from([PASSED, FAILED, SKIPPED]), st.just(0.5), ODD, ODD)


@given(st.lists(OUTCOMES, min_size=1, max_size=4), ODD)
def test_whatever_a_server_says_the_file_for_ci_is_xml(outcomes: list[Outcome], name: str) -> None:
    suite = ET.fromstring(results.to_junit(name, SUBJECT, outcomes).encode(errors="strict"))[0]
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    assert suite.get("failures") == str(len(failed)) == str(len(suite.findall("testcase/failure")))
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    assert suite.get("time") == f"{0.5 * len(outcomes):.3f}"


def test_what_xml_can_hold_comes_through() -> None:
    text = "<b>&\"'日😀"
    suite = ET.fromstring(results.to_junit(None, SUBJECT, [Outcome("chat", FAILED, 1, text, "help")]))[0]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert (failure.get("message"), failure.text, suite[0].get("classname")) == (text, "help", "<model> & co")


@pytest.mark.parametrize(("failed", "passes"), [([FAILED, PASSED], False), ([PASSED, SKIPPED], True)])
def test_one_failure_fails_it_all(failed: list[str], passes: bool) -> None:
    assert results.all_passed([Outcome("x", status) for status in failed]) is passes


@pytest.mark.parametrize("columns", ["20", "100"])
def test_no_word_is_cut_on_a_narrow_screen(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can tell
    results.show("qwen3vl", SUBJECT, [Outcome("long-prompt", FAILED, 1.0, "answered with 日本", "some-command --flag")])
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    for words in (f"qwen3vl: {SUBJECT.model} at http://[::1]:8000", "answered with 日本", "help: some-command --flag"):
        assert words in shown
    assert re.search(r"long-prompt:? +failed", shown)
    assert "0 passed, 1 failed, 0 skipped in 1.0 s" in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('n{a="1"} 2.0\nn{a="2"} 1\n', 3),
        ("n 4\n", 4),
        ('n{a="} 9"} 1.0\n', 1),
        ("nn 4\n# n 4\n", None),
        ("n four\n", None),
        ("", None),
    ],
)
def test_a_metric_is_summed_over_its_labels(text: str, value: float | None) -> None:
    assert gauge(text, "n") == value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no such\\nmodel"}}', "no such model"),
        (b'{"error": "short"}', "short"),
        (b'{"message": "m"}', "m"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"<html>", "<html>"),
        (b"[" * 100_000, "[" * 200),
        (b"", ""),
    ],
)
def test_an_error_is_quoted_from_wherever_it_stands(body: bytes, words: str) -> None:
    assert Answer(500, body).words == words


def test_the_picture_is_a_red_square() -> None:
    data = png(64, COLOUR)
    assert data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0@\0\0\0@\x08\x02")
    length = int.from_bytes(data[33:37], "big")
    assert data[37:41] == b"IDAT"
    assert zlib.decompress(data[41 : 41 + length]) == (b"\0" + bytes(COLOUR) * 64) * 64
