"""AMD's GPUs: what the amdgpu driver says of them in /sys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.spec.facts import Facts, Gpu
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.vendors import AMD


def find(host: Host) -> tuple[tuple[Gpu, ...], str]:
    """The compute nodes that the driver offers; a node with no SIMD units is the CPU."""
    driver = host.word(Path("/sys/module/amdgpu/version"))
    gpus: list[Gpu] = []
    nodes = host.glob("/sys/class/kfd/kfd/topology/nodes/*/properties")
    for node in sorted(nodes, key=lambda path: int(path.parent.name)):
        values = dict(re.findall(r"^(\w+) (\d+)$", host.read(node) or "", re.MULTILINE))
        if int(values.get("simd_count", 0)):
            gpus.append(_gpu(host, values, driver, len(gpus)))
    return tuple(gpus), ""


def use(host: Host) -> Sequence[Gpu]:
    return find(host)[0]


def problems(settings: Settings, facts: Facts, usable: Sequence[Gpu], chosen: Sequence[Gpu]) -> Iterator[Problem]:
    others = [gpu.name for gpu in facts.gpus if gpu.vendor == AMD.name]
    if not usable:
        yield Problem(
            tr("no AMD GPU was found that vLLM supports"),
            tr("found: {others}", others=", ".join(others)) if others else tr("the amdgpu driver shows none"),
            tr("load the driver (sudo modprobe amdgpu) if there is such a GPU, or choose --engine auto"),
        )


def _gpu(host: Host, values: Mapping[str, str], driver: str, index: int) -> Gpu:
    target = int(values.get("gfx_target_version", 0))
    arch = f"gfx{target // 10000}{target // 100 % 100}{target % 100:x}"
    render = f"renderD{values.get('drm_render_minor', '')}"
    device = Path("/sys/class/drm") / render / "device"
    pci, unique = _address(values), int(values.get("unique_id", 0))
    busy = host.word(device / "gpu_busy_percent")
    return Gpu(
        vendor=AMD.name,
        name=host.word(device / "product_name") or f"AMD {arch}",
        uuid=f"GPU-{unique:016x}" if unique else pci,
        driver=driver,
        arch=arch,
        memory_total=int(host.word(device / "mem_info_vram_total") or 0),
        memory_used=int(host.word(device / "mem_info_vram_used") or 0),
        index=index,
        pci=pci,
        node=f"/dev/dri/{render}",
        busy=int(busy) if busy.isdecimal() else None,
    )


def _address(values: Mapping[str, str]) -> str:
    """The kernel packs bus, device and function into one number."""
    place = int(values.get("location_id", 0))
    domain, bus, slot = int(values.get("domain", 0)), place >> 8 & 0xFF, place >> 3 & 0x1F
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{place & 7}"
