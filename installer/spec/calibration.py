"""What vLLM measured of memory at a start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """What vLLM measured at a start that succeeded. Holds for the same engine, model, GPUs and share only."""

    available: int  # bytes of cache on one GPU
    tokens: int
    context: int  # the context that `tokens` was reported for
    weights: int = 0
    graphs: int = 0
    other: int = 0  # the CPU engine's own memory, weights included
    share: float = 0.0  # --gpu-memory-utilization at that start; 0 where the log does not say
