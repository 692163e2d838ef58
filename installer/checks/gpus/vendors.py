"""The one list of vendors: who finds GPUs on a host, and judges them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from installer.base.host import Host
from installer.checks.gpus import amd, nvidia
from installer.spec import vendors
from installer.spec.facts import Facts, Gpu
from installer.spec.problem import Problem
from installer.spec.settings import Settings


class Module(Protocol):
    def find(self, host: Host) -> tuple[tuple[Gpu, ...], str]:
        """The GPUs with who holds them, and why those that are there cannot be used."""

    def use(self, host: Host) -> Sequence[Gpu]:
        """The GPUs with what they do at this moment; asked again and again, so within seconds or not at all."""

    def problems(
        self, settings: Settings, facts: Facts, usable: Sequence[Gpu], chosen: Sequence[Gpu]
    ) -> Iterator[Problem]:
        """Why those that were chosen, of those that the engine can use, will not do; or why there are none."""


MODULES: Mapping[str, Module] = {vendors.NVIDIA.kind: nvidia, vendors.AMD.kind: amd}
