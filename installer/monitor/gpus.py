"""Rows about GPUs: what they say of themselves, what the driver reported of them, and which services use them."""

from __future__ import annotations

from collections.abc import Iterator

from installer.checks.gpus import figures
from installer.checks.gpus.figures import Figures, Reading
from installer.diagnosis.gpu_faults import faults
from installer.monitor import gpu_events
from installer.monitor.gpu_events import Events
from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row
from installer.runtime import vllm_gpus
from installer.spec.vendors import NVIDIA

PREFIX = "vllm_install_gpu"
# A figure, the family that it is of, and what tells it from others there.
OF_FIGURES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("memory_used", "memory_used_bytes", {}),
    ("memory_total", "memory_total_bytes", {}),
    ("utilization", "utilization_ratio", {}),
    ("power", "power_watts", {}),
    ("power_limit", "power_limit_watts", {}),
    ("energy", "energy_joules_total", {}),
    ("temperature", "temperature_celsius", {}),
    ("memory_temperature", "memory_temperature_celsius", {}),
    ("clock_sm", "clock_hertz", {"clock": "sm"}),
    ("clock_memory", "clock_hertz", {"clock": "memory"}),
    ("ecc_corrected", "ecc_errors_total", {"kind": "corrected"}),
    ("ecc_uncorrected", "ecc_errors_total", {"kind": "uncorrected"}),
    ("remapped_corrected", "remapped_rows", {"kind": "corrected"}),
    ("remapped_uncorrected", "remapped_rows", {"kind": "uncorrected"}),
    ("remapped_pending", "remapped_rows", {"kind": "pending"}),
    ("remapped_failed", "remapped_rows", {"kind": "failed"}),
    ("pcie_replays", "pcie_replays_total", {}),
    ("nvlink_errors", "nvlink_errors_total", {}),
)
FAMILIES = tuple(
    Family(f"{PREFIX}{name}", about, kind)
    for name, about, kind in (
        ("s_readable", "Whether the drivers answered for all GPUs of the host.", "gauge"),
        ("_info", "A GPU of the host.", "gauge"),
        ("_memory_used_bytes", "Memory in use.", "gauge"),
        ("_memory_total_bytes", "Memory.", "gauge"),
        ("_utilization_ratio", "The share of time in which something ran.", "gauge"),
        ("_power_watts", "Power drawn.", "gauge"),
        ("_power_limit_watts", "Power that may be drawn.", "gauge"),
        ("_energy_joules_total", "Energy used since the driver was loaded.", "counter"),
        ("_temperature_celsius", "Temperature of the GPU.", "gauge"),
        ("_memory_temperature_celsius", "Temperature of its memory.", "gauge"),
        ("_clock_hertz", "Clocks.", "gauge"),
        ("_throttled", "Why it runs slower than it could.", "gauge"),
        ("_ecc_errors_total", "Errors of the memory in the card's lifetime.", "counter"),
        ("_remapped_rows", "Rows of the memory that were replaced; pending and failed are 0 or 1.", "gauge"),
        ("_pcie_replays_total", "Repeated transfers on the PCIe bus.", "counter"),
        ("_nvlink_errors_total", "Errors of all NVLinks together.", "counter"),
        ("_action_needed", "What the driver wants done before the GPU is of use again.", "gauge"),
        ("_xid_total", "Errors that the driver reported since the host started.", "counter"),
        ("_used_by", "A service that was given the GPU.", "gauge"),
        ("_lost", "A GPU that a service was given and that does not answer any more.", "gauge"),
    )
)
ACTIONS = {
    vllm_gpus.RESET: "reset", vllm_gpus.BUS_RESET: "reset", vllm_gpus.REBOOT: "reboot",
    vllm_gpus.SYSTEM_REBOOT: "reboot", vllm_gpus.DRAIN: "drain", vllm_gpus.DRAIN_PEERS: "drain",
}  # fmt: skip


def rows(moment: Moment) -> Iterator[Row]:
    """None on a host without GPUs; what one of them does not tell is not there."""
    reading = figures.read(moment.host)
    if not reading.is_of_gpus:
        return
    why = reading.why or ", ".join(f"GPU {gpu.index}: {gpu.lost}" for gpu in reading.gpus if gpu.lost)
    yield Row(f"{PREFIX}s_readable", {}, float(not why), note=why)
    for gpu in reading.gpus:
        if not gpu.lost:
            yield from _of_gpu(gpu)
    yield from _of_services(moment, reading)
    yield from _of_events(gpu_events.count(moment.host, reading.gpus), reading)


def _row(name: str, labels: dict[str, str], value: float) -> Row:
    return Row(f"{PREFIX}_{name}", labels, value)


def _of_gpu(gpu: Figures) -> Iterator[Row]:
    of = {"gpu": str(gpu.index), "uuid": gpu.uuid}
    yield _row("info", {**of, "name": gpu.name, "driver": gpu.driver, "vendor": gpu.vendor}, 1)
    for figure, family, labels in OF_FIGURES:
        if figure in gpu.values:
            yield _row(family, {**of, **labels}, gpu.values[figure])
    if gpu.throttled is not None:
        for reason in vllm_gpus.THROTTLED.values():
            yield _row("throttled", {**of, "reason": reason}, float(reason in gpu.throttled))
    if action := ACTIONS.get(int(gpu.values.get("recovery", 0))):
        yield _row("action_needed", {**of, "action": action}, 1)


def _of_events(events: Events, reading: Reading) -> Iterator[Row]:
    """Those in the table of faults from the beginning, at 0: of a counter that first appears no rate can be told."""
    expected = [str(xid) for fault in faults() for xid in fault.xids]
    here = {gpu.pci for gpu in reading.gpus if gpu.vendor == NVIDIA.name and gpu.pci and not gpu.lost}
    for pci in sorted({*here, *events.counts}):
        index, uuid = events.known.get(pci, (-1, ""))
        of = {"gpu": str(index) if uuid else "", "uuid": uuid or pci}
        counts = {**(dict.fromkeys(expected, 0) if pci in here else {}), **events.counts.get(pci, {})}
        for xid, number in sorted(counts.items()):
            yield _row("xid_total", {**of, "xid": xid}, number)


def _of_services(moment: Moment, reading: Reading) -> Iterator[Row]:
    """That one is lost is said only where all others were heard: a driver that hangs says nothing of any."""
    here = {gpu.uuid: gpu for gpu in reading.gpus if gpu.uuid and not gpu.lost}
    for service, uuid in _given(moment):
        if uuid in here:
            yield _row("used_by", {"gpu": str(here[uuid].index), "uuid": uuid, "service": service}, 1)
        elif not reading.why:
            yield _row("lost", {"uuid": uuid, "service": service}, 1)


def _given(moment: Moment) -> list[tuple[str, str]]:
    """Each service and the GPUs it was given; a slice of one is in nobody's list of GPUs."""
    found = []
    for scene in moment.services:
        target = scene.state.proved if scene.state else None
        placed = (*target.gpus, *(gpu for each in target.replicas for gpu in each.gpus)) if target else ()
        uuids = sorted({gpu.uuid for gpu in placed if not gpu.uuid.startswith("MIG-")})
        found += [(scene.service, uuid) for uuid in uuids]
    return found


SOURCE = Source("gpus", FAMILIES, rows)
