"""What this host is: read-only probes, gathered once into a frozen Facts.

Everything is read below the host's root, so that a temporary tree can stand for any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int  # 0 where the kernel would not tell us
    command: str
    unit: str = ""  # the system service it belongs to
    memory: int = 0  # bytes of GPU memory, 0 where unknown


@dataclass(frozen=True)
class Gpu:
    vendor: str  # nvidia or amd
    name: str
    uuid: str = ""
    driver: str = ""
    cuda: str | None = None  # highest CUDA level that the driver supports
    capability: tuple[int, int] | None = None  # NVIDIA's compute capability
    arch: str = ""  # AMD's target, such as gfx942
    memory_total: int = 0  # bytes; 0 where unknown (unified memory, a driver that does not answer)
    memory_used: int = 0
    holders: tuple[Process, ...] = ()


@dataclass(frozen=True)
class Interpreter:
    path: Path
    version: tuple[int, int, int]
    reachable: bool = True
    headers: bool = True  # Python.h is there
    why_unreachable: str = ""


@dataclass(frozen=True)
class Disk:
    path: Path  # the nearest directory that exists
    free: int
    total: int
    device: int
    read_only: bool = False
    noexec: bool = False


@dataclass(frozen=True)
class Facts:
    arch: str
    cpu: str
    cpu_flags: frozenset[str]
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...]
    nvidia_error: str  # an NVIDIA card is there, but its driver is not usable
    interpreters: tuple[Interpreter, ...]
    c_compiler: Path | None
    cxx_compiler: Path | None
    glibc: tuple[int, int]
    distribution: tuple[str, ...]  # ID and ID_LIKE of /etc/os-release
    systemd: int | None
    systemd_is_pid1: bool
    sysusers: bool  # systemd-sysusers is there
    is_root: bool
    port_holder: Process | None  # who listens where the service is to listen; may be the service itself
    unprivileged_port: int = 1024  # the lowest port that needs no privilege
    disks: Mapping[Path, Disk] = field(default_factory=dict)
