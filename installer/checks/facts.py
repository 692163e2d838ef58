"""What this host is: read-only probes, gathered once into a frozen Facts.

Everything is read below the host's root, so that a temporary tree can stand for any machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.checks import ports
from installer.spec.facts import Disk, Facts, Gpu, Interpreter, NoDriver, Nvcc, Process
from installer.spec.settings import Settings
from installer.units.processes import describe, listener

ANSWER_WITHIN = 20.0  # seconds; a wedged GPU driver never answers
GPU_QUERY = "driver_version,compute_cap,memory.total,memory.used,uuid,index,pci.bus_id,mig.mode.current,name"
CSV = "--format=csv,noheader,nounits"
# The sandbox hides these whatever their modes are.
HIDDEN = frozenset(map(Path, ("/root", "/home", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
# posix_prefix: where a compiler run by the engine's virtual environment looks for Python.h.
DESCRIBE_PYTHON = """
import os, sys, sysconfig
print(*sys.version_info[:3], sep=".")
print(sysconfig.get_path("include", "posix_prefix"))
print(os.path.realpath(sys.executable))
print(sys.base_prefix)
"""


def gather(host: Host, settings: Settings, layout: Layout) -> Facts:
    cpu, flags = _cpu(host)
    memory = _meminfo(host)
    gpus, nvidia_error = _nvidia(host)
    return Facts(
        arch=os.uname().machine,
        cpu=cpu,
        cpu_flags=flags,
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        gpus=gpus + amd_gpus(host),
        nvidia_error=nvidia_error,
        interpreters=_interpreters(host, settings),
        # Triton looks for gcc, then clang; Inductor for g++ alone.
        c_compiler=host.which("gcc") or host.which("clang"),
        cxx_compiler=host.which("g++"),
        glibc=_glibc(),
        distribution=_distribution(host),
        systemd=_systemd_version(host),
        systemd_is_pid1=host.exists(Path("/run/systemd/system")),
        sysusers=host.which("systemd-sysusers") is not None,
        is_root=os.geteuid() == 0,
        port_holder=listener(host, settings.host, settings.port),
        port_kept_for=ports.kept_for(host, settings.host, settings.port, layout.unit_name),
        service_runs=_service_runs(host, layout),
        unprivileged_port=int(host.read(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")) or 1024),
        disks={target: probe_disk(host, target) for target in _targets(layout)},
        libnuma=any(any(host.at(path).glob("libnuma.so.1")) for path in _library_directories(host)),
        cxx_version=_cxx_version(host) if settings.cuda_toolkit in ("wheels", "host") else 0,
        nvcc=_nvcc(host) if settings.cuda_toolkit == "host" else None,
    )


def _library_directories(host: Host) -> list[Path]:
    """Where Debian's kind, Fedora's kind and the rest keep a library, the last two levels deep at most."""
    tops = [Path("/usr/lib64"), Path("/usr/lib")]
    return [*tops, *(path for path in host.children(tops[1]) if path.name.endswith("-linux-gnu"))]


# the machine


def _cpu(host: Host) -> tuple[str, frozenset[str]]:
    """Name and instruction set: `flags` on x86, `Features` on ARM, where the name is often missing."""
    entries: dict[str, str] = {}
    for line in (host.read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    flags = entries.get("flags") or entries.get("Features") or ""
    return entries.get("model name", ""), frozenset(flags.split())


def _meminfo(host: Host) -> dict[str, int]:
    matches = re.finditer(r"^(\w+):\s+(\d+) kB$", host.read(Path("/proc/meminfo")) or "", re.MULTILINE)
    return {match[1]: int(match[2]) * 1024 for match in matches}


def _glibc() -> tuple[int, int]:
    """(0, 0) where the C library is another one."""
    try:
        match = re.fullmatch(r"glibc (\d+)\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except ValueError:
        match = None
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _distribution(host: Host) -> tuple[str, ...]:
    text = host.read(Path("/etc/os-release")) or host.read(Path("/usr/lib/os-release")) or ""
    values = dict(re.findall(r"^(ID|ID_LIKE)=[\"']?([^\"'\n]*)", text, re.MULTILINE))
    return (*values.get("ID", "").split(), *values.get("ID_LIKE", "").split())


def _systemd_version(host: Host) -> int | None:
    match = re.match(r"systemd (\d+)", _output(host, "systemctl", "--version"))
    return int(match[1]) if match else None


def _service_runs(host: Host, layout: Layout) -> bool:
    state = _output(host, "systemctl", "show", "--property=ActiveState", "--value", layout.unit_name).strip()
    return state not in ("", "inactive", "failed")


def _targets(layout: Layout) -> tuple[Path, ...]:
    return (layout.opt, layout.hub.parent, layout.settings_file.parent.parent, layout.state_dir.parent.parent)


def probe_disk(host: Host, target: Path) -> Disk:
    existing = next(p for p in (target, *target.parents) if host.at(p).is_dir())
    usage = os.statvfs(host.at(existing))
    return Disk(
        path=existing,
        free=usage.f_bavail * usage.f_frsize,
        total=usage.f_blocks * usage.f_frsize,
        device=host.at(existing).stat().st_dev,
        read_only=bool(usage.f_flag & os.ST_RDONLY),
        noexec=bool(usage.f_flag & os.ST_NOEXEC),
    )


def _output(host: Host, command: str, *args: str) -> str:
    """What a command prints, or nothing where it is absent, fails or hangs."""
    found = host.which(command)
    if found is None:
        return ""
    try:
        done = host.run(host.at(found), *args, check=False, timeout=ANSWER_WITHIN)
    except InstallError:
        return ""
    return done.stdout if done.returncode == 0 else ""


# The CUDA compiler


def _cxx_version(host: Host) -> int:
    major = _output(host, "g++", "-dumpversion").partition(".")[0].strip()
    return int(major) if major.isdigit() else 0


def _nvcc(host: Host) -> Nvcc | None:
    """The first toolkit in the places where vLLM and FlashInfer look."""
    on_path = host.which("nvcc")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    homes = [Path(named)] if named.startswith("/") else []
    homes += [on_path.parent.parent] if on_path else []
    for home in (*homes, Path("/usr/local/cuda")):
        compiler = home / "bin/nvcc"
        if not host.exists(compiler):
            continue
        try:
            said = host.run(host.at(compiler), "--version", check=False, timeout=ANSWER_WITHIN).stdout
        except (InstallError, OSError):
            continue
        if match := re.search(r"release (\d+)\.(\d+)", said):
            return Nvcc(home, (int(match[1]), int(match[2])))
    return None


# GPUs


def _nvidia(host: Host) -> tuple[tuple[Gpu, ...], str]:
    """The NVIDIA GPUs, and why they cannot be used although they are there."""
    command = host.which("nvidia-smi")
    if command is None:
        return _nvidia_without_smi(host)
    try:
        done = host.run(host.at(command), f"--query-gpu={GPU_QUERY}", CSV, check=False, timeout=ANSWER_WITHIN)
    except InstallError as error:
        return (), error.message
    if done.returncode != 0:
        present = _nvidia_cards(host) or _nvidia_without_smi(host)[0]
        # The tool without a card is what some images ship; it is no fault then.
        said = " ".join((done.stdout.strip() or done.stderr.strip()).split())
        failed = tr("{command} failed with exit status {status}", command="nvidia-smi", status=done.returncode)
        return (), f"{failed}: {said}" if present else ""
    match = re.search(r"CUDA Version\s*:\s*([\d.]+)", _output(host, "nvidia-smi", "--version"))
    cuda = match[1] if match else None
    holders, nodes = _nvidia_holders(host), _nvidia_nodes(host)
    rows = [[value.strip() for value in line.split(",", 8)] for line in done.stdout.splitlines()]
    gpus: list[Gpu] = []
    for row in (row for row in rows if len(row) == 9):
        gpu = _nvidia_gpu(row, cuda, nodes)
        found = _slices(host, gpu) if row[7] == "Enabled" else [gpu]
        gpus += [replace(g, holders=tuple(who for where, who in holders if where == g.uuid)) for g in found]
    return tuple(gpus), ""


def _nvidia_gpu(row: list[str], cuda: str | None, nodes: Mapping[str, str]) -> Gpu:
    driver, capability, total, used, uuid, index, pci, _, name = row
    major, _, minor = capability.partition(".")
    return Gpu(
        vendor="nvidia",
        name=name,
        uuid=uuid,
        driver=driver,
        cuda=cuda,
        capability=(int(major), int(minor)) if major.isdigit() and minor.isdigit() else None,
        memory_total=_mebibytes(total),
        memory_used=_mebibytes(used),
        index=int(index) if index.isdecimal() else -1,
        pci=pci_address(pci),
        node=nodes.get(pci_address(pci), ""),
    )


def pci_address(text: str) -> str:
    """One spelling of an address on the PCI bus: nvidia-smi prints a domain of eight digits, the kernel one of four."""
    match = re.fullmatch(r"(?:([0-9a-f]+):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    return f"{int(match[1] or '0', 16):04x}:{match[2]}" if match else ""


def _nvidia_nodes(host: Host) -> dict[str, str]:
    """PCI address -> device node. Only the driver says which is whose: minor numbers follow another order."""
    nodes = {}
    for file in _glob(host, "/proc/driver/nvidia/gpus/*/information"):
        if minor := re.search(r"^Device Minor:\s*(\d+)", host.read(file) or "", re.MULTILINE):
            nodes[pci_address(file.parent.name)] = f"/dev/nvidia{minor[1]}"
    return nodes


def _slices(host: Host, gpu: Gpu) -> list[Gpu]:
    """The parts of a GPU that MIG cut up: what it was as a whole cannot be used any more."""
    listed = _output(host, "nvidia-smi", "-L").partition(f"(UUID: {gpu.uuid})")[2].partition("\nGPU ")[0]
    report = _output(host, "nvidia-smi", "-q", "-x").partition(f"<uuid>{gpu.uuid}</uuid>")[0].rpartition("<gpu id=")[2]
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


def _nvidia_holders(host: Host) -> list[tuple[str, Process]]:
    rows = _output(host, "nvidia-smi", "--query-compute-apps=pid,used_memory,process_name,gpu_uuid", CSV)
    found = []
    for line in rows.splitlines():
        pid, _, rest = line.partition(",")
        used, _, rest = rest.partition(",")
        name, _, uuid = rest.rpartition(",")
        if pid.strip().isdigit():
            found.append((uuid.strip(), describe(host, int(pid), name.strip(), _mebibytes(used.strip()))))
    return found


def _nvidia_without_smi(host: Host) -> tuple[tuple[Gpu, ...], str]:
    """The kernel module's own account, where the tools were not installed."""
    version = re.search(r"Module.*?\s(\d+\.\d[\d.]*)\s", host.read(Path("/proc/driver/nvidia/version")) or "")
    if version is None:
        cards = _nvidia_cards(host)
        why = tr("no driver is loaded for the NVIDIA card at {addresses}", addresses=", ".join(cards))
        return (), NoDriver(why) if cards else ""
    gpus: list[Gpu] = []
    nodes = _nvidia_nodes(host)
    for index, file in enumerate(_glob(host, "/proc/driver/nvidia/gpus/*/information")):
        values = dict(re.findall(r"^([\w ]+):[ \t]*(.*)$", host.read(file) or "", re.MULTILINE))
        name, uuid = values.get("Model", "NVIDIA GPU").strip(), values.get("GPU UUID", "").strip()
        pci = pci_address(file.parent.name)
        uuid = "" if "?" in uuid else uuid  # the driver has not asked a GPU that nobody has opened yet
        gpus.append(Gpu("nvidia", name, uuid, driver=version[1], index=index, pci=pci, node=nodes.get(pci, "")))
    return tuple(gpus), ""


