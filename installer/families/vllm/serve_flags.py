"""What vLLM would refuse of its own flags, said before it is started with them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence

from installer.base.errors import Refused, UsageError
from installer.base.language import mark, tr
from installer.runtime import vllm_flags
from installer.runtime.vllm_flags import Flag, Table, load_table
from installer.spec.values import version_key

REFERENCE = "https://docs.vllm.ai/en/stable/cli/serve/"


def check_words(words: Sequence[str], version: str, warn: Callable[[str], None]) -> None:
    """Refuse what vLLM itself would only refuse once it has been started anew; of another version, only warn."""
    known = load_table()
    place, flags = parse(words)
    said = [tr("expected a vLLM flag, found {word!r}", word=place)] if place else []
    said += [text for flag in flags if (text := _problem(flag, known))]
    for text in said:
        if version_key(version)[:3] != version_key(known.version)[:3]:
            warn(tr("vLLM {version} may refuse this: {text}", version=version, text=text))
            continue
        raise UsageError(text, tr("nothing was changed; all flags: {url}", url=REFERENCE))


def near(name: str) -> str:
    close = difflib.get_close_matches(name, sorted(load_table().names), n=1)
    return close[0] if close else ""


def _problem(flag: Flag, known: Table) -> str:
    """What is wrong with one flag; "" where nothing is."""
    name, base = flag.name, flag.base
    if name == "-O":
        return ""
    if not known.is_known(name):
        longer = known.beginning(name)
        meant = tr(", ").join(longer) if 1 < len(longer) < 9 else near(name)
        return tr("vLLM {version} has no flag {name}", version=known.version, name=flag.words[0].partition("=")[0]) + (
            tr("; is {near} meant?", near=meant) if meant else ""
        )
    if base not in known.names - {*known.switches}:
        return tr("{name} takes no value, found {value!r}", name=name, value=flag.value) if flag.values else ""
    if not flag.values and base not in known.optional:
        return tr("{name} lacks its value", name=name)
    return "" if "." in name else next((text for value in flag.values if (text := _of_value(name, value, known))), "")


def _of_value(name: str, value: str, known: Table) -> str:
    if value in ("", "None"):
        return ""
    if choices := known.choices.get(name):
        if {value, value.lower().replace("-", "_")} & set(choices):
            return ""
        return tr("{name} takes one of {choices}, found {value!r}", name=name, choices=", ".join(choices), value=value)
    kind = known.values.get(name, "")
    if kind and not _PARSERS[kind](value):
        return tr("{name} takes {kind}, found {value!r}", name=name, kind=tr(_KINDS[kind]), value=value)
    return ""


def _takes(convert: Callable[[str], object]) -> Callable[[str], bool]:
    def takes(value: str) -> bool:
        try:
            convert(value)
        except ValueError:
            return False
        return True

    return takes


_KINDS = {
    "json": mark("JSON"),
    "tokens": mark("a number such as 8192 or 8k"),
    "float": mark("a number"),
    "int": mark("a whole number"),
}
_PARSERS = {
    "json": _takes(json.loads),
    "tokens": lambda value: bool(re.fullmatch(r"\d+(\.\d+)?[kKmMgGtT]", value)) or _takes(int)(value),
    "float": _takes(float),
    "int": _takes(int),
}


def parse(words: Sequence[str]) -> tuple[str | None, list[Flag]]:
    """What follows `vllm serve`: the model, where it is named by its place, and every flag in order."""
    known = load_table()
    places, flags = vllm_flags.parse(words)
    for flag in flags:
        if not flag.values and (flag.base in known.one or flag.base != flag.name):
            raise Refused(
                tr("{name} lacks its value", name=flag.name), tr("vLLM's own flags and their values stand after --")
            )
    if len(places) > 1:
        raise Refused(
            tr("the vLLM command names {count} things by their place, of which one can be the model", count=len(places))
        )
    return (places[0] if places else None), flags
