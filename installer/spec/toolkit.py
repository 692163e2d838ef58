"""The CUDA toolkit that was chosen for a service."""

from __future__ import annotations

from dataclasses import dataclass

NONE, WHEELS, HOST = "none", "wheels", "host"
# Without this, vLLM, FlashInfer and the rest take whatever they find in /usr/local/cuda.
NOWHERE = "/nonexistent"


@dataclass(frozen=True)
class Toolkit:
    """What was chosen for one service, as it stands in its unit."""

    mode: str = NONE
    home: str = NOWHERE  # CUDA_HOME
    attention: str = ""  # the backend that vLLM is told to take, where its own choice would need a compiler
    capabilities: str = ""  # of the GPUs that kernels are compiled for, such as 9.0; empty where none are