def _nvidia_cards(host: Host) -> list[str]:
    """PCI addresses of NVIDIA display and compute cards, driver or not."""
    devices = [vendor.parent for vendor in _glob(host, "/sys/bus/pci/devices/*/vendor")]
    return [
        device.name
        for device in devices
        if _word(host, device / "vendor") == "0x10de" and _word(host, device / "class").startswith("0x03")
    ]


def amd_gpus(host: Host) -> tuple[Gpu, ...]:
    """The compute nodes that the amdgpu driver offers; a node with no SIMD units is the CPU."""
    driver = _word(host, Path("/sys/module/amdgpu/version"))
    gpus: list[Gpu] = []
    nodes = _glob(host, "/sys/class/kfd/kfd/topology/nodes/*/properties")
    for node in sorted(nodes, key=lambda path: int(path.parent.name)):
        values = dict(re.findall(r"^(\w+) (\d+)$", host.read(node) or "", re.MULTILINE))
        if int(values.get("simd_count", 0)) == 0:
            continue
        target = int(values.get("gfx_target_version", 0))
        arch = f"gfx{target // 10000}{target // 100 % 100}{target % 100:x}"
        render = f"renderD{values.get('drm_render_minor', '')}"
        device = Path("/sys/class/drm") / render / "device"
        pci, unique = _amd_address(values), int(values.get("unique_id", 0))
        gpus.append(
            Gpu(
                vendor="amd",
                name=(host.read(device / "product_name") or "").strip() or f"AMD {arch}",
                uuid=f"GPU-{unique:016x}" if unique else pci,
                driver=driver,
                arch=arch,
                memory_total=int(_word(host, device / "mem_info_vram_total") or 0),
                memory_used=int(_word(host, device / "mem_info_vram_used") or 0),
                index=len(gpus),
                pci=pci,
                node=f"/dev/dri/{render}",
            )
        )
    return tuple(gpus)


