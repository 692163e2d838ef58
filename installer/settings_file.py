"""/etc/vllm-install/NAME.env: read strictly, edited in place, so that an admin's comments and order survive."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from installer.errors import UsageError
from installer.render import template
from installer.settings import FIELDS, NAMES, Settings, load, to_text

_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./:=,+@%^~-]*")


def parse(text: str, path: Path) -> dict[str, str | None]:
    """The file's variables; a line that is none is an error that names it."""
    values: dict[str, str | None] = {}
    for binding in _bindings(text):
        if binding.error:
            line = binding.original.string.strip()
            raise UsageError(
                f"{path}, line {binding.original.line}: {line[:60]!r} is not NAME=VALUE",
                f"mend or remove that line: sudoedit {path}",
            )
        if binding.key is not None:
            values[binding.key] = binding.value
    return values


def unknown(values: Mapping[str, str | None]) -> list[str]:
    """A line of warning for every variable that is no setting of ours."""
    warnings = []
    for name in values:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            warnings.append(
                f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else " and has no effect")
            )
    return warnings


def wanted(text: str | None, settings: Settings, path: Path) -> str:
    """The file's text after which it alone yields `settings`; the old text where it does so already."""
    base = text if text is not None else template("settings.env.j2").render(settings=settings, rows=_rows())
    values = parse(base, path)
    current = load(settings.service, values, {}, {})
    for attribute in FIELDS:
        value = getattr(settings, attribute)
        if value != getattr(current, attribute):
            names = FIELDS[attribute].metadata["names"]
            used = [name for name in names if name in values]
            base = _set(base, used[0] if used else names[0], to_text(attribute, value))
    return base


def _rows() -> list[dict[str, str]]:
    defaults = Settings()
    return [
        {
            "name": f.metadata["names"][0],
            "value": to_text(attribute, getattr(defaults, attribute)),
            "help": f.metadata["help"],
        }
        for attribute, f in FIELDS.items()
    ]


def _set(text: str, name: str, value: str) -> str:
    line = f"{name}={_quote(value)}\n"
    if any(binding.key == name for binding in _bindings(text)):
        return "".join(line if b.key == name else b.original.string for b in _bindings(text))
    commented = re.compile(rf"^#\s?{name}=.*\n?", re.MULTILINE)
    if commented.search(text):
        return commented.sub(lambda _: line, text, count=1)
    return text + ("" if not text or text.endswith("\n") else "\n") + line


def _quote(value: str) -> str:
    if _PLAIN_VALUE.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bindings(text: str) -> list[Binding]:
    return list(parse_stream(io.StringIO(text)))
