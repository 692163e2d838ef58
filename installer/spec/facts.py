"""What was found out about a host: its GPUs, Pythons, disks, and the processes that matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from installer.base.language import tr
from installer.spec.target import Placed


@dataclass(frozen=True)
class Gpu:
    vendor: str  # its name among the vendors
    name: str
    uuid: str = ""
    driver: str = ""
    cuda: str | None = None  # highest CUDA level that the driver supports
    capability: tuple[int, int] | None = None  # NVIDIA's compute capability
    arch: str = ""  # AMD's target, such as gfx942
    memory_total: int = 0  # bytes; 0 where unknown (a driver that does not answer)
    memory_used: int = 0
    holders: tuple[Process, ...] = ()
    index: int = -1  # as nvidia-smi or rocminfo counts; a slice has that of its GPU
    pci: str = ""  # DOMAIN:BUS:DEVICE.FUNCTION
    node: str = ""  # its own device node; its number is not the index
    is_slice: bool = False  # a part of a GPU that MIG cut up
    busy: int | None = None  # percent, where it was asked for
    is_unified: bool = False  # it has no memory but the host's

    def __str__(self) -> str:
        return f"{self.name} ({self.uuid or self.pci})"


def pci_address(text: str) -> str:
    """One spelling of an address on the PCI bus: nvidia-smi prints a domain of eight digits, the kernel one of four."""
    match = re.fullmatch(r"(?:([0-9a-f]+):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    return f"{int(match[1] or '0', 16):04x}:{match[2]}" if match else ""


@dataclass(frozen=True)
class Tenant:
    """A service of ours and what it takes of this host, as its record says."""

    unit: str
    kind: str
    gpus: tuple[Placed, ...]  # none where it was deployed before GPUs were chosen, or a drop-in chooses them
    count: int
    share: float
    visible: tuple[tuple[str, str], ...] = ()  # variables of a drop-in that choose GPUs
    runs: bool = False


@dataclass(frozen=True)
class Interpreter:
    path: Path
    version: tuple[int, int, int]
    headers: bool = True  # Python.h is there
    why_unreachable: str = ""  # by a service in its sandbox


@dataclass(frozen=True)
class Nvcc:
    """A CUDA toolkit of the host's own."""

    home: Path
    release: tuple[int, int]


@dataclass(frozen=True)
class Disk:
    path: Path  # the nearest directory that exists
    free: int
    total: int
    device: int
    read_only: bool = False
    noexec: bool = False


class NoDriver(str):
    """Why an NVIDIA card cannot be used: no driver is loaded for it."""

    __slots__ = ()


@dataclass(frozen=True)
class Gateway:
    """What a gateway needs of the host, looked for where a service has one."""

    haproxy: tuple[int, int] | None = None  # its version
    openssl: bool = True
    unfit: str = ""  # why the certificate cannot serve
    names: tuple[str, ...] = ()  # that it has
    days_left: int = 0
    is_here: bool = True  # whether one of its names is this host's
    addresses: tuple[str, ...] = ()  # of GATEWAY_HOSTS those that are this host's
    link_holder: Process | None = None  # who listens where the other hosts' gateways are to come
    exposed: tuple[str, ...] = ()  # files that are not root's alone, or not there: why


@dataclass(frozen=True)
class Podman:
    """What runs containers here."""

    version: tuple[int, int]
    devices: frozenset[str] = frozenset()  # by the names of the Container Device Interface


@dataclass(frozen=True)
class Peers:
    """What a group needs of the host, looked for where a service has one."""

    ranks: tuple[int, ...] = ()  # whose addresses are this host's
    interface: str = ""  # which has the first of them
    unfit: str = ""  # why the file with the key is none


@dataclass(frozen=True)
class Facts:
    arch: str
    cpu: str
    cpu_flags: frozenset[str]
    memory_total: int
    memory_available: int
    node_memory: int  # of the smallest node with processors, of which vLLM on a processor takes its share
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
    service_runs: bool = False
    port_kept_for: str | None = None  # another service of ours that listens there whenever it runs
    unprivileged_port: int = 1024  # the lowest port that needs no privilege
    disks: Mapping[Path, Disk] = field(default_factory=dict)
    libnuma: bool = True  # which vLLM's CPU build loads without saying so
    tenants: tuple[Tenant, ...] = ()  # services of ours, this one too where it was proved
    visible: tuple[tuple[str, str], ...] = ()  # variables of its drop-ins that choose GPUs
    cxx_version: int = 0  # of g++, where it matters
    nvcc: Nvcc | None = None  # looked for where it was asked for
    gateway: Gateway | None = None
    podman: Podman | None = None  # looked for where it was asked for
    peers: Peers | None = None


@dataclass(frozen=True)
class Process:
    pid: int  # 0 where the kernel would not tell us
    command: str
    unit: str = ""  # the system service it belongs to
    memory: int = 0  # bytes of GPU memory, 0 where unknown

    def __str__(self) -> str:
        if not self.pid:
            return tr("a process of another user")
        shown = f"pid {self.pid} ({self.command})"
        return tr("{process} of {unit}", process=shown, unit=self.unit) if self.unit else shown

    @property
    def how_to_stop(self) -> str:
        if self.unit:
            return f"sudo systemctl stop {self.unit}"
        return tr("stop pid {pid} yourself (it is never ended for you)", pid=self.pid)
