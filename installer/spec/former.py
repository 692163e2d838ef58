"""The unit that a service was adopted from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Former:
    """As it was; of its files only those are listed that stand where ours go. Their texts lie apart, 0600."""

    unit: str
    enabled: bool
    active: bool
    files: tuple[tuple[Path, int], ...] = ()
    ejected: bool = False  # it was ours before, and once the service is proved it is ours again

    @property
    def paths(self) -> frozenset[Path]:
        return frozenset(path for path, _ in self.files)
