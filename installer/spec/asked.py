"""What the user asks for: defaults < /etc/vllm-install/NAME.env < environment < flags, validated, frozen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.layout import Layout
from installer.spec import values
from installer.spec.settings import FIELDS, NAMES, Settings, check_service, named, to_text

SET_CONTEXT = "set-context"  # the verb whose word is a setting's value


def load_settings(
    service: str,
    file: Mapping[str, str | None],
    environment: Mapping[str, str],
    flags: Mapping[str, str],
) -> Settings:
    """Merge the three sources over the defaults; `flags` is keyed by field name, the others by setting name."""
    settings = Settings(service=check_service(service))
    settings_file = str(Layout(service).settings_file)
    settings = _apply(settings, _by_field(file, settings_file), settings_file)
    variables = tr("the environment")
    set_variables = {name: value for name, value in environment.items() if value}
    settings = _apply(settings, _by_field(set_variables, variables), variables)
    return _apply(settings, {name: (FIELDS[name].typed, value) for name, value in flags.items()}, "")


def field_named(name: str) -> str:
    """The setting that a user means by PORT, port or --port."""
    plain = name.lstrip("-").replace("-", "_")
    by_option = {about.typed[2:].replace("-", "_"): each for each, about in FIELDS.items() if about.metavar}
    attribute = NAMES.get(plain.upper()) or by_option.get(plain.lower(), plain.lower())
    if attribute not in FIELDS:
        near = difflib.get_close_matches(plain.upper(), NAMES, n=1)
        raise UsageError(
            tr("{name!r} is not a setting", name=name) + (tr("; did you mean {near}?", near=near[0]) if near else ""),
            tr("settings: {names}", names=", ".join(NAMES)),
        )
    return attribute


def assigned(assignments: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE words by field name."""
    flags = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(
                tr("{assignment!r} is not NAME=VALUE", assignment=assignment), tr("for example: PORT=8001")
            )
        attribute = field_named(name)
        if attribute in flags:
            raise UsageError(tr("{name} is given twice", name=name), tr("give it once"))
        check_typed(attribute, name, value)
        flags[attribute] = value
    return flags


def check_typed(attribute: str, typed: str, value: str) -> None:
    """An error names the setting as it was typed, whatever it is called elsewhere."""
    _apply(Settings(), {attribute: (typed, value)}, "")


def _by_field(source: Mapping[str, str | None], where: str) -> dict[str, tuple[str, str]]:
    """field -> (name used, value); two names for one field must agree."""
    found: dict[str, tuple[str, str]] = {}
    for name, attribute in NAMES.items():
        value = source.get(name)
        if value is None:
            continue
        if attribute in found and found[attribute][1] != value:
            first, other = found[attribute]
            raise UsageError(
                tr(
                    "{first}={found!r} and {name}={value!r} in {where} contradict each other",
                    first=first, found=_shown(attribute, other), name=name, value=_shown(attribute, value), where=where,
                ),
                tr("both mean the same setting; remove one of them"),
            )  # fmt: skip
        found.setdefault(attribute, (name, value))
    return found


def _apply(settings: Settings, given: Mapping[str, tuple[str, str]], where: str) -> Settings:
    changed = {}
    for attribute, (name, value) in given.items():
        try:
            changed[attribute] = FIELDS[attribute].parse(value)
        except ValueError as error:
            shown = _shown(attribute, value)
            said = f"{name} {shown!r}" if name in ("--", SET_CONTEXT) else f"{name}={shown!r}"
            place = tr("{assignment} in {where}", assignment=said, where=where) if where else said
            raise UsageError(tr("{what}: {why}", what=place, why=error), _example(attribute, name)) from None
    return replace(settings, **changed)


def _shown(attribute: str, value: str) -> str:
    """A value that is refused, as an error repeats it."""
    return values.without_secrets(value) if FIELDS[attribute].parse in values.URLS else value


def _example(attribute: str, typed: str) -> str:
    """What a setting looks like, where its default is an example of that."""
    if typed == SET_CONTEXT:
        return tr("for example: {example}", example=f"{SET_CONTEXT} 32k")
    default = to_text(attribute, getattr(Settings, attribute))
    if not default:
        return tr("see: vllm-install deploy --help")
    example = f"{named(attribute)}={default}"
    if attribute != "offline":
        example = tr("{first} or {second}", first=example, second=f"{FIELDS[attribute].typed} {default}")
    return tr("for example: {example}", example=example)
