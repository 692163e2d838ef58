"""What a Prometheus answers to each panel of the dashboards: what their pictures are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.kit import grafana
from tests.kit.prometheus import Prometheus, Series

STEPS = 150  # points of a line


class Answers(NamedTuple):
    """By board and panel the series of all its queries, and when something was changed."""

    span: tuple[float, float]
    boards: dict[str, dict[str, Any]]
    marks: list[float]


def answers(prometheus: Prometheus, start: float, end: float, **chosen: str) -> Answers:
    step = max(1.0, (end - start) / STEPS)
    within = {"__interval": f"{step:.0f}s", "__rate_interval": f"{max(15, 4 * step):.0f}s"}
    chosen = {**chosen, **within, "__range": f"{end - start:.0f}s"}
    span = (start, end, step)
    boards = {name: _of_board(name, prometheus, span, chosen) for name in grafana.NAMES}
    return Answers((start, end), boards, _marks(prometheus, span, chosen))


def _marks(prometheus: Prometheus, span: tuple[float, float, float], chosen: dict[str, str]) -> list[float]:
    """Where each run of points of the annotation begins."""
    note = grafana.shipped("service")["annotations"]["list"][0]
    found = prometheus.between(grafana.filled(note["expr"], **chosen), *span)
    times = [at for series in found for at, _ in series.points]
    return [at for before, at in zip([0.0, *times], times, strict=False) if at - before > 2 * span[2]]


def _of_board(
    name: str, prometheus: Prometheus, span: tuple[float, float, float], chosen: dict[str, str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for panel in grafana.panels(grafana.shipped(name)):
        lines = []
        for target in panel["targets"]:
            expr = grafana.filled(target["expr"], **chosen)
            series = prometheus.between(expr, *span)
            lines += [_line(target["legendFormat"], each) for each in series]
        found[str(panel["id"])] = lines
    return found


def _line(legend: str, series: Series) -> dict[str, Any]:
    called = legend
    for label, value in series.labels.items():
        called = called.replace(f"{{{{{label}}}}}", value)
    return {"name": called, "labels": series.labels, "points": series.points}
