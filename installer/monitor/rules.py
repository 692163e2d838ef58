"""Alert rules for Prometheus, from data/alerts.json: each names what doctor finds where it fires, and its section."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import yaml

from installer.base import datafile
from installer.base.assets import DATA

TABLE = DATA / "alerts.json"
RUNBOOKS = "docs/alerts.md"  # of this tool
SPAN = re.compile(r"<(\d+)([smhd]?)>")  # in an expression: a span that a test may shorten, in seconds without a unit
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Alert:
    name: str
    severity: str  # critical: somebody is not served; warning: somebody will be, or is served badly
    expr: str
    wait: str  # how long it has to hold
    summary: str
    means: str
    doctor: tuple[str, ...]  # the findings that explain it, the likeliest first
    commands: tuple[str, ...]
    planted: str  # how it was made to fire

    @property
    def anchor(self) -> str:
        return self.name.lower()


@functools.cache
def alerts() -> tuple[Alert, ...]:
    table = datafile.read(TABLE, "alerts")
    fields = "name severity expr for summary means doctor commands planted"
    return tuple(
        Alert(
            part.text("name"), part.text("severity"), part.text("expr"), part.text("for"), part.text("summary"),
            part.text("means"), part.texts("doctor"), part.texts("commands"), part.text("planted"),
        )
        for part in table.sections("alerts", fields)
    )  # fmt: skip


def rules(scale: float = 1, runbooks: str = RUNBOOKS) -> str:
    """The file for Prometheus; `scale` shortens how long things have to hold, for a test that fires each of them."""
    group = {"name": "vllm-install", "rules": [_rule(alert, scale, runbooks) for alert in alerts()]}
    return yaml.safe_dump({"groups": [group]}, sort_keys=False, width=1000)


def _rule(alert: Alert, scale: float, runbooks: str) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": scaled(alert.expr, scale),
        "for": scaled(f"<{alert.wait}>", scale),
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "doctor": ", ".join(alert.doctor),
            "command": "; ".join(alert.commands),
            "runbook_url": f"{runbooks}#{alert.anchor}",
        },
    }


def scaled(text: str, scale: float) -> str:
    return SPAN.sub(lambda span: _shorter(int(span[1]), span[2], scale), text)


def _shorter(number: int, unit: str, scale: float) -> str:
    if scale == 1:
        return f"{number}{unit}"
    seconds = number * SECONDS[unit] * scale
    return f"{int(seconds * 1000)}ms" if unit else f"{seconds:g}"
