"""Which ports the services on this host have, also while they are stopped: a unit says where it will listen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.runtime import vllm_flags
from installer.units.processes import Address, as_address, conflict
from installer.units.syntax import exec_line

ANY = "0.0.0.0"  # where vLLM listens unless told  # noqa: S104


@dataclass(frozen=True)
class Port:
    unit: str
    address: Address
    number: int


def ports_of_services(host: Host) -> Iterator[Port]:
    """Of every unit that starts our launcher, an ejected one too; a damaged record changes nothing here."""
    runtimes = Layout("any").runtimes
    for path in host.children(Path("/etc/systemd/system")):
        if path.suffix != ".service" or not host.at(path).is_file():
            continue
        with contextlib.suppress(ValueError, InstallError):  # what somebody wrote there by hand may be no port
            words = exec_line(host.read(path) or "")
            if len(words) > 1 and runtimes in Path(words[1]).parents:
                flags = vllm_flags.given(vllm_flags.split(words)[2])
                yield Port(path.name, as_address(flags.get("--host", ANY)), int(flags.get("--port", "8000")))


def kept_for(host: Host, address: str, number: int, unit: str) -> str | None:
    """The other service whose port this is; None where `unit` has it as well, as a start of the one stops the other."""
    same = [port for port in ports_of_services(host) if port.number == number and conflict(address, port.address)]
    if any(port.unit == unit for port in same):
        return None
    return next((port.unit.removesuffix(".service") for port in same), None)
