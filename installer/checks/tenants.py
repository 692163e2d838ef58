"""The services of ours on this host and what each takes of it: GPUs, a share of their memory; and the next port."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.checks import ports
from installer.checks.placement import gpus_needed
from installer.spec.facts import Facts, Tenant
from installer.spec.records import readable_state, services
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Target
from installer.spec.vendors import VARIABLES
from installer.units.processes import listener
from installer.units.syntax import environment
from installer.units.systemd import unit_properties

UNITS = (Path("/etc/systemd/system"), Path("/run/systemd/system"))
LAST_PORT = 8999  # above lie ports that others are known to use


def with_tenants(seen: Facts, host: Host, layout: Layout) -> Facts:
    """The facts, and what services of ours take; the record of one that cannot be read is its own problem."""
    return dataclasses.replace(seen, tenants=tenants(host), visible=visible_devices(host, layout))


def tenants(host: Host) -> tuple[Tenant, ...]:
    found = ((Layout(name), readable_state(host, Layout(name))) for name in services(host))
    return tuple(_tenant(state.proved, host, layout) for layout, state in found if state and state.proved)


def _tenant(proved: Target, host: Host, layout: Layout) -> Tenant:
    active = unit_properties(host, layout.unit_name, "ActiveState").get("ActiveState", "")
    return Tenant(
        unit=layout.unit_name,
        kind=proved.engine.kind,
        gpus=proved.gpus,
        count=gpus_needed(proved.settings),
        share=proved.settings.gpu_memory_utilization,
        visible=visible_devices(host, layout),
        runs=active in ("active", "activating", "reloading"),
    )


def visible_devices(host: Host, layout: Layout) -> tuple[tuple[str, str], ...]:
    """The variables that choose GPUs in an admin's own drop-ins, which win over the unit's."""
    files = [path for folder in UNITS for path in host.children(folder / f"{layout.unit_name}.d")]
    texts = [_text(host, path) for path in sorted(files, key=lambda path: path.name) if path.suffix == ".conf"]
    return visible(environment("\n".join(texts)))


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
    unit = Layout(settings.service).unit_name
    for port in range(Settings.port, LAST_PORT + 1):
        if not (ports.kept_for(host, settings.host, port, unit) or listener(host, settings.host, port)):
            return dataclasses.replace(settings, port=port)
    raise Refused(
        tr("no port from {first} to {last} is free", first=Settings.port, last=LAST_PORT),
        tr("name another one with --port"),
    )
