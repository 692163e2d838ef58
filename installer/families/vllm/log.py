"""What vLLM says about memory while it starts, read back as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from installer.base.sizes import GIB
from installer.families.family import Log, Refusal
from installer.spec.calibration import Calibration

_LINES = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "available": re.compile(r"Available KV cache memory: (-?[\d.]+) GiB"),
    # The CPU engine has words of its own for the same number.
    "available_cpu": re.compile(r"(?:Auto set|Explicitly set) \(([\d.]+)/[\d.]+\) GiB for KV cache"),
    "explicit": re.compile(r"reserved ([\d.]+) GiB memory for KV Cache as specified"),
    "other": re.compile(r"([\d.]+) GiB memory was consumed by non-kv usages"),
    "graphs": re.compile(r"Graph capturing finished in .*? took (-?[\d.]+) GiB"),
    "tokens": re.compile(r"KV cache size: ([\d,]+) tokens"),
    "share": re.compile(r"(?:'gpu_memory_utilization': |current --gpu-memory-utilization=)([\d.]+)"),
    "context": re.compile(r"Maximum concurrency for ([\d,]+) tokens per request"),
}
_START = "Initializing a V1 LLM engine"
_NEEDED = re.compile(r"max seq len \((\d+)\), \(?([\d.]+) GiB KV cache is needed")
_HAD = re.compile(r"available KV cache memory \(([\d.]+) GiB\)")
_LARGEST = re.compile(r"estimated maximum model length is (\d+)")


def read_report(lines: Iterable[str]) -> Calibration | None:
    """The last complete report in a log; None where vLLM did not come that far."""
    found: dict[str, float] = {}
    for line in lines:
        if _START in line:  # what the server says of its flags comes before
            found = {"share": found["share"]} if "share" in found else {}
        for name, pattern in _LINES.items():
            match = pattern.search(line)
            # Workers say the same thing each; the smallest cache is the one that counts.
            if match:
                value = float(match[1].replace(",", ""))
                found[name] = min(value, found.get(name, value)) if name == "available" else value
    available = next((found[name] for name in ("available", "available_cpu", "explicit") if name in found), 0.0)
    if available <= 0 or not found.get("tokens") or not found.get("context"):
        return None
    return Calibration(
        available=_bytes(available),
        tokens=int(found["tokens"]),
        context=int(found["context"]),
        weights=_bytes(found.get("weights", 0.0)),
        graphs=_bytes(max(found.get("graphs", 0.0), 0.0)),
        other=_bytes(found.get("other", 0.0)),
        share=found.get("share", 0.0),
    )


def read_refusal(lines: Iterable[str]) -> Refusal | None:
    """vLLM's refusal for want of cache memory, wherever in a traceback it stands; None for any other failure."""
    text = " ".join(line.strip() for line in lines)
    needed, had, largest = (pattern.findall(text) for pattern in (_NEEDED, _HAD, _LARGEST))
    if needed and had:
        context, gib = needed[-1]
        return Refusal(int(context), float(gib), float(had[-1]), int(largest[-1]) if largest else 0)
    return Refusal() if "No available memory for the cache blocks" in text else None


def _bytes(gib: float) -> int:
    return round(gib * GIB)


LOG = Log(read_report, read_refusal)
