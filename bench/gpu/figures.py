"""What the collector reads of each GPU beside what nvidia-smi says at the same moment, field by field.

Usage: python bench/gpu/figures.py [--metrics URL] [-- COMMAND…]

With a command, which makes a load, also the energy that was used meanwhile; with the address of a service's /metrics
(its key in METRICS_KEY) that energy for each token that was generated. Needs nothing but Python and a driver.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from installer.runtime import vllm_gpus  # noqa: E402

MIB = 1024**2
# What we call it, what nvidia-smi calls it, what one of its units is of ours, and how far both may be apart: what moves
# between two looks by a share, what is counted not at all.
FIELDS: tuple[tuple[str, str, float, float], ...] = (
    ("memory_used", "memory.used", MIB, 0.01),
    ("memory_total", "memory.total", MIB, 0.001),
    ("utilization", "utilization.gpu", 0.01, 0.2),
    ("power", "power.draw.instant", 1, 0.2),
    ("power_limit", "enforced.power.limit", 1, 0),
    ("power_usual_limit", "power.default_limit", 1, 0),
    ("temperature", "temperature.gpu", 1, 0.1),
    ("memory_temperature", "temperature.memory", 1, 0.1),
    ("clock_sm", "clocks.sm", 1e6, 0.2),
    ("clock_memory", "clocks.mem", 1e6, 0),
    ("ecc_corrected", "ecc.errors.corrected.aggregate.total", 1, 0),
    ("ecc_uncorrected", "ecc.errors.uncorrected.aggregate.total", 1, 0),
    ("ecc_uncorrected_now", "ecc.errors.uncorrected.volatile.total", 1, 0),
    ("remapped_corrected", "remapped_rows.correctable", 1, 0),
    ("remapped_uncorrected", "remapped_rows.uncorrectable", 1, 0),
    ("remapped_pending", "remapped_rows.pending", 1, 0),
    ("remapped_failed", "remapped_rows.failure", 1, 0),
)
WORDS = {"Yes": "1", "No": "0"}


def smi(field: str) -> list[str]:
    """Asked one by one: a field that this version does not know fails the whole question."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = [line.strip() for line in done.stdout.splitlines()]
    return [WORDS.get(each, each) for each in said] if done.returncode == 0 else []


def sample() -> list[dict[str, object]]:
    began = time.monotonic()
    said = vllm_gpus.ask(60)
    print(f"asked in {time.monotonic() - began:.3f} s: {[each for each in said if 'index' not in each]}")
    return [each for each in said if "index" in each]


def compare(gpus: list[dict[str, object]]) -> int:
    apart = 0
    for ours, theirs, unit, share in FIELDS:
        for gpu, text in zip(gpus, smi(theirs) or ["-"] * len(gpus), strict=True):
            values = gpu["figures"]
            assert isinstance(values, dict)
            mine = values.get(ours)
            known = float(text) * unit if re.fullmatch(r"-?\d+(\.\d+)?", text) else None
            agree = (
                mine == known if None in (mine, known) else abs(mine - known) <= share * max(abs(known), unit) + 1e-6
            )
            apart += not agree
            print(f"{gpu['index']}  {ours:22} {mine!s:>18}  {theirs:40} {text:>12}  {'' if agree else 'APART'}")
    print(
        f"{apart} apart; throttled: {[gpu.get('throttled') for gpu in gpus]}; NVML's verdict and energy have no field"
    )
    return apart


def tokens(url: str) -> float:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['METRICS_KEY']}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
    return sum(float(n) for n in re.findall(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)$", text, re.MULTILINE))


def energy(gpus: list[dict[str, object]]) -> float:
    values = [gpu["figures"] for gpu in gpus]
    return sum(each["energy"] for each in values if isinstance(each, dict))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", help="address of a service's /metrics")
    parser.add_argument("command", nargs="*", help="what makes the load")
    asked = parser.parse_args()
    before = sample()
    apart = compare(before)
    if asked.command:
        told = tokens(asked.metrics) if asked.metrics else 0.0
        began = time.monotonic()
        subprocess.run(asked.command, check=True)
        used, seconds = energy(sample()) - energy(before), time.monotonic() - began
        print(f"{used:.0f} J in {seconds:.1f} s: {used / seconds:.0f} W of all GPUs")
        if asked.metrics and (made := tokens(asked.metrics) - told):
            print(f"{made:.0f} tokens generated: {used / made:.3f} J each")
    return min(apart, 1)


if __name__ == "__main__":
    sys.exit(main())
