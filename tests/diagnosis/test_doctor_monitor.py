"""What doctor reckons of an engine's metrics, which the engine may garble."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from installer.base.errors import InstallError
from installer.diagnosis import doctor_monitor
from installer.diagnosis.doctor_monitor import percentile


def told(*counts: tuple[str, object]) -> str:
    return "".join(f'vllm:x_seconds_bucket{{engine="0",le="{bound}",model_name="m"}} {n}\n' for bound, n in counts)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (told(("0.1", 100.0), ("1.0", 100.0), ("+Inf", 100.0)), 0.095),
        (told(("0.1", 0.0), ("1.0", 100.0), ("+Inf", 100.0)), 0.955),
        (told(("0.1", 0.0), ("1.0", 90.0), ("+Inf", 100.0)), 1.0),  # as Prometheus: no more than the last bound
        (told(("0.1", 0.0), ("+Inf", 0.0)), 0.0),
        (told(("soon", 1.0), ("+Inf", 1.0)), 0.0),
        (told(("0.1", "many"), ("+Inf", 1.0)), 0.0),
        ("", 0.0),
    ],
)
def test_the_95th_percentile_is_that_of_prometheus(text: str, found: float) -> None:
    assert percentile(text, "vllm:x_seconds", 0.95) == pytest.approx(found)


def test_the_buckets_of_several_engines_are_one_histogram() -> None:
    first, second = told(("1.0", 100.0), ("+Inf", 100.0)), told(("1.0", 0.0), ("+Inf", 100.0))
    assert percentile(first + second, "vllm:x_seconds", 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "refused", "answered", "is_told"),
    [("there", 21, 209, True), ("there", 21, 210, False), ("there", 20, 0, False), ("gone", 21, 0, False)],
)
def test_refusals_are_told_of_a_key_that_is_there_and_of_many(
    monkeypatch: pytest.MonkeyPatch, name: str, refused: int, answered: int, is_told: bool
) -> None:
    used: Any = SimpleNamespace(refused=refused, requests=answered)
    monkeypatch.setattr(doctor_monitor, "_used_today", lambda scene: [(name, used)])
    monkeypatch.setattr(doctor_monitor, "unit_keys", lambda *_: [SimpleNamespace(name="there")])
    scene: Any = SimpleNamespace(is_root=True, host=None, layout=None, service="q")
    assert [each.id for each in doctor_monitor.check_refusals(scene)] == ["requests-refused"] * is_told


def test_a_key_that_cannot_be_read_is_the_finding_of_another_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> list[Any]:
        raise InstallError("not a key")

    used: Any = SimpleNamespace(refused=21, requests=0)
    monkeypatch.setattr(doctor_monitor, "_used_today", lambda scene: [("there", used)])
    monkeypatch.setattr(doctor_monitor, "unit_keys", damaged)
    host = SimpleNamespace(exists=lambda path: True, read=lambda path: "sk-metrics")
    scene: Any = SimpleNamespace(is_root=True, host=host, layout=None, service="q", unit_text="[Service]")
    assert list(doctor_monitor.check_refusals(scene)) == []
    assert list(doctor_monitor.check_scrape_key(scene)) == []
