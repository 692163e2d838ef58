"""What the GPUs say of themselves, a line of JSON for each, and which of them no start can succeed with.

`vllm_gpus.py [ROOT]` is a process of its own, because a wedged driver never comes back from a question: whoever hangs
there is left behind, and what was said before stays said. Stdlib only: the engine's Python asks before a start.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import itertools
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
WITHIN = 10.0  # seconds before a start; a driver that keeps no state between its users takes some for each GPU
LONGEST = 1 << 20  # bytes of an answer
LOST, RESET_REQUIRED = 15, 16  # what NVML returns of a GPU that is gone, or of no use before a reset
# The driver's own verdict (field 230). The others let work go on: a reset may wait until nothing runs there.
RESET, REBOOT, DRAIN_PEERS, DRAIN, BUS_RESET, SYSTEM_REBOOT = 1, 2, 3, 4, 6, 7
MEMORY_TEMPERATURE, RECOVERY = 82, 230  # numbers of fields
LINKS, COUNTERS = 18, 4  # of NVLink: replays, recoveries, and two kinds of checksum errors
THROTTLED = {
    0x4: "power_cap", 0x8: "hardware_slowdown", 0x20: "software_thermal", 0x40: "hardware_thermal", 0x80: "power_brake",
}  # fmt: skip
# Of these an open of nvidia-uvm says nothing about its health: not made yet, not for us, or just being suspended.
NO_VERDICT = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EINTR)


class Memory(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        *((name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")),
    )


class Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Place(ctypes.Structure):
    _fields_ = (("older", ctypes.c_char * 16), ("numbers", ctypes.c_uint * 5), ("bus_id", ctypes.c_char * 32))


class Value(ctypes.Union):
    _fields_ = (("real", ctypes.c_double), ("short", ctypes.c_uint), ("long", ctypes.c_ulonglong))


class Field(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint), ("scope", ctypes.c_uint),
        ("time", ctypes.c_longlong), ("latency", ctypes.c_longlong),
        ("kind", ctypes.c_uint), ("status", ctypes.c_uint), ("value", Value),
    )  # fmt: skip

    @property
    def figure(self) -> int | None:
        if self.status:
            return None
        read = {0: self.value.real, 1: self.value.short}.get(self.kind, self.value.long)
        return int(read)


class Nvml:
    """NVIDIA's library; a function or a figure that this version of it lacks is None."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        self.statuses: set[int] = set()

    def call(self, name: str, *arguments: Any) -> int:
        try:
            status = int(getattr(self.library, name)(*arguments))
        except AttributeError:
            return -1
        self.statuses.add(status)
        return status

    def number(self, kind: Any, name: str, *arguments: Any) -> int | None:
        found = kind()
        return None if self.call(name, *arguments, ctypes.byref(found)) else int(found.value)

    def text(self, name: str, *arguments: Any) -> str:
        found = ctypes.create_string_buffer(96)
        return "" if self.call(name, *arguments, found, 96) else found.value.decode(errors="replace")

    def error(self, status: int) -> str:
        with contextlib.suppress(AttributeError):
            self.library.nvmlErrorString.restype = ctypes.c_char_p
            said = self.library.nvmlErrorString(status)
            return said.decode(errors="replace") if said else f"NVML error {status}"
        return f"NVML error {status}"

    def numbers(self, count: int, name: str, device: Any) -> list[int | None]:
        found = [ctypes.c_uint() for _ in range(count)]
        status = self.call(name, device, *map(ctypes.byref, found))
        return [None if status else each.value for each in found]

    def fields(self, device: Any, *numbers: int) -> list[int | None]:
        asked = (Field * len(numbers))(*(Field(number=number) for number in numbers))
        status = self.call("nvmlDeviceGetFieldValues", device, len(numbers), asked)
        return [None if status else field.figure for field in asked]


def nvidia(root: str) -> Iterator[dict[str, object]]:
    try:
        nvml = Nvml(f"{root}/usr/lib/{LIBRARY}" if root else LIBRARY)
        status = nvml.call("nvmlInit_v2")
        why = nvml.error(status) if status else ""
    except OSError as error:
        why = str(error)
    if why:
        if os.path.exists(f"{root}/proc/driver/nvidia/version"):  # else there is no driver that it could belong to
            yield {"why": why}
        return
    yield {"driver": nvml.text("nvmlSystemGetDriverVersion"), "uvm": uvm(root)}
    for index in range(nvml.number(ctypes.c_uint, "nvmlDeviceGetCount_v2") or 0):
        nvml.statuses.clear()
        device = ctypes.c_void_p()
        status = nvml.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
        yield {"index": index, "vendor": "nvidia", **({"lost": nvml.error(status)} if status else gpu(nvml, device))}


