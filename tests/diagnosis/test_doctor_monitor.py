"""What doctor reckons of an engine's metrics, which the engine may garble."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from installer.base.errors import InstallError
from installer.base.layout import FIGURES, MONITOR, Layout
from installer.diagnosis import doctor_monitor
from installer.diagnosis.doctor_monitor import percentile
from tests.diagnosis import test_doctor
from tests.diagnosis.test_doctor import SERVICE, Tree


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


tree = test_doctor.tree


@pytest.mark.parametrize(
    ("of", "is_said"),
    [('source="gpus"', True), (f'source="services",service="{SERVICE}"', True),
     ('source="services",service="other"', False)],
)  # fmt: skip
def test_figures_that_are_missing_are_said_with_why(tree: Tree, of: str, is_said: bool) -> None:
    tree.write(MONITOR / "key", "sk-metrics")
    tree.write(FIGURES, f"# why: TimeoutError: it took too long\nvllm_install_source_failed{{{of}}} 1\n")
    found = [finding for finding in tree.findings() if finding.id == "figures-incomplete"]
    assert [(each.severity, each.evidence) for each in found] == [("note", "TimeoutError: it took too long")] * is_said


def test_figures_that_somebody_else_wrote_are_not_read(tree: Tree) -> None:
    tree.write(MONITOR / "key", "sk-metrics")
    tree.write(FIGURES, '# why: it\nvllm_install_source_failed{source="gpus"} 1\n')
    os.chown(tree.host.at(FIGURES), 12345, 12345)
    assert "figures-incomplete" not in tree.ids()


@pytest.mark.parametrize(
    ("notifies", "result", "is_said"), [(True, "exit-code", True), (True, "success", False), (False, "timeout", False)]
)
def test_a_message_that_nobody_took_is_said(
    monkeypatch: pytest.MonkeyPatch, notifies: bool, result: str, is_said: bool
) -> None:
    asked = {"vllm-notify@q.service": {"Result": result}}
    monkeypatch.setattr(doctor_monitor, "unit_properties", lambda host, unit, *names: asked[unit])
    settings = SimpleNamespace(notifies=notifies)
    scene: Any = SimpleNamespace(settings=settings, host=None, layout=Layout("q"), service="q")
    assert [each.id for each in doctor_monitor.check_telling(scene)] == ["notify-failed"] * is_said
