"""Adopting a deployment made by hand: find out what it is, say what it becomes, and make the request for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from installer.adoption import former, old_cluster, old_compose, old_quadlet, old_script, old_unit
from installer.adoption.old import Old, home, read_stdin, read_text
from installer.adoption.translate import Adoption, translate
from installer.base.changes import Change, Write
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.flow.request import KeyChoice, Request
from installer.spec.former import Former
from installer.spec.settings import FIELDS, RESERVED, SERVICE_NAME, to_text
from installer.units.systemd import unit_properties


@dataclass(frozen=True)
class Proposal:
    old: Old
    adoption: Adoption
    request: Request

    @property
    def settings(self) -> dict[str, str]:
        """Those that differ from the defaults, by the name that the settings file has for them."""
        settings = self.adoption.settings
        return {
            about.names[0]: to_text(name, getattr(settings, name))
            for name, about in FIELDS.items()
            if getattr(settings, name) != about.default
        }

    def difference(self, changes: list[Change]) -> str:
        """From what starts vLLM now to our unit; keys are masked in both."""
        unit = Layout(self.adoption.settings.service).unit
        text = next((change.text for change in changes if isinstance(change, Write) and change.path == unit), "")
        before, after = (self.adoption.redact(shown).splitlines() for shown in (self.old.shown, text))
        return "\n".join(difflib.unified_diff(before, after, "before", str(unit), lineterm=""))


def service_of(source: str, host: Host) -> str | None:
    """The name that a service adopted from here has if nobody says another: that of the unit."""
    name = Path(source).name.removesuffix(".service")
    if "/" in source and str(Path(source).parent) not in old_unit.PLACES:
        return None
    if not SERVICE_NAME.fullmatch(name) or RESERVED.fullmatch(name):
        return None
    return name if unit_properties(host, f"{name}.service", "LoadState").get("LoadState") == "loaded" else None


def _pause(before: Former, timeout: str) -> tuple[str, ...]:
    """Nobody is answered from the old server's end to the new one's first proof; how long it may take to end."""
    if not before.active:
        return ()
    if timeout in ("", "infinity"):
        return (
            tr("nobody is answered until the new service is up; {unit} may take any time to stop", unit=before.unit),
        )
    return (
        tr(
            "nobody is answered until the new service is up; {unit} may take {time} to stop",
            unit=before.unit, time=timeout,
        ),
    )  # fmt: skip


def find(source: str, host: Host, compose_service: str | None) -> Old:
    """SOURCE is a unit that systemd knows, a file, or - for a shell line on standard input."""
    if source == "-":
        return old_script.read(read_stdin(), Old((), directory=Path.cwd(), home=home()), host)
    if "/" not in source and compose_service is None and (unit := old_unit.installed(source, host)):
        return unit
    path = Path.cwd() / source
    text = read_text(path, host)
    if compose_service or path.suffix in (".yml", ".yaml"):
        if old_cluster.is_manifest(text):
            return old_cluster.read(path, text, host)
        return old_compose.read(path, host, compose_service)
    if path.suffix == ".container" or f"\n{old_quadlet.SECTION}" in f"\n{text}":
        return old_quadlet.read(path, host)
    if path.suffix == ".service" or "\n[Service]" in f"\n{text}":
        return old_unit.of_file(path, host)
    return old_script.read(text, Old((), directory=path.parent, home=home()), host)


def propose(
    old: Old, service: str, file: Mapping[str, str | None], wishes: Mapping[str, str], host: Host, *, new_key: bool
) -> Proposal:
    adoption = translate(old, service, file, wishes, host, new_key=new_key)
    layout, before = Layout(service), None
    if old.unit:
        properties = unit_properties(host, old.unit, "UnitFileState", "ActiveState", "TimeoutStopUSec")
        before = former.of(old.unit, old.files, properties, host, layout, ejected=old.is_ejected)
        adoption = replace(
            adoption, clients=(*adoption.clients, *_pause(before, properties.get("TimeoutStopUSec", "")))
        )
    given, *further = adoption.keys or (None,)
    held = () if new_key else old.keys
    choice = KeyChoice(given, further=tuple(filter(None, further)), held=held)
    request = Request("adopt", adoption.settings, choice, former=before, environment=adoption.environment,
                      caches=adoption.caches)  # fmt: skip
    return Proposal(old, adoption, request)
