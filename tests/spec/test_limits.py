"""Limits as people write them, and as the service reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.errors import Exit, UsageError
from installer.runtime import vllm_limits
from installer.runtime.vllm_limits import MOST, NO_LIMIT, PRIORITIES, Limit
from installer.spec import limits
from installer.spec.keys import Key
from tests.fuzz.hostile import TEXT

NUMBER = st.none() | st.integers(1, MOST)
LIMITS = st.builds(Limit, NUMBER, NUMBER, NUMBER, NUMBER, st.sampled_from(sorted(PRIORITIES)))


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("concurrent", "8", 8), ("requests", "600/min", 600), ("tokens", "100k/min", 100_000),
        ("budget", "5M/month", 5_000_000), ("budget", "1.5m/month", 1_500_000), ("tokens", "2G/min", 2 * 10**9),
        ("requests", "none", None), ("concurrent", "1", 1), ("tokens", "0.5k/min", 500),
    ],
)  # fmt: skip
def test_a_limit_is_understood(name: str, text: str, number: int | None) -> None:
    assert limits.parse(name, text) == number


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("concurrent", "many"), ("concurrent", "8/min"), ("concurrent", ""), ("concurrent", "-1"), ("requests", "600"),
        ("requests", "600/s"), ("requests", "600/hour"), ("tokens", "100k"), ("budget", "5M/min"), ("budget", "5M"),
        ("tokens", "1.2/min"), ("tokens", "1e6/min"), ("tokens", "١٠/min"), ("budget", "999999999999999G/month"),
        ("budget", "9999999G/month"),
        ("concurrent", "0.5"), ("requests", "6 00/min"), ("requests", "600/min\n"), ("concurrent", "NONE"),
    ],
)  # fmt: skip
def test_a_word_that_is_no_limit_is_refused_with_an_example(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        limits.parse(name, text)
    assert caught.value.exit_code == Exit.USAGE
    assert f"--{name} {limits.EXAMPLES[name]}" in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "text"), [("concurrent", "0"), ("requests", "0/min"), ("budget", "0k/month")])
def test_a_limit_of_0_is_a_revocation_in_disguise(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        limits.parse(name, text)
    assert "keys revoke" in (caught.value.hint or "")


def test_what_is_given_takes_the_place_of_what_was_there() -> None:
    before = Limit(concurrent=4, tokens=10)
    assert limits.changed(before, {"concurrent": "8", "priority": "high"}) == Limit(8, tokens=10, priority="high")
    assert limits.changed(before, {"tokens": "none"}) == Limit(4)
    assert limits.changed(before, {}) == before
    assert limits.changed(Limit(4, priority="high"), {"priority": "none"}) == Limit(4)


@given(st.dictionaries(st.from_regex(r"[a-z0-9_-]{1,40}", fullmatch=True), LIMITS, max_size=5))
def test_what_the_tool_writes_the_service_reads(wanted: dict[str, Limit]) -> None:
    read, damaged = vllm_limits.parse(limits.to_text(wanted))
    assert read == {name: limit for name, limit in wanted.items() if limit != NO_LIMIT}
    assert damaged == 0


def test_where_nobody_is_limited_there_is_no_file() -> None:
    assert limits.to_text({"a": NO_LIMIT}) == ""


@given(TEXT)
def test_whatever_stands_there_is_read(text: str) -> None:
    for name, limit in vllm_limits.parse(text)[0].items():
        assert vllm_limits.NAME.fullmatch(name)
        assert all(number is None or 0 < number <= MOST for number in limit[:4])
        assert limit.priority in PRIORITIES


def test_a_limit_is_shown_as_it_is_typed() -> None:
    assert limits.in_words(Limit(8, 600, 100, 5, "high")) == (
        "concurrent 8, requests 600/min, tokens 100/min, budget 5/month, priority high"
    )
    assert limits.in_words(NO_LIMIT) == ""


@pytest.mark.parametrize(
    ("name", "expiry", "account"),
    [("a", None, "a"), ("a-old", "2999-01-01T00:00:00Z", "a"), ("a-old-12", "2999-01-01T00:00:00Z", "a"),
     ("a-old", None, "a-old"), ("a", "2999-01-01T00:00:00Z", "a")],
)  # fmt: skip
def test_a_key_that_lives_on_for_a_while_is_its_successor_s_account(
    name: str, expiry: str | None, account: str
) -> None:
    assert limits.account(Key(name, "0" * 64, expiry=expiry)) == account
