"""NVIDIA's GPUs: what nvidia-smi and the kernel module say of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import ANSWERS_WITHIN, Completed, Host
from installer.base.language import tr
from installer.base.sizes import MIB
from installer.spec.facts import Facts, Gpu, NoDriver, Process, pci_address
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.vendors import NVIDIA
from installer.units.processes import describe

CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
SMI = "nvidia-smi"
# Of each question the name is the last: the one answer that may hold a comma.
WHAT = "driver_version,compute_cap,memory.total,memory.used,uuid,index,pci.bus_id,mig.mode.current,name"
USE = "uuid,memory.used,memory.total,utilization.gpu,name"
HOLDERS = "pid,used_memory,gpu_uuid,process_name"
USE_WITHIN = 5.0
ABSENT = "[N/A]"  # a figure that cannot be had: of memory, where the GPU has none of its own (GB10, Thor)


def find(host: Host) -> tuple[tuple[Gpu, ...], str]:
    try:
        done = _ask(host, "gpu", WHAT, ANSWERS_WITHIN)
    except InstallError as error:
        return (), error.message
    if done is None:
        return _without_smi(host)
    if done.returncode != 0:
        present = cards(host) or _without_smi(host)[0]
        # The tool without a card is what some images ship; it is no fault then.
        said = " ".join((done.stdout.strip() or done.stderr.strip()).split())
        failed = tr("{command} failed with exit status {status}", command=SMI, status=done.returncode)
        return (), f"{failed}: {said}" if present else ""
    match = re.search(r"CUDA Version\s*:\s*([\d.]+)", host.output(SMI, "--version"))
    holders, nodes = _holders(host), _nodes(host)
    gpus: list[Gpu] = []
    for row in _rows(done.stdout, WHAT):
        gpu = _gpu(row, match[1] if match else None, nodes)
        found = _slices(host, gpu) if row["mig.mode.current"] == "Enabled" else [gpu]
        gpus += [replace(g, holders=tuple(who for where, who in holders if where == g.uuid)) for g in found]
    return tuple(gpus), ""


def use(host: Host) -> Sequence[Gpu]:
    return [_gpu(row, None, {}) for row in _answers(host, "gpu", USE, USE_WITHIN)]


def problems(settings: Settings, facts: Facts, usable: Sequence[Gpu], chosen: Sequence[Gpu]) -> Iterator[Problem]:
    if facts.nvidia_error:
        yield Problem(
            tr("the NVIDIA driver does not work"), facts.nvidia_error, _remedy_for_driver(facts), id="driver-broken"
        )
        return
    if not usable:
        yield Problem(
            tr("no NVIDIA GPU was found"),
            tr("the cuda engine needs one"),
            tr("choose --engine auto, or --engine cpu for a trial"),
            id="no-gpu-visible",
        )
        return
    cuda_12 = settings.wants_cuda_12
    needed = CUDA_12_DRIVER if cuda_12 else CUDA_13_DRIVER
    if (_number(usable[0].driver.partition(".")[0]) or 0) < needed:
        yield Problem(
            tr("NVIDIA driver {driver} is too old", driver=usable[0].driver),
            tr(
                "this build of vLLM holds CUDA {cuda}, which needs driver {needed} or newer",
                cuda="12" if cuda_12 else "13",
                needed=needed,
            )
            + (tr("; this one goes up to CUDA {cuda}", cuda=usable[0].cuda) if usable[0].cuda else ""),
            tr("install driver {needed} or newer and restart the host", needed=needed)
            + ("" if cuda_12 else tr(", or name an index of CUDA 12 builds (its name holds cu12) with --index-url")),
            id="driver-too-old",
        )
    for gpu in chosen:
        if gpu.capability and gpu.capability < NVIDIA.minimum_capability:
            yield Problem(
                tr("{gpu} is too old for vLLM", gpu=gpu.name),
                tr(
                    "its compute capability is {capability}, 7.5 is needed",
                    capability=".".join(map(str, gpu.capability)),
                ),
                tr("use a GPU of the Turing generation or newer, or --engine cpu"),
                id="gpu-too-old",
            )


def _remedy_for_driver(facts: Facts) -> str:
    if "mismatch" in facts.nvidia_error.lower():
        return tr("restart the host (sudo reboot): the driver was updated while the old one was loaded")
    if isinstance(facts.nvidia_error, NoDriver):
        return tr("install NVIDIA's driver {needed} or newer, or choose --engine cpu", needed=CUDA_13_DRIVER)
    return tr("see what the kernel says (sudo dmesg | grep -i nvrm), restart the host, or choose --engine cpu")


# nvidia-smi


def _ask(host: Host, about: str, fields: str, within: float) -> Completed | None:
    """None where the tool is not installed."""
    command, options = host.which(SMI), (f"--query-{about}={fields}", "--format=csv,noheader,nounits")
    return host.run(host.at(command), *options, check=False, timeout=within) if command else None


def _answers(host: Host, about: str, fields: str, within: float) -> list[dict[str, str]]:
    """None where the driver has none, or hangs."""
    with suppress(InstallError):
        done = _ask(host, about, fields, within)
        return list(_rows(done.stdout, fields)) if done else []
    return []


def _rows(text: str, fields: str) -> Iterator[dict[str, str]]:
    """The answers by the names of the fields."""
    names = fields.split(",")
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",", len(names) - 1)]
        if len(values) == len(names):
            yield dict(zip(names, values, strict=True))


def _gpu(row: Mapping[str, str], cuda: str | None, nodes: Mapping[str, str]) -> Gpu:
    """A figure that was not asked for is not there."""
    major, _, minor = row.get("compute_cap", "").partition(".")
    pci, index = pci_address(row.get("pci.bus_id", "")), _number(row.get("index", ""))
    return Gpu(
        vendor=NVIDIA.name,
        name=row["name"],
        uuid=row["uuid"],
        driver=row.get("driver_version", ""),
        cuda=cuda,
        capability=(int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None,
        memory_total=_mebibytes(row["memory.total"]),
        memory_used=_mebibytes(row["memory.used"]),
        index=-1 if index is None else index,
        pci=pci,
        node=nodes.get(pci, ""),
        busy=_number(row.get("utilization.gpu", "")),
        is_unified=row["memory.total"] == ABSENT and row.get("mig.mode.current") != "Enabled",
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _mebibytes(text: str) -> int:
    return (_number(text) or 0) * MIB


def _slices(host: Host, gpu: Gpu) -> list[Gpu]:
    """The parts of a GPU that MIG cut up: what it was as a whole cannot be used any more."""
    listed = host.output(SMI, "-L").partition(f"(UUID: {gpu.uuid})")[2].partition("\nGPU ")[0]
    report = host.output(SMI, "-q", "-x").partition(f"<uuid>{gpu.uuid}</uuid>")[0].rpartition("<gpu id=")[2]
    memory = {}
    for part in re.findall(r"<mig_device>.*?</mig_device>", report, re.DOTALL):
        figures = re.search(
            r"<index>(\d+)</index>.*<fb_memory_usage>.*?<total>(\d+) MiB.*?<used>(\d+) MiB", part, re.DOTALL
        )
        if figures:
            memory[figures[1]] = (_mebibytes(figures[2]), _mebibytes(figures[3]))
    found = []
    for profile, number, uuid in re.findall(r"MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)", listed):
        total, used = memory.get(number, (0, 0))
        name = f"{gpu.name} MIG {profile}"
        found.append(replace(gpu, name=name, uuid=uuid, memory_total=total, memory_used=used, is_slice=True))
    return found


def _holders(host: Host) -> list[tuple[str, Process]]:
    """The uuid of a GPU, and who holds it."""
    return [
        (row["gpu_uuid"], describe(host, int(row["pid"]), row["process_name"], _mebibytes(row["used_memory"])))
        for row in _answers(host, "compute-apps", HOLDERS, ANSWERS_WITHIN)
        if row["pid"].isdecimal()
    ]


# the kernel module, and the bus


def _nodes(host: Host) -> dict[str, str]:
    """PCI address -> device node. Only the driver says which is whose: minor numbers follow another order."""
    nodes = {}
    for file in host.glob("/proc/driver/nvidia/gpus/*/information"):
        if minor := re.search(r"^Device Minor:\s*(\d+)", host.read(file) or "", re.MULTILINE):
            nodes[pci_address(file.parent.name)] = f"/dev/nvidia{minor[1]}"
    return nodes


def _without_smi(host: Host) -> tuple[tuple[Gpu, ...], str]:
    """The kernel module's own account, where the tools were not installed."""
    version = re.search(r"Module.*?\s(\d+\.\d[\d.]*)\s", host.read(Path(NVIDIA.driver)) or "")
    if version is None:
        found = cards(host)
        why = tr("no driver is loaded for the NVIDIA card at {addresses}", addresses=", ".join(found))
        return (), NoDriver(why) if found else ""
    gpus: list[Gpu] = []
    nodes = _nodes(host)
    for index, file in enumerate(host.glob("/proc/driver/nvidia/gpus/*/information")):
        values = dict(re.findall(r"^([\w ]+):[ \t]*(.*)$", host.read(file) or "", re.MULTILINE))
        name, uuid = values.get("Model", "NVIDIA GPU").strip(), values.get("GPU UUID", "").strip()
        pci = pci_address(file.parent.name)
        uuid = "" if "?" in uuid else uuid  # the driver has not asked a GPU that nobody has opened yet
        gpus.append(Gpu(NVIDIA.name, name, uuid, driver=version[1], index=index, pci=pci, node=nodes.get(pci, "")))
    return tuple(gpus), ""


def cards(host: Host) -> list[str]:
    """PCI addresses of NVIDIA display and compute cards, driver or not."""
    devices = [vendor.parent for vendor in host.glob("/sys/bus/pci/devices/*/vendor")]
    return [
        device.name
        for device in devices
        if host.word(device / "vendor") == "0x10de" and host.word(device / "class").startswith("0x03")
    ]
