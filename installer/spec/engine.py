"""An engine as data: which vLLM, which packages, which Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Engine:
    """A vLLM that is wanted, down to the version of every package. Holds no secret: it is kept in the state."""

    id: str
    kind: str
    vllm_version: str
    python: Path
    lock: str
    request: str
    torch_backend: str = ""

    @property
    def packages(self) -> list[str]:
        return versions(self.lock)

    @property
    def is_tested(self) -> bool:
        """Its packages are those of a lock that came with this tool, and each wheel is checked against it."""
        return HASH in self.lock

    @property
    def has_torch(self) -> bool:
        return any(line.startswith("torch==") for line in self.packages)


HASH = " --hash=sha256:"


def versions(lock: str) -> list[str]:
    """NAME==VERSION of every package: what makes one engine different from another."""
    return [line.partition(HASH)[0] for line in lock.splitlines() if "==" in line]
