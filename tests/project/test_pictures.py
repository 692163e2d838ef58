"""The pictures of the dashboards: drawn of what Prometheus answered, and of the panels that ship."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from scripts.figures import shown, ticks
from scripts.panels import DARK, LIGHT, THEMES, picture
from scripts.screens import IMAGES
from tests.kit import grafana

SPAN = (1000.0, 1300.0)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def drawn(name: str, lines: list[dict[str, Any]]) -> str:
    board = grafana.shipped(name)
    return picture(board, {str(panel["id"]): lines for panel in grafana.panels(board)}, SPAN, LIGHT, [1200.0])


@pytest.mark.parametrize("name", grafana.NAMES)
def test_each_panel_shows_what_was_answered(name: str) -> None:
    line = {"name": "<b>&'", "labels": {"gpu": "<i>"}, "points": [(1000.0, 0.0), (1150.0, float("nan")), (1300.0, 1.0)]}
    said = texts(drawn(name, [line, {**line, "name": "limit"}]))
    assert {panel["title"] for panel in grafana.panels(grafana.shipped(name))} <= set(said)
    assert "<b>&'" in said
    assert "No data" not in said


@pytest.mark.parametrize("name", grafana.NAMES)
def test_a_panel_without_an_answer_says_so(name: str) -> None:
    kinds = [panel["type"] for panel in grafana.panels(grafana.shipped(name))]
    assert texts(drawn(name, [])).count("No data") == sum(kind in ("stat", "timeseries", "bargauge") for kind in kinds)


def test_dark_is_another_picture_of_the_same() -> None:
    board = grafana.shipped("keys")
    answers: dict[str, list[Any]] = {str(panel["id"]): [] for panel in grafana.panels(board)}
    light, dark = (picture(board, answers, SPAN, theme, []) for theme in (LIGHT, DARK))
    assert texts(light) == texts(dark)
    assert LIGHT.page not in dark


@pytest.mark.parametrize("name", grafana.NAMES)
@pytest.mark.parametrize("suffix", THEMES)
def test_the_pictures_are_those_of_the_panels_that_ship(name: str, suffix: str) -> None:
    """make screens"""
    said = texts((IMAGES / f"dashboard-{name}{suffix}.svg").read_text())
    assert {panel["title"] for panel in grafana.panels(grafana.shipped(name))} <= set(said)
    assert "No data" not in said


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "short", "0"), (0.1234, "short", "0.12"), (2554, "suffix: tok/s", "2.55k tok/s"),
        (17.94, "reqps", "17.9 req/s"),
        (0, "s", "0 s"), (0.0097, "s", "9.7 ms"), (125, "s", "2.08 min"), (86400 * 5, "s", "5 days"),
        (0.7, "percentunit", "70%"),
        (1.98e9, "hertz", "1.98 GHz"), (3260, "watt", "3.26k W"), (1, "bool_yes_no", "Yes"), (1000, "short", "1k"),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize("top", [0, 1e-6, 0.5, 0.99, 1, 7, 95, 100, 2.5e9])
def test_an_axis_reaches_above_all_and_has_few_steps(top: float) -> None:
    steps = ticks(top)
    assert steps[0] == 0
    assert steps[-1] >= top
    assert 2 <= len(steps) <= 6
