"""/etc/vllm-install/NAME.env: read strictly, edited in place, so that an admin's comments and order survive."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.templates import template
from installer.runtime.vllm_text import without_password
from installer.spec.asked import load_settings
from installer.spec.settings import FIELDS, NAMES, Settings, to_text

_NEWLINE = re.compile(r"\r\n|\n|\r")
_ASSIGNMENT = re.compile(
    r"""
    (?P<before> \s* (?:export\s+)? [^=]* = [^\S\r\n]*)
    (?: (?: '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" ) (?P<behind_quoted> [^\S\r\n]* (?:\#[^\r\n]*)? )
      | (?!['"]) [^\r\n]*? (?P<behind_plain> (?:[^\S\r\n]* (?<=\s)\#[^\r\n]*)? [^\S\r\n]* ) )
    (?P<end> \r\n | \n | \r )?
    """,
    re.DOTALL | re.VERBOSE,
)
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./:=,+@%^~-]*")


def parse(text: str, path: Path) -> dict[str, str | None]:
    """The file's variables; a line that is none is an error that names it."""
    values: dict[str, str | None] = {}
    for binding in _bindings(text):
        if binding.error or (binding.key is not None and binding.value is None):
            original = binding.original.string
            number = binding.original.line + len(_NEWLINE.findall(original[: -len(original.lstrip())]))
            raise UsageError(
                tr(
                    "{path}, line {number}: {line!r} is not NAME=VALUE",
                    path=path,
                    number=number,
                    line=without_password(original.strip())[:60],
                ),
                tr("mend or remove that line: sudoedit {path}", path=path),
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
                tr("{name} is not a setting; did you mean {near}?", name=name, near=near[0])
                if near
                else tr("{name} is not a setting and has no effect", name=name)
            )
    return warnings


def wanted(text: str | None, settings: Settings, path: Path) -> str:
    """The file's text after which it alone yields `settings`; the old text where it does so already."""
    base = text if text is not None else template("settings.env.j2").render(settings=settings, rows=_rows())
    values = parse(base, path)
    current = load_settings(settings.service, values, {}, {})
    for attribute in FIELDS:
        value = getattr(settings, attribute)
        if value != getattr(current, attribute):
            names = FIELDS[attribute].names
            for name in [name for name in names if name in values] or names[:1]:
                base = _set(base, name, to_text(attribute, value))
    return base


def _rows() -> list[dict[str, str]]:
    return [
        {"name": about.names[0], "value": to_text(attribute, about.default), "help": about.help}
        for attribute, about in FIELDS.items()
    ]


def _set(text: str, name: str, value: str) -> str:
    """The text with one variable set where it stands, else where its default is shown, else at the end."""
    bindings = _bindings(text)
    if any(binding.key == name for binding in bindings):
        return "".join(_with_value(b.original.string, value) if b.key == name else b.original.string for b in bindings)
    default = f"#{name}={to_text(NAMES[name], getattr(Settings, NAMES[name]))}"
    for index, binding in enumerate(bindings):
        line = binding.original.string
        if binding.key is None and line.strip() == default:
            texts = [b.original.string for b in bindings]
            texts[index] = line.replace(default, f"{name}={_quote(value)}")
            return "".join(texts)
    return text + ("" if not text or text.endswith("\n") else "\n") + f"{name}={_quote(value)}\n"


def _with_value(assignment: str, value: str) -> str:
    """An assignment with another value; what stands around it, a comment behind it too, stays."""
    match = _ASSIGNMENT.fullmatch(assignment)
    assert match is not None, assignment
    behind = match["behind_quoted"] or match["behind_plain"] or ""
    gap = " " if behind.startswith("#") else ""
    return match["before"] + (_quote(value) or "''") + gap + behind + (match["end"] or "")


def _quote(value: str) -> str:
    if _PLAIN_VALUE.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bindings(text: str) -> list[Binding]:
    return list(parse_stream(io.StringIO(text)))
