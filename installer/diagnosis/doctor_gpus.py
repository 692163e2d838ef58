"""What doctor finds of the GPUs themselves: what they say of their state, and what the kernel said of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from installer.checks.gpus import figures
from installer.diagnosis import gpu_faults
from installer.diagnosis.finding import Finding
from installer.diagnosis.gpu_faults import Seen
from installer.diagnosis.scene import Scene
from installer.runtime.vllm_text import one_line
from installer.spec.target import Target
from installer.spec.vendors import of_kind
from installer.units import journal


def check_state(scene: Scene) -> Iterator[Finding]:
    """By the driver's own verdict, where it still answers: what a GPU did in the past may be over."""
    if _is_of_gpus(scene) and not scene.facts.nvidia_error:
        yield from _findings(scene, gpu_faults.of_reading(figures.read(scene.host)))


def check_kernel(scene: Scene) -> Iterator[Finding]:
    """What the kernel said since the service last changed its state, or in the last day."""
    if not _is_of_gpus(scene):
        return
    lines = [entry.text for entry in journal.entries(scene.host, 2000, *since(scene))]
    yield from _findings(scene, gpu_faults.of_lines(lines))


def since(scene: Scene) -> tuple[str, ...]:
    """Which entries of the journal are the kernel's of the time that matters to the service."""
    began = scene.unit.get("ActiveEnterTimestamp") if scene.active == "active" else ""
    return "_TRANSPORT=kernel", "--boot", f"--since={began or '-1d'}"


def _is_of_gpus(scene: Scene) -> bool:
    proved = _proved(scene)
    return of_kind(proved.engine.kind if proved else scene.settings.engine) is not None


def _proved(scene: Scene) -> Target | None:
    return scene.state.proved if scene.state else None


def _findings(scene: Scene, found: list[Seen]) -> Iterator[Finding]:
    """Those of the service's own GPUs, and those of which nobody can say whose they are; a fault of several is one."""
    places = {gpu.pci: gpu.uuid for gpu in scene.facts.gpus}
    together: dict[str, list[tuple[Seen, str, list[str]]]] = {}
    for seen in found:
        uuid = seen.uuid or places.get(seen.pci, "")
        if units := _units(scene, uuid):
            together.setdefault(seen.fault.id, []).append((seen, uuid or seen.pci, units))
    for each in together.values():
        units = list(dict.fromkeys(unit for *_, units in each for unit in units))
        yield _finding(scene, [seen for seen, *_ in each], [gpu for _, gpu, _ in each if gpu], units)


def _finding(scene: Scene, seen: list[Seen], gpus: list[str], units: list[str]) -> Finding:
    first = seen[0]
    words = {"unit": " ".join(units), "gpu": shlex.quote(",".join(dict.fromkeys(gpus)) or "0")}
    commands = [each.format(**words, service=scene.service, watts=first.watts) for each in first.fault.commands]
    evidence = one_line("; ".join(dict.fromkeys(each.evidence for each in seen)))
    return Finding(first.fault.id, first.cause, evidence, tuple(commands), first.fault.severity)


def _units(scene: Scene, uuid: str) -> list[str]:
    """Which of the service's units use it: with replicas, those that have to stop; none where it is another's."""
    proved = _proved(scene)
    engines = scene.replicas or (scene,)
    given = {
        each.member.stem: {gpu.uuid for gpu in (proved.of(each.number).gpus if proved else ())} for each in engines
    }
    if not uuid or not any(given.values()):
        return [scene.member.stem]
    return [stem for stem, gpus in given.items() if uuid in gpus]