def uvm(root: str) -> str:
    """Why no process can use CUDA any more: the module says so to whoever opens it, while NVML looks healthy."""
    try:
        os.close(os.open(f"{root}/dev/nvidia-uvm", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return "" if error.errno in NO_VERDICT else error.strerror or str(error)
    return ""


def gpu(nvml: Nvml, device: Any) -> dict[str, object]:
    place = Place()
    nvml.call("nvmlDeviceGetPciInfo_v3", device, ctypes.byref(place))
    said: dict[str, object] = {
        "uuid": nvml.text("nvmlDeviceGetUUID", device),
        "name": nvml.text("nvmlDeviceGetName", device),
        "pci": place.bus_id.decode(errors="replace"),
        "throttled": throttled(nvml, device),
        "figures": {name: value for name, value in figures(nvml, device) if value is not None},
    }
    return {**said, "lost": nvml.error(LOST)} if LOST in nvml.statuses else said


def figures(nvml: Nvml, device: Any) -> Iterator[tuple[str, float | None]]:
    """In the units of their names: bytes, shares of one, watts, joules, degrees, hertz, and numbers since the start."""
    yield from memory(nvml, device)
    rates = Rates()
    busy = None if nvml.call("nvmlDeviceGetUtilizationRates", device, ctypes.byref(rates)) else rates.gpu
    yield "utilization", scaled(busy, 0.01)
    yield "power", scaled(nvml.number(ctypes.c_uint, "nvmlDeviceGetPowerUsage", device), 0.001)
    yield "power_limit", scaled(nvml.number(ctypes.c_uint, "nvmlDeviceGetEnforcedPowerLimit", device), 0.001)
    usual = nvml.number(ctypes.c_uint, "nvmlDeviceGetPowerManagementDefaultLimit", device)
    yield "power_usual_limit", scaled(usual, 0.001)
    yield "energy", scaled(nvml.number(ctypes.c_ulonglong, "nvmlDeviceGetTotalEnergyConsumption", device), 0.001)
    yield "temperature", nvml.number(ctypes.c_uint, "nvmlDeviceGetTemperature", device, 0)
    warm, recovery = nvml.fields(device, MEMORY_TEMPERATURE, RECOVERY)
    yield "memory_temperature", warm
    yield "clock_sm", scaled(nvml.number(ctypes.c_uint, "nvmlDeviceGetClockInfo", device, 1), 1e6)
    yield "clock_memory", scaled(nvml.number(ctypes.c_uint, "nvmlDeviceGetClockInfo", device, 2), 1e6)
    yield from errors(nvml, device)
    yield "recovery", RESET if recovery is None and RESET_REQUIRED in nvml.statuses else recovery


def memory(nvml: Nvml, device: Any) -> Iterator[tuple[str, float | None]]:
    """What is used without what the driver keeps for itself, as nvidia-smi counts."""
    held = Memory(version=ctypes.sizeof(Memory) | 2 << 24)
    known = not nvml.call("nvmlDeviceGetMemoryInfo_v2", device, ctypes.byref(held))
    yield "memory_used", held.used if known else None
    yield "memory_total", held.total if known else None


def errors(nvml: Nvml, device: Any) -> Iterator[tuple[str, float | None]]:
    for name, kind in (("corrected", 0), ("uncorrected", 1)):
        yield f"ecc_{name}", nvml.number(ctypes.c_ulonglong, "nvmlDeviceGetTotalEccErrors", device, kind, 1)
    yield "ecc_uncorrected_now", nvml.number(ctypes.c_ulonglong, "nvmlDeviceGetTotalEccErrors", device, 1, 0)
    rows = nvml.numbers(4, "nvmlDeviceGetRemappedRows", device)
    if rows[2] is None:  # GPUs before Ampere retire whole pages
        rows[2] = nvml.number(ctypes.c_uint, "nvmlDeviceGetRetiredPagesPendingStatus", device)
    for place, name in enumerate(("corrected", "uncorrected", "pending", "failed")):
        yield f"remapped_{name}", rows[place]
    yield "pcie_replays", nvml.number(ctypes.c_uint, "nvmlDeviceGetPcieReplayCounter", device)
    yield "nvlink_errors", nvlink(nvml, device)


def nvlink(nvml: Nvml, device: Any) -> int | None:
    """Of all links and kinds together; Blackwell's driver does not count so."""
    found = [
        nvml.number(ctypes.c_ulonglong, "nvmlDeviceGetNvLinkErrorCounter", device, link, counter)
        for link in range(LINKS)
        if nvml.number(ctypes.c_uint, "nvmlDeviceGetNvLinkState", device, link)
        for counter in range(COUNTERS)
    ]
    known = [each for each in found if each is not None]
    return sum(known) if known else None


def throttled(nvml: Nvml, device: Any) -> list[str] | None:
    """Why it runs slower than it could; the second name is what drivers before 535 know it by."""
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        if (reasons := nvml.number(ctypes.c_ulonglong, name, device)) is not None:
            return [word for bit, word in THROTTLED.items() if reasons & bit]
    return None


def scaled(value: int | None, factor: float) -> float | None:
    return None if value is None else value * factor


# AMD's, from /sys


def amd(root: str) -> Iterator[dict[str, object]]:
    """In the order of the compute nodes, by which others count them too; one without SIMD units is the CPU."""
    nodes = glob.glob(f"{root}/sys/class/kfd/kfd/topology/nodes/*/properties")
    index = 0
    for node in sorted(nodes, key=lambda path: int(os.path.basename(os.path.dirname(path)))):
        values = dict(re.findall(r"^(\w+) (\d+)$", word(node), re.MULTILINE))
        if int(values.get("simd_count", 0)):
            device = f"{root}/sys/class/drm/renderD{values.get('drm_render_minor', '')}/device"
            unique = int(values.get("unique_id", 0))
            yield {
                "index": index,
                "vendor": "amd",
                "uuid": f"GPU-{unique:016x}" if unique else address(values),
                "name": word(f"{device}/product_name") or "AMD GPU",
                "pci": address(values),
                "driver": word(f"{root}/sys/module/amdgpu/version"),
                "figures": {name: value for name, value in sensors(device) if value is not None},
            }
            index += 1


def address(values: dict[str, str]) -> str:
    """The kernel packs bus, device and function into one number."""
    place, domain = int(values.get("location_id", 0)), int(values.get("domain", 0))
    return f"{domain:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"


def sensors(device: str) -> Iterator[tuple[str, float | None]]:
    yield "memory_used", reading(f"{device}/mem_info_vram_used", 1)
    yield "memory_total", reading(f"{device}/mem_info_vram_total", 1)
    yield "utilization", reading(f"{device}/gpu_busy_percent", 0.01)
    hwmon = f"{device}/hwmon/hwmon*"
    power = reading(f"{hwmon}/power1_average", 1e-6)
    yield "power", reading(f"{hwmon}/power1_input", 1e-6) if power is None else power
    yield "power_limit", reading(f"{hwmon}/power1_cap", 1e-6)
    yield "power_usual_limit", reading(f"{hwmon}/power1_cap_default", 1e-6)
    warm = {word(path): path.replace("_label", "_input") for path in glob.glob(f"{hwmon}/temp*_label")}
    hottest = warm.get("junction") or warm.get("edge")
    yield "temperature", reading(hottest, 0.001) if hottest else None
    yield "memory_temperature", reading(warm["mem"], 0.001) if "mem" in warm else None
    yield "clock_sm", reading(f"{hwmon}/freq1_input", 1)
    yield "clock_memory", reading(f"{hwmon}/freq2_input", 1)
    yield "pcie_replays", reading(f"{device}/pcie_replay_count", 1)
    counted = [dict(re.findall(r"(ue|ce): *(\d+)", word(path))) for path in glob.glob(f"{device}/ras/*_err_count")]
    for name, kind in (("ecc_corrected", "ce"), ("ecc_uncorrected", "ue")):
        yield name, sum(int(each.get(kind, 0)) for each in counted) if counted else None


def reading(pattern: str, factor: float) -> float | None:
    text = next((said for path in sorted(glob.glob(pattern)) if (said := word(path))), "")
    return int(text) * factor if re.fullmatch(r"-?\d{1,19}", text) else None


def word(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(65536).strip()
    except OSError:
        return ""


# Before a start


def unfit(named: list[str], said: list[dict[str, Any]]) -> str:
    """Why a start on these GPUs cannot succeed, whatever is tried, and what helps; "" where it may.

    Rows that wait to be remapped are no reason: the driver keeps them out of use until the next reset.
    """
    heads = [each for each in said if "index" not in each]
    here = {each.get("uuid", ""): each for each in said if each.get("index") is not None}
    if broken := next((each["uvm"] for each in heads if each.get("uvm")), ""):
        return f"the driver's module nvidia-uvm is broken ({broken}), so nothing can use CUDA: restart the host"
    if not any(each.get("complete") for each in heads) or not any(each.get("driver") for each in heads):
        return ""
    for name in (name for name in named if name.startswith("GPU-")):
        found = here.get(name)
        if found is None or found.get("lost"):
            lost = found or next((each for each in here.values() if each.get("lost")), {})
            why = f" ({lost['lost']})" if lost else ""
            return f"the GPU {name} is not there any more{why}: restart the host, or choose others with GPUS"
        verdict = found.get("figures", {}).get("recovery")
        if verdict in (REBOOT, SYSTEM_REBOOT):
            return f"the GPU {name} is of no use before the host is restarted: the driver says so"
        if verdict in (RESET, BUS_RESET):
            return f"the GPU {name} is of no use before a reset: sudo nvidia-smi --gpu-reset -i {name}"
    return ""


def ask(within: float) -> list[dict[str, Any]]:
    """What this program says when it is run; killed where it does not end, and left behind where that does not help."""
    program = [sys.executable, "-EsS", os.path.abspath(__file__)]
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    said, end = bytearray(), time.monotonic() + within
    while len(said) < LONGEST and select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (chunk := os.read(process.stdout.fileno(), 65536)):
            break
        said += chunk
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    process.stdout.close()
    return read(said.decode(errors="replace"))


def read(text: str) -> list[dict[str, Any]]:
    """The lines that came whole."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            each = json.loads(line)
            if isinstance(each, dict):
                found.append(each)
    return found


def main(root: str) -> None:
    for each in itertools.chain(nvidia(root), amd(root)):
        print(json.dumps(each), flush=True)
    print(json.dumps({"complete": True}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
