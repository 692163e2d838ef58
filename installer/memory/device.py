"""What vLLM runs on, as far as its memory is concerned."""

from __future__ import annotations

import math
from dataclasses import dataclass

GIB = 1024**3
MIB = 1024**2
# nvidia-smi counts what the driver keeps for itself; vLLM's share is of the rest. On large GPUs it is a share, too:
# 469 MiB of an H100's 81559, 616 of an H200's 143771.
DRIVER_RESERVED = 450 * MIB
DRIVER_SHARE = 0.0043


@dataclass(frozen=True)
class Device:
    """The kind of engine, the memory of one GPU or of the host, vLLM's share of it, and the GPU's name."""

    kind: str
    memory: int
    share: float
    name: str = ""

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def usable(self) -> int:
        reserved = max(DRIVER_RESERVED, int(self.memory * DRIVER_SHARE)) if self.kind == "cuda" else 0
        return max(0, math.ceil((self.memory - reserved) * self.share))
