"""What the GPUs say of themselves: memory, power, heat, errors, and what the driver wants done; asked by a child."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from installer.base.assets import RUNTIME
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import LOCKS
from installer.checks.gpus import nvidia
from installer.runtime import vllm_gpus
from installer.runtime.vllm_text import one_line
from installer.spec.facts import pci_address
from installer.spec.vendors import NVIDIA

PROGRAM = RUNTIME / "vllm_gpus.py"
LOCK = LOCKS / "gpus"  # held by whoever asks the driver, for as long as it has not answered
WITHIN = 6.0  # seconds, of the fifteen between two looks


@dataclass(frozen=True)
class Figures:
    """One GPU at this moment. A figure that its driver does not know is not there."""

    index: int
    vendor: str
    uuid: str = ""
    name: str = ""
    pci: str = ""
    driver: str = ""
    lost: str = ""  # why it does not answer any more
    throttled: frozenset[str] | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    gpus: tuple[Figures, ...] = ()
    why: str = ""  # why not all could be read
    uvm: str = ""  # why nothing can use CUDA, although the driver answers

    @property
    def is_of_gpus(self) -> bool:
        """Whether this host has any, as far as its bus and its drivers show."""
        return bool(self.gpus or self.why)


def read(host: Host) -> Reading:
    """Bounded in time whatever the driver does; what it said before it hung is kept."""
    is_loaded = host.exists(Path(NVIDIA.driver))
    if not is_loaded and not host.glob("/sys/class/kfd/kfd/topology/nodes/*/properties"):
        cards = ", ".join(nvidia.cards(host))
        return Reading(
            why=tr("no driver is loaded for the NVIDIA card at {addresses}", addresses=cards) if cards else ""
        )
    root = () if host.root == Path("/") else (str(host.root),)
    lock = LOCK if os.geteuid() == 0 else None
    text, is_whole = host.ask(sys.executable, "-EsS", PROGRAM, *root, within=WITHIN, lock=lock)
    said = vllm_gpus.read(text)
    heads = [each for each in said if "index" not in each]
    why = next((one_line(str(each["why"])) for each in heads if each.get("why")), "")
    if not is_whole:
        why = tr("the GPUs' driver did not answer within {seconds:g} s", seconds=WITHIN)
    driver = next((str(each["driver"]) for each in heads if each.get("driver")), "")
    uvm = next((str(each["uvm"]) for each in heads if each.get("uvm")), "")
    return Reading(tuple(_figures(each, driver) for each in said if "index" in each), why, uvm)


def _figures(said: Mapping[str, object], driver: str) -> Figures:
    words = {name: one_line(str(said.get(name, ""))) for name in ("vendor", "uuid", "name", "lost")}
    index, throttled, values = said["index"], said.get("throttled"), said.get("figures")
    return Figures(
        index=index if isinstance(index, int) else -1,
        driver=one_line(str(said.get("driver", driver))),
        pci=_address(str(said.get("pci", ""))),
        throttled=frozenset(map(str, throttled)) if isinstance(throttled, list) else None,
        values={str(name): float(value) for name, value in values.items()} if isinstance(values, dict) else {},
        **words,
    )


def _address(text: str) -> str:
    return pci_address(text if re.search(r"\.\d$", text) else f"{text}.0")
