"""What vLLM runs on, as far as its memory is concerned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from installer.spec.vendors import of_kind


@dataclass(frozen=True)
class Device:
    """The kind of engine, the memory of one GPU or of the host, vLLM's share of it, and the GPU's name."""

    kind: str
    memory: int
    share: float
    name: str = ""
    is_unified: bool = False  # a GPU with the host's memory: of it CUDA's total is all

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def usable(self) -> int:
        vendor = None if self.is_unified else of_kind(self.kind)
        reserved = max(vendor.reserved, int(self.memory * vendor.reserved_share)) if vendor else 0
        return max(0, math.ceil((self.memory - reserved) * self.share))
