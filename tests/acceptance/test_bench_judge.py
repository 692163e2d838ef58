"""What `upgrade --bench` lets stay; that it is undone otherwise is in tests/booted/test_change.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from installer.acceptance import bench_judge
from installer.acceptance.bench_judge import BenchJudge
from installer.acceptance.bench_subject import Bench, Wishes
from installer.acceptance.measured import Measured
from installer.base.host import Host
from installer.base.report import Report
from installer.flow.prove import NotProved
from tests.acceptance.test_bench import LOAD, MACHINE, SERVED, step
from tests.kit.targets import target


def result(name: str, tokens: float, ended: str = "done") -> Measured:
    steps = (step(1, tokens / 4), step(8, tokens))
    return Measured(name, SERVED, MACHINE, LOAD, steps, ended, failed_at=8, error="500")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Wishes]:
    """With what each measurement was asked for; what it gives is taken from RESULTS."""
    seen: list[Wishes] = []

    def run(what: Bench, wishes: Wishes, host: Host, report: Report, *, is_whole: bool) -> Measured:
        assert is_whole
        seen.append(wishes)
        return RESULTS.pop(0)

    class Subject:
        look = "vllm-install logs"

    monkeypatch.setattr(bench_judge.bench_subject, "of_service", lambda *_: replace(EMPTY, subject=Subject()))
    monkeypatch.setattr(bench_judge.bench, "run", run)
    return seen


RESULTS: list[Measured] = []
EMPTY = Bench(None, target(), "", ())  # type: ignore[arg-type]


def judged(*results: Measured, margin: float = 10) -> None:
    RESULTS[:] = results
    judge = BenchJudge("qwen3vl", Wishes(is_quick=True), margin, Host(), Report())
    judge.before()
    judge.after(target())


def test_what_is_as_fast_or_within_the_margin_stays_and_was_asked_the_same(asked: list[Wishes]) -> None:
    judged(result("a", 1000), result("b", 1200))
    judged(result("a", 1000), result("b", 901))
    assert [wishes.concurrency for wishes in asked] == [(), (1, 8), (), (1, 8)]


def test_who_is_slow_is_asked_once_more_and_its_better_figures_count(asked: list[Wishes]) -> None:
    judged(result("a", 1000), result("cold", 500), result("warm", 950))
    with pytest.raises(NotProved, match=r"15 % slower than before, and 10 % is allowed: 1000\.0 tokens/s") as refused:
        judged(result("a", 1000), result("cold", 850), result("worse", 500))
    assert refused.value.hint == "vllm-install bench compare a cold --service qwen3vl"
    judged(result("a", 1000), result("b", 850), margin=15.1)
    assert len(asked) == 8


@pytest.mark.parametrize("which", [0, 1])
def test_a_request_that_is_not_answered_ends_it_on_either_side(asked: list[Wishes], which: int) -> None:
    results = [result("a", 1000), result("b", 1000)]
    results[which] = replace(results[which], ended="failed")
    with pytest.raises(NotProved, match="with 8 at once: 500"):
        judged(*results)
    assert len(asked) == which + 1
