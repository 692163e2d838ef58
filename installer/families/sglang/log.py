"""What SGLang says about memory while it starts, read back as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from installer.base.sizes import GIB
from installer.families.family import Log, Refusal
from installer.spec.calibration import Calibration

_LINES = {
    "weights": re.compile(r"Load weight end\..*mem usage=([\d.]+) GB"),
    "tokens": re.compile(r"KV Cache is allocated\..*#tokens: (\d+)"),
    "keys": re.compile(r"KV Cache is allocated\..*\bK size: ([\d.]+) GB"),
    "values": re.compile(r"KV Cache is allocated\..*\bV size: ([\d.]+) GB"),
    "context": re.compile(r"max_total_num_tokens=.*context_len=(\d+)"),
}
_START = "Load weight begin"
_NO_ROOM = re.compile(
    "Please try to increase --mem-fraction-static|Loaded weights leave no GPU memory for the KV cache"
)


def read_report(lines: Iterable[str]) -> Calibration | None:
    """The last complete report in a log; None where SGLang did not come that far."""
    found: dict[str, float] = {}
    for line in lines:
        if _START in line:
            found = {}
        for name, pattern in _LINES.items():
            if match := pattern.search(line):
                found[name] = float(match[1])
    if not found.get("tokens") or not found.get("context"):
        return None
    cache = found.get("keys", 0.0) + found.get("values", 0.0)
    return Calibration(
        available=round(cache * GIB),
        tokens=int(found["tokens"]),
        context=int(found["context"]),
        weights=round(found.get("weights", 0.0) * GIB),
    )


def read_refusal(lines: Iterable[str]) -> Refusal | None:
    """It says that memory is short, never by how much."""
    return Refusal() if any(_NO_ROOM.search(line) for line in lines) else None


LOG = Log(read_report, read_refusal)
