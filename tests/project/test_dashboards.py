"""The dashboards that ship are those of scripts/boards/, and what Grafana can show."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from installer.monitor.collect import FAMILIES, SOURCES
from scripts import dashboards
from tests.kit import grafana
from tests.kit.figures import figures

OURS = re.compile(r"vllm_install_\w+")
BY_GUARD = {
    f"vllm_install_{name}_total"
    for name in ("requests", "errors", "refused", "prompt_tokens", "cached_tokens", "completion_tokens")
}

needs_sdk = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('grafana_foundation_sdk')")


@needs_sdk
def test_what_ships_is_what_is_written() -> None:
    assert dashboards.texts() == {f.name: f.read_text() for f in dashboards.SHIPPED.iterdir()}, "make docs"


@needs_sdk
@pytest.mark.parametrize("name", grafana.NAMES)
def test_a_dashboard_holds_to_grafanas_schema(name: str) -> None:
    assert grafana.faults(grafana.shipped(name)) == []


@needs_sdk
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda panel: panel.update(titel="x"), "titel: Grafana knows none"),
        (lambda panel: panel.update(title=1), "title: 1 is no"),
        (lambda panel: panel["targets"][0].pop("refId"), "refId: missing"),
        (lambda panel: panel["options"].update(colorMode="blau"), "colorMode: 'blau' is no"),
        (
            lambda panel: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0].update(value="1"),
            "value: '1' is no",
        ),
    ],
)
def test_what_grafana_does_not_know_is_found(change: Any, said: str) -> None:
    board = grafana.shipped("host")
    change(grafana.panels(board)[0])
    assert [fault for fault in grafana.faults(board) if said in fault]


@pytest.mark.parametrize("name", grafana.NAMES)
def test_panels_have_a_place_and_a_number_of_their_own(name: str) -> None:
    board = grafana.shipped(name)
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = [cells(panel["gridPos"]) for panel in board["panels"]]
    assert not [pair for pair in itertools.combinations(taken, 2) if pair[0] & pair[1]]
    assert all(0 <= x < 24 for place in taken for x, _ in place)


def cells(place: dict[str, int]) -> set[tuple[int, int]]:
    columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return set(itertools.product(columns, rows))


@pytest.mark.parametrize("name", grafana.NAMES)
def test_what_a_panel_leaves_open_is_what_a_reader_chooses(name: str) -> None:
    board = grafana.shipped(name)
    known = {each["name"] for each in board["templating"]["list"]} | {"__rate_interval", "__interval", "__range"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) <= known


def test_what_is_asked_for_is_what_is_written() -> None:
    """By the collector, and by the guard of each engine; what stands in for the collector writes no more either."""
    written = {family.name for family in FAMILIES} | {each.name for source in SOURCES for each in source.families}
    named = {name for board in grafana.NAMES for each in grafana.asked(board) for name in OURS.findall(each.expr)}
    assert named - BY_GUARD <= written
    assert set(OURS.findall(figures("qwen3vl", 1.0, 0.0, 0.0))) <= written


@pytest.mark.parametrize("name", grafana.NAMES)
def test_every_question_is_of_the_hosts_that_were_chosen(name: str) -> None:
    """Of one Prometheus for several hosts a reader sees one of them, or all."""
    assert [each.expr for each in grafana.asked(name) if 'host=~"$host"' not in each.expr] == []
    variables = [each["name"] for each in grafana.shipped(name)["templating"]["list"]]
    assert variables[:2] == ["datasource", "host"]
