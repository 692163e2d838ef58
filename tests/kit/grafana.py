"""Dashboards as Grafana reads them: what they ask of Prometheus, and whether they hold to its types."""

from __future__ import annotations

import enum
import importlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from installer.base.assets import DATA

NAMES = ("host", "service", "keys", "gpus")
SDK = "grafana_foundation_sdk.models"
# Where the schema says only that there is something, and the kind of panel what.
MODULES = {"state-timeline": "statetimeline"}


@dataclass(frozen=True)
class Asked:
    """One expression, and where it stands."""

    board: str
    panel: str
    expr: str


def shipped(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "dashboards" / f"{name}.json").read_text())
    return loaded


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def asked(name: str) -> Iterator[Asked]:
    board = shipped(name)
    for panel in panels(board):
        for target in panel["targets"]:
            yield Asked(name, panel["title"], target["expr"])
    for note in board["annotations"].get("list", ()):
        yield Asked(name, f"annotation {note['name']}", note["expr"])


def filled(expr: str, **chosen: str) -> str:
    """As Grafana sends it, with what a reader has chosen."""
    return re.sub(r"\$(\w+)", lambda found: chosen[found[1]], expr)


def faults(board: Mapping[str, Any]) -> list[str]:
    """Where a dashboard does not hold to the types that Grafana generates of its schema."""
    found = list(_faults(board, _model("dashboard", "Dashboard"), "dashboard"))
    for panel in panels(board):
        kind = MODULES.get(panel["type"], panel["type"])
        at = f"panel {panel['title']!r}"
        if options := panel.get("options"):
            found += _faults(options, _model(kind, "Options"), f"{at}: options")
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            found += _faults(custom, _model(kind, "FieldConfig"), f"{at}: custom")
    return found


def _model(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{SDK}.{module}"), name)


def _faults(value: Any, kind: Any, at: str) -> Iterator[str]:
    kind = _model("prometheus", "Dataquery") if getattr(kind, "__name__", "") == "Dataquery" else kind
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(kind) if value is None or each is not type(None)]
        yield from min((list(_faults(value, each, at)) for each in kinds), key=len)
    elif origin is list and isinstance(value, list):
        for index, each in enumerate(value):
            yield from _faults(each, typing.get_args(kind)[0], f"{at}[{index}]")
    elif origin is dict and isinstance(value, dict):
        for name, each in value.items():
            yield from _faults(each, typing.get_args(kind)[1], f"{at}.{name}")
    elif hasattr(kind, "from_json") and isinstance(value, dict):
        yield from _of_class(value, kind, at)
    elif not _is_plainly(value, kind, origin):
        yield f"{at}: {value!r:.40} is no {kind}"


def _of_class(value: Mapping[str, Any], kind: Any, at: str) -> Iterator[str]:
    hints = {name if name in value else _in_json(name): hint for name, hint in typing.get_type_hints(kind).items()}
    for name in value.keys() - hints.keys():
        yield f"{at}.{name}: Grafana knows none"
    for name, hint in hints.items():
        if name in value:
            yield from _faults(value[name], hint, f"{at}.{name}")
        elif type(None) not in typing.get_args(hint):
            yield f"{at}.{name}: missing"


def _in_json(name: str) -> str:
    first, *others = name.removesuffix("_val").split("_")
    return first + "".join(word.capitalize() for word in others)


def _is_plainly(value: Any, kind: Any, origin: Any) -> bool:
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if kind is object or not isinstance(kind, type):
        return kind is object
    if issubclass(kind, enum.Enum):
        return value in [each.value for each in kind]
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
