"""Which ports the services on this host have, also while they are stopped: a unit says where it will listen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import UNITS, Layout
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
    """Of every unit that starts our launcher or gateway, an ejected one too; a damaged record changes nothing here."""
    runtimes = Layout("any").runtimes
    for path in host.children(UNITS):
        if path.suffix != ".service" or not host.at(path).is_file():
            continue
        with contextlib.suppress(ValueError, InstallError):  # what somebody wrote there by hand may be no port
            words = exec_line(host.read(path) or "")
            program = next((n for n, word in enumerate(words) if runtimes in Path(word).parents), None)
            if program is not None:
                flags = vllm_flags.given(vllm_flags.split(words)[2] or words[program + 1 :])
                yield Port(path.name, as_address(flags.get("--host", ANY)), int(flags.get("--port", "8000")))


def kept_for(host: Host, address: str, number: int, layout: Layout) -> str | None:
    """The other service whose port this is; None where this one has it as well."""
    same = [port for port in ports_of_services(host) if port.number == number and conflict(address, port.address)]
    if any(layout.has_unit(port.unit) for port in same):
        return None
    return next((port.unit.removesuffix(".service").partition("@")[0] for port in same), None)
