"""What the collector writes of a host with eight GPUs, where a test has none: a text that moves on with time."""

from __future__ import annotations

import math
from collections.abc import Iterator

GIB = 1024**3
GPUS = 8
DAY = 86400.0
Row = tuple[str, dict[str, str], float]


def figures(service: str, now: float, began: float, changed: float) -> str:
    """Of a host that is watched since `began`; its last change was remembered when `changed` says."""
    rows = [*_of_host(now), *_of_service(service, now, changed)]
    for index in range(GPUS):
        rows += _of_gpu(index, service, now - began)
    return "".join(f"vllm_install_{name}{_labels(labels)} {value!r}\n" for name, labels, value in rows)


def _labels(labels: dict[str, str]) -> str:
    listed = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{listed}}}" if listed else ""


def _of_host(now: float) -> Iterator[Row]:
    yield "collected_timestamp_seconds", {}, now
    for what, free, size in (("weights", 2100, 7000), ("engines", 180, 430), ("usage", 180, 430)):
        yield "disk_free_bytes", {"what": what}, float(free * GIB)
        yield "disk_size_bytes", {"what": what}, float(size * GIB)


def _of_service(service: str, now: float, changed: float) -> Iterator[Row]:
    of, member = {"service": service}, {"service": service, "member": "0"}
    yield "service_info", {**of, "model": "builtin:tiny", "engine": "vLLM 0.32.0 cpu", "form": "venv"}, 1.0
    for name, value in (
        ("active", 1), ("ready", 1), ("restarts_total", 0), ("starting_seconds", 0), ("start_limit_seconds", 600),
        ("waiting_callers", 0), ("watchdog_age_seconds", 3 + now % 7),
    ):  # fmt: skip
        yield name, member, float(value)
    yield "changed_timestamp_seconds", {**of, "how": "set-context"}, changed
    yield "rolled_back_timestamp_seconds", of, now - 9 * DAY
    yield "key_expires_timestamp_seconds", {**of, "key": "team-b"}, now + 5 * DAY
    yield "key_expires_timestamp_seconds", {**of, "key": "ci"}, now + 88 * DAY
    yield "certificate_expires_timestamp_seconds", of, now + 61 * DAY
    yield "fallback", of, 0.0
    yield "target_seconds", {**of, "of": "ttft"}, 0.5
    yield "target_seconds", {**of, "of": "itl"}, 0.05
    yield "gpus_readable", {}, 1.0


def _of_gpu(index: int, service: str, age: float) -> Iterator[Row]:
    """Each has its own rhythm; the last one is slowed down by heat, and repeats transfers."""
    of = {"gpu": str(index), "uuid": f"GPU-{index:08x}"}
    busy = 0.55 + 0.4 * math.sin(age / 40 + index * 0.8)
    hot = 48 + 28 * busy + (14 if index == GPUS - 1 else index)
    yield "gpu_info", {**of, "name": "NVIDIA H200", "driver": "580.65.06", "vendor": "nvidia"}, 1.0
    yield "gpu_used_by", {**of, "service": service}, 1.0
    for name, value in (
        ("memory_used_bytes", (96 + index) * GIB), ("memory_total_bytes", 141 * GIB), ("utilization_ratio", busy),
        ("power_watts", 120 + 520 * busy), ("power_limit_watts", 700),
        ("energy_joules_total", 5e6 + 406 * age + 8320 * (math.cos(index * 0.8) - math.cos(age / 40 + index * 0.8))),
        ("temperature_celsius", hot), ("memory_temperature_celsius", hot + 6),
        ("pcie_replays_total", age // 60 if index == GPUS - 1 else 0), ("nvlink_errors_total", 0),
    ):  # fmt: skip
        yield f"gpu_{name}", of, float(value)
    yield "gpu_clock_hertz", {**of, "clock": "sm"}, (1.98 - (0.25 if hot > 86 else 0)) * 1e9
    yield "gpu_clock_hertz", {**of, "clock": "memory"}, 3.2e9
    for reason, is_so in (("idle", busy < 0.2), ("power_cap", busy > 0.93), ("thermal", hot > 86)):
        yield "gpu_throttled", {**of, "reason": reason}, float(is_so)
    for kind in ("corrected", "uncorrected"):
        yield "gpu_ecc_errors_total", {**of, "kind": kind}, float(kind == "corrected" and index == 3 and age // 100)
    for kind in ("corrected", "uncorrected", "pending", "failed"):
        yield "gpu_remapped_rows", {**of, "kind": kind}, float(kind == "corrected" and index == 3)
    yield "gpu_xid_total", {**of, "xid": "94"}, float(index == 3 and age > 200)
