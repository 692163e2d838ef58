"""What is to be done on every host of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STAGE = ("--stage", "all")


@dataclass(frozen=True)
class Job:
    """What is to be done on every host: a verb of ours with its words, and what that reads from standard input."""

    what: str
    words: tuple[str, ...]
    text: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # words for one host alone
    stages: bool = False  # it has something slow that only adds
    looks: bool = True  # it can say beforehand what it would do
    of_keys: bool = False
    group_key: str | None = None  # by which the hosts are to know each other, where it is new to one

    def on(self, name: str, *words: str) -> dict[str, Any]:
        """The request for one host."""
        verb, *rest = self.words
        given = [verb, *self.more.get(name, ()), *words, *rest]
        return {"words": given, "text": self.text, "environment": dict(self.environment)}
