"""What this host is: read-only probes, gathered once into a frozen Facts.

Everything is read below the host's root, so that a temporary tree can stand for any machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import ANSWERS_WITHIN, Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.checks import gateway, group, ports
from installer.checks.gpus.vendors import MODULES
from installer.forms.podman import images
from installer.spec.facts import Disk, Facts, Gpu, Interpreter, Nvcc, Podman
from installer.spec.settings import PODMAN, Settings
from installer.units.gateway import needs_gateway
from installer.units.processes import listener

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
    containers = (images.STORAGE,) if settings.runtime == PODMAN else ()
    own = (layout.opt, layout.hub.parent, layout.settings_file.parent.parent, layout.state_dir.parent.parent)
    state = host.output("systemctl", "show", "--property=ActiveState", "--value", layout.unit_name).strip()
    found = [module.find(host) for module in MODULES.values()]
    return Facts(
        arch=os.uname().machine,
        cpu=cpu,
        cpu_flags=flags,
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        node_memory=node_memory(host),
        gpus=tuple(_with_memory(gpu, memory) for gpus, _ in found for gpu in gpus),
        nvidia_error=next((error for _, error in found if error), ""),
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
        port_kept_for=ports.kept_for(host, settings.host, settings.port, layout),
        service_runs=state not in ("", "inactive", "failed"),
        unprivileged_port=int(host.read(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")) or 1024),
        disks={target: probe_disk(host, target) for target in (*own, *containers)},
        libnuma=any(any(host.at(path).glob("libnuma.so.1")) for path in _library_directories(host)),
        cxx_version=_cxx_version(host) if settings.cuda_toolkit != "none" else 0,
        nvcc=_nvcc(host) if settings.cuda_toolkit == "host" else None,
        gateway=gateway.look(host, settings) if needs_gateway(settings) else None,
        podman=_podman(host) if settings.runtime == PODMAN else None,
        peers=group.look(host, settings) if settings.group_hosts else None,
    )


def _with_memory(gpu: Gpu, memory: Mapping[str, int]) -> Gpu:
    """What is free of unified memory is what the host could give, its page cache too: as vLLM reckons it."""
    total = memory.get("MemTotal", 0)
    used = total - memory.get("MemAvailable", 0)
    return replace(gpu, memory_total=total, memory_used=used) if gpu.is_unified else gpu


def _podman(host: Host) -> Podman | None:
    found = re.search(r"(\d+)\.(\d+)", host.output("podman", "--version"))
    if found is None:
        return None
    said = host.output("podman", "info", "--format", "json")
    try:
        devices = json.loads(said)["host"]["cdiDevices"]
    except (ValueError, KeyError, TypeError):
        devices = []
    return Podman((int(found[1]), int(found[2])), frozenset(map(str, devices or ())))


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


def node_memory(host: Host) -> int:
    """Of the smallest node that has processors; of the host where the kernel tells of no nodes."""
    return min(_nodes(host), default=_meminfo(host).get("MemTotal", 0))


def _nodes(host: Host) -> Iterator[int]:
    for node in host.children(Path("/sys/devices/system/node")):
        if re.fullmatch(r"node\d+", node.name) and host.word(node / "cpulist"):
            found = re.search(r"MemTotal:\s+([1-9]\d*) kB", host.read(node / "meminfo") or "")
            if found:
                yield int(found[1]) * 1024


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
    match = re.match(r"systemd (\d+)", host.output("systemctl", "--version"))
    return int(match[1]) if match else None


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


# The CUDA compiler


def _cxx_version(host: Host) -> int:
    major = host.output("g++", "-dumpversion").partition(".")[0].strip()
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
            said = host.run(host.at(compiler), "--version", check=False, timeout=ANSWERS_WITHIN).stdout
        except (InstallError, OSError):
            continue
        if match := re.search(r"release (\d+)\.(\d+)", said):
            return Nvcc(home, (int(match[1]), int(match[2])))
    return None


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
        done = host.run(host.at(path), "-I", "-c", DESCRIBE_PYTHON, check=False, timeout=ANSWERS_WITHIN)
        version, include, real, prefix = done.stdout.splitlines()
        major, minor, micro = (int(number) for number in version.split("."))
    except (InstallError, OSError, ValueError):
        return None
    places = (path, Path(real), Path(prefix) / "lib")
    why = next((why for place in places if (why := _why_unreachable(host, place))), "")
    headers = host.exists(Path(include) / "Python.h")
    return Path(real), Interpreter(path, (major, minor, micro), headers, why)


def _why_unreachable(host: Host, path: Path) -> str:
    """Why the service's user, in its sandbox, cannot get at a path; empty where it can."""
    for parent in reversed(path.parents[:-1]):
        if parent in HIDDEN:
            return tr("a service sees nothing below {path}", path=parent)
        mode = host.at(parent).stat().st_mode & 0o7777
        if not mode & 0o001:
            return tr("{path} is closed to other users (mode {mode:04o})", path=parent, mode=mode)
    return ""