def _amd_address(values: Mapping[str, str]) -> str:
    """The kernel packs bus, device and function into one number."""
    place = int(values.get("location_id", 0))
    domain, bus, slot = int(values.get("domain", 0)), place >> 8 & 0xFF, place >> 3 & 0x1F
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{place & 7}"


def _mebibytes(text: str) -> int:
    """nvidia-smi says [N/A] where a figure cannot be had."""
    return int(text) * 1024 * 1024 if text.isdigit() else 0


def _word(host: Host, path: Path) -> str:
    return (host.read(path) or "").strip()


def _glob(host: Host, pattern: str) -> list[Path]:
    """Host paths that match, in order."""
    found = host.root.glob(pattern.lstrip("/"))
    return sorted(Path("/") / path.relative_to(host.root) for path in found)


# interpreters


def _interpreters(host: Host, settings: Settings) -> tuple[Interpreter, ...]:
    """The interpreters in the usual places and the one asked for; two names of one count once."""
    names = [Path(d) / f"python3.{minor}" for d in ("/usr/bin", "/usr/local/bin") for minor in range(10, 15)]
    if settings.python:
        names.insert(0, Path(settings.python))
    found: dict[Path, Interpreter] = {}
    for path in names:
        probed = _interpreter(host, path) if host.exists(path) else None
        if probed is not None:
            found.setdefault(*probed)
    return tuple(found.values())


def _interpreter(host: Host, path: Path) -> tuple[Path, Interpreter] | None:
    """The real file and what it is, or None where it does not run."""
    try:
        done = host.run(host.at(path), "-I", "-c", DESCRIBE_PYTHON, check=False, timeout=ANSWER_WITHIN)
        version, include, real, prefix = done.stdout.splitlines()
        major, minor, micro = (int(number) for number in version.split("."))
    except (InstallError, OSError, ValueError):
        return None
    places = (path, Path(real), Path(prefix) / "lib")
    why = next((why for place in places if (why := _why_unreachable(host, place))), "")
    headers = host.exists(Path(include) / "Python.h")
    return Path(real), Interpreter(path, (major, minor, micro), not why, headers, why)


def _why_unreachable(host: Host, path: Path) -> str:
    """Why the service's user, in its sandbox, cannot get at a path; empty where it can."""
    for parent in reversed(path.parents[:-1]):
        if parent in HIDDEN:
            return tr("a service sees nothing below {path}", path=parent)
        mode = host.at(parent).stat().st_mode & 0o7777
        if not mode & 0o001:
            return tr("{path} is closed to other users (mode {mode:04o})", path=parent, mode=mode)
    return ""
