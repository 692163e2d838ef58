"""Other processes on the host, as they may be shown: who listens on a port, what a pid is.

Read below the host's root, and not by psutil: it tells neither a socket's inode and user nor a control group, by which
custody is decided, and of what is mapped only with the size of every page.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from installer.base.host import Host
from installer.base.layout import Layout
from installer.runtime.vllm_text import command, one_line
from installer.spec.facts import Process

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SYSTEMD = 1
LISTEN = "0A"  # a TCP state in /proc/net/tcp


def listener(host: Host, address: str, port: int) -> Process | None:
    """The process that listens where a service wants to listen."""
    sockets = {f"socket:[{inode}]": uid for taken, inode, uid in _listening(host, port) if conflict(address, taken)}
    return owner(host, sockets) if sockets else None


def listening(host: Host, address: Address, port: int) -> dict[str, int]:
    """inode -> uid of the sockets that take connections to this very address; several share a port knowingly."""
    found = list(_listening(host, port))
    exact = {inode: uid for taken, inode, uid in found if taken == address}
    family = {i: uid for taken, i, uid in found if taken.version == address.version and taken.is_unspecified}
    # Only where no IPv4 listener takes it can it reach one of IPv6, which then takes both.
    both = {i: uid for taken, i, uid in found if taken.version == 6 and taken.is_unspecified}
    return exact | family or (both if address.version == 4 else {})


def _listening(host: Host, port: int) -> Iterator[tuple[Address, str, int]]:
    """Address, inode and uid of each socket that listens on a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (host.read(Path(table)) or "").splitlines()[1:]:
            columns = line.split()
            taken, _, taken_port = columns[1].partition(":")
            if columns[3] == LISTEN and int(taken_port, 16) == port:
                yield _decode(taken), columns[9], int(columns[7])


def conflict(wanted: str, taken: Address) -> bool:
    """Whether two listeners exclude each other.

    `::` takes IPv4 too unless its owner says otherwise, which cannot be seen from outside.
    """
    ours = as_address(wanted)
    if ours == taken or "::" in (str(ours), str(taken)):
        return True
    return ours.version == taken.version and (ours.is_unspecified or taken.is_unspecified)


def as_address(text: str) -> Address:
    return ipaddress.ip_address("127.0.0.1" if text == "localhost" else text)


def describe(host: Host, pid: int, name: str = "", memory: int = 0) -> Process:
    """A process by the harmless part of its command line; else by the name given, or the kernel's for it."""
    shown = command(read(host, pid, "cmdline")) or command(name) or one_line(read(host, pid, "comm"))
    return Process(pid, shown, _unit(host, pid), memory)


def _decode(text: str) -> Address:
    """The kernel prints an address as 32-bit words in the machine's byte order."""
    words = (int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


def owner(host: Host, sockets: Mapping[str, int]) -> Process:
    """Who has one of these open, which belong to these users. systemd keeps sockets for others: it is asked last."""
    for pid in [pid for pid in pids(host) if pid != SYSTEMD] + [SYSTEMD]:
        for handle in handles(host, pid):
            if handle in sockets:
                found = describe(host, pid)
                return replace(found, unit=_kept_for(host, sockets[handle])) if pid == SYSTEMD else found
    return Process(0, "unknown")


def _kept_for(host: Host, uid: int) -> str:
    """The service of ours that handed a socket to systemd, by its user: the unit's processes are all gone."""
    users = (line.split(":") for line in (host.read(Path("/etc/passwd")) or "").splitlines())
    name = next((user[0] for user in users if len(user) > 2 and user[2] == str(uid)), "")
    return Layout(name.removeprefix("vllm-")).unit_name if name.startswith("vllm-") else ""


def pids(host: Host) -> list[int]:
    return sorted(int(path.name) for path in host.children(Path("/proc")) if path.name.isdigit())


def of_unit(host: Host, unit: str) -> Iterator[int]:
    """A unit's processes, by the control group that systemd keeps them in."""
    group = host.run("systemctl", "show", unit, "--property=ControlGroup", "--value", check=False).stdout.strip()
    for pid in pids(host) if group else ():
        places = [line.split(":", 2)[-1] for line in read(host, pid, "cgroup").splitlines()]
        if any(place == group or place.startswith(f"{group}/") for place in places):
            yield pid


def handles(host: Host, pid: int) -> Iterator[str]:
    """What a process has open. It may end meanwhile, open and close files, or be another user's."""
    with suppress(OSError):
        for handle in host.at(Path(f"/proc/{pid}/fd")).iterdir():
            with suppress(OSError):
                yield str(handle.readlink())


def _unit(host: Host, pid: int) -> str:
    """The system service a process belongs to; a user's own services are not ours to name."""
    for line in read(host, pid, "cgroup").splitlines():
        parts = line.rpartition(":")[2].split("/")
        services = [part for part in parts if part.endswith(".service")]
        if services and "user.slice" not in parts:
            return one_line(services[0])
    return ""


def read(host: Host, pid: int, name: str) -> str:
    """A file of a process in /proc; empty where it has ended or is none of ours to see."""
    try:
        return host.read(Path(f"/proc/{pid}/{name}")) or ""
    except OSError:  # it ended while we read
        return ""
