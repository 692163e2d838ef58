"""Adopting a deployment made by hand: find out what it is, say what it becomes, and make the request for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.adoption import former, old_compose, old_script, old_unit
from installer.adoption.old import Old, read_stdin, read_text
from installer.adoption.translate import Adoption, translate
from installer.changes import Change, Write
from installer.host import Host
from installer.layout import Layout
from installer.resolve import KeyChoice, Request
from installer.settings import FIELDS, to_text
from installer.steps import unit_properties


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
            field.metadata["names"][0]: to_text(name, getattr(settings, name))
            for name, field in FIELDS.items()
            if getattr(settings, name) != field.default
        }

    def difference(self, changes: list[Change]) -> str:
        """From what starts vLLM now to our unit; keys are masked in both."""
        unit = Layout(self.adoption.settings.service).unit
        text = next((change.text for change in changes if isinstance(change, Write) and change.path == unit), "")
        before, after = (self.adoption.redact(shown).splitlines() for shown in (self.old.shown, text))
        return "\n".join(difflib.unified_diff(before, after, "before", str(unit), lineterm=""))


def find(source: str, host: Host, compose_service: str | None) -> Old:
    """SOURCE is a unit that systemd knows, a file, or - for a shell line on standard input."""
    if source == "-":
        return old_script.read(read_stdin(), Old((), directory=Path.cwd()), host)
    if "/" not in source and compose_service is None and (unit := old_unit.installed(source, host)):
        return unit
    path = Path.cwd() / source
    text = read_text(path, host)
    if compose_service or path.suffix in (".yml", ".yaml"):
        return old_compose.read(path, host, compose_service)
    if path.suffix == ".service" or "\n[Service]" in f"\n{text}":
        return old_unit.of_file(path, host)
    return old_script.read(text, Old((), directory=path.parent), host)


def propose(
    source: str, service: str, file: Mapping[str, str | None], wishes: Mapping[str, str], host: Host,
    *, new_key: bool, compose_service: str | None,
) -> Proposal:  # fmt: skip
    old = find(source, host, compose_service)
    adoption = translate(old, service, file, wishes, host, new_key=new_key)
    layout, before = Layout(service), None
    if old.unit:
        properties = unit_properties(host, old.unit, "UnitFileState", "ActiveState")
        before = former.of(old.unit, old.files, properties, host, layout)
    given, *further = adoption.keys or (None,)
    choice = KeyChoice(given, further=tuple(filter(None, further)))
    request = Request("adopt", adoption.settings, choice, former=before, environment=adoption.environment)
    return Proposal(old, adoption, request)
