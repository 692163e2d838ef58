"""The services of ours on this host and what each takes of it: GPUs, a share of their memory; and the next port."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import UNITS, Layout
from installer.checks import ports
from installer.checks.placement import engines_on, gpus_needed
from installer.spec.facts import Facts, Tenant
from installer.spec.records import readable_state, services
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import LOOPBACK, Target
from installer.spec.vendors import VARIABLES
from installer.units.processes import listener
from installer.units.syntax import environment
from installer.units.systemd import unit_properties

OF_ADMINS = (UNITS, Path("/run/systemd/system"))
LAST_PORT = 8999  # above lie ports that others are known to use
OF_REPLICAS = range(20001, 30000)  # below those that the kernel lends to whoever connects


def with_tenants(seen: Facts, host: Host, layout: Layout) -> Facts:
    """The facts, and what services of ours take; the record of one that cannot be read is its own problem."""
    return dataclasses.replace(seen, tenants=tenants(host), visible=visible_devices(host, layout))


def tenants(host: Host) -> tuple[Tenant, ...]:
    found = ((Layout(name), readable_state(host, Layout(name))) for name in services(host))
    return tuple(_tenant(state.proved, host, layout) for layout, state in found if state and state.proved)


def _tenant(proved: Target, host: Host, layout: Layout) -> Tenant:
    active = unit_properties(host, layout.unit_name, "ActiveState").get("ActiveState", "")
    engines = engines_on(proved.settings, len(proved.gpus))
    return Tenant(
        unit=layout.unit_name,
        kind=proved.engine.kind,
        gpus=proved.gpus,
        count=gpus_needed(proved.settings),
        share=proved.settings.gpu_memory_utilization * engines,
        visible=visible_devices(host, layout),
        runs=active in ("active", "activating", "reloading"),
    )


def visible_devices(host: Host, layout: Layout, number: int = 0) -> tuple[tuple[str, str], ...]:
    """The variables that choose GPUs in an admin's own drop-ins, which win over the unit's: of a replica by its number.

    Of several files of one name systemd reads the one for that replica alone, and rather from /etc.
    """
    names = [layout.replicas_drop_ins.name, f"{layout.member_name(number)}.d"] if number else [f"{layout.unit_name}.d"]
    found = [path for name in names for folder in reversed(OF_ADMINS) for path in host.children(folder / name)]
    files = {path.name: path for path in found if path.suffix == ".conf"}
    return visible(environment("\n".join(_text(host, files[name]) for name in sorted(files))))


def _text(host: Host, path: Path) -> str:
    """Of a drop-in; none where it is not for our eyes."""
    try:
        return host.read(path) or ""
    except OSError:
        return ""


def visible(variables: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, variables[name]) for name in VARIABLES if variables.get(name))


def with_port(settings: Settings, state: State, host: Host) -> Settings:
    """The settings with a port: `auto` is the one it has, or else the next that nobody has."""
    if settings.port:
        return settings
    if state.proved:
        return dataclasses.replace(settings, port=state.proved.settings.port)
    layout = Layout(settings.service)
    for port in range(Settings.port, LAST_PORT + 1):
        if not (ports.kept_for(host, settings.host, port, layout) or listener(host, settings.host, port)):
            return dataclasses.replace(settings, port=port)
    raise Refused(
        tr("no port from {first} to {last} is free", first=Settings.port, last=LAST_PORT),
        tr("name another one with --port"),
    )


def ports_of_replicas(settings: Settings, state: State, host: Host) -> list[int]:
    """A port for each, on the loopback interface: the one that it has or had, or else the next that nobody has."""
    layout = Layout(settings.service)
    lie = {layout.number_of(port.unit) or 0: port.number for port in ports.ports_of_services(host)}
    known = {number: port for number, port in lie.items() if number}
    for before in (state.previous, state.proved):
        known |= {replica.number: replica.port for replica in (before.replicas if before else ())}
    found: list[int] = []
    for number in range(1, settings.replicas + 1):
        taken = {settings.port, *found, *(known[other] for other in known if other != number)}
        mine = known.get(number, settings.port)
        found.append(mine if mine not in taken else _free_port(taken, layout, host))
    return found


def _free_port(taken: set[int], layout: Layout, host: Host) -> int:
    for port in OF_REPLICAS:
        if not (port in taken or ports.kept_for(host, LOOPBACK, port, layout) or listener(host, LOOPBACK, port)):
            return port
    raise Refused(
        tr("no port from {first} to {last} is free", first=OF_REPLICAS.start, last=OF_REPLICAS.stop - 1),
        tr("end what listens there; replicas are reached by such ports on the loopback interface"),
    )
