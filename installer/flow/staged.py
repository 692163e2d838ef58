"""What a host would serve once it is switched, said so that hosts can compare it before any of them is."""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.host import Host
from installer.families.known import family_of
from installer.flow.wanted import Wanted
from installer.runtime.vllm_group import without_place
from installer.weights.contents import identity


@dataclass(frozen=True)
class Staged:
    engine: str
    model: str
    words: tuple[str, ...]  # that the engine is started with, but for those that are this host's own


def of(want: Wanted, host: Host) -> Staged:
    target = want.target
    models = ", ".join(identity(model, host) for model in target.read)
    return Staged(target.engine.id, models, tuple(without_place(list(family_of(target.settings).arguments(target)))))
