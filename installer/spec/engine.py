"""An engine as data: of which family and version, which packages, which Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from installer.spec.settings import Settings


@dataclass(frozen=True)
class Engine:
    """An engine that is wanted, down to the version of every package. Holds no secret: it is kept in the state."""

    id: str
    kind: str
    vllm_version: str
    python: Path
    lock: str
    request: str
    torch_backend: str = ""
    family: str = Settings.engine_family
    image: str = ""  # the ID of a container image; without one its packages lie in a virtual environment

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


def checksums(lock: str) -> dict[str, list[str]]:
    """NAME==VERSION -> the sha256 of each wheel that may be taken, where the lock says it."""
    lines = [line.split(HASH) for line in lock.splitlines()]
    return {package: found for package, *found in lines if found}


def exact(lock: str) -> str:
    """For an installer: `==2.13.0` would also take 2.13.0+cpu, and prefer it; `===` takes that version alone."""
    return "".join(line.replace("==", "===", 1) + "\n" for line in lock.splitlines())
