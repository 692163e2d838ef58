"""Numbers as Grafana shows them: with their unit, short, and the steps of an axis."""

from __future__ import annotations

import math

_TIMES = ((86400 * 7, "weeks"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BIG = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def shown(value: float, unit: str) -> str:
    if unit == "s":
        return _of_time(value)
    if unit == "percentunit":
        return f"{_short(value * 100)}%"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    after = {"reqps": " req/s", "watt": " W", "joule": " J", "celsius": " °C", "hertz": "Hz", "short": ""}
    return _scaled(value, after.get(unit, unit.removeprefix("suffix:")))


def _of_time(value: float) -> str:
    size, name = next((each for each in _TIMES if abs(value) >= each[0]), (1, "s"))
    return f"{_short(value / size)} {name}"


def _scaled(value: float, after: str) -> str:
    size, letter = next((each for each in _BIG if abs(value) >= each[0]), (1, ""))
    between = " " if letter and after == "Hz" else ""
    return f"{_short(value / size)}{between}{letter}{after}"


def _short(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(top: float) -> list[float]:
    """Round steps from 0 to just above the highest value."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top * 1.05 / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(each * size for each in (1, 2, 2.5, 5, 10) if each * size >= rough)
    return [step * number for number in range(math.ceil(top * 1.02 / step) + 1)]
