"""Which mutants are tried, and what is said of all of them."""

from __future__ import annotations

import pytest

from scripts.mutants import chosen, interval

NAMES = [f"installer.flow.fit.x_judge__mutmut_{number}" for number in range(1000)]


def test_a_sample_is_the_same_again_and_another_with_another_seed() -> None:
    first = chosen(NAMES, (), 100, 1)
    assert len(set(first)) == 100
    assert chosen(NAMES, (), 100, 1) == first
    assert chosen(NAMES, (), 100, 2) != first
    assert sorted(chosen(NAMES, (), 5000, 1)) == sorted(NAMES)
    assert chosen(NAMES, ("*_7", "*_8"), 1, 1) == [NAMES[7], NAMES[8]]


@pytest.mark.parametrize(
    ("noticed", "judged", "low", "high"), [(85, 100, 0.767, 0.907), (255, 300, 0.805, 0.886), (300, 300, 0.987, 1.0)]
)
def test_the_interval_is_wilson_s(noticed: int, judged: int, low: float, high: float) -> None:
    assert interval(noticed, judged) == pytest.approx((low, high), abs=0.001)
