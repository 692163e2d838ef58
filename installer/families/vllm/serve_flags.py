"""The flags of `vllm serve` and what each takes: installer/data/serve_flags.json, held to vLLM by a test."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from installer.base import datafile
from installer.base.assets import DATA
from installer.base.errors import Refused, UsageError
from installer.base.language import mark, tr
from installer.spec.values import version_key

REFERENCE = "https://docs.vllm.ai/en/stable/cli/serve/"


@dataclass(frozen=True)
class Flag:
    """One flag of a command line: its name in vLLM's own spelling, its values, and the words that stood there."""

    name: str
    values: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        return self.values[-1] if self.values else ""


@dataclass(frozen=True)
class ServeFlags:
    version: str
    one: frozenset[str]
    several: frozenset[str]
    optional: frozenset[str]
    switches: frozenset[str]
    aliases: Mapping[str, str]
    values: Mapping[str, str]  # json, tokens, float or int; any text where a flag is not named
    choices: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> frozenset[str]:
        return self.one | self.several | self.optional | self.switches

    def is_known(self, name: str) -> bool:
        base = name.partition(".")[0]  # --compilation-config.level 3 sets one field of a JSON value
        return base in self.names or f"--{base.removeprefix('--no-')}" in self.switches

    def near(self, name: str) -> str:
        close = difflib.get_close_matches(name, sorted(self.names), n=1)
        return close[0] if close else ""

    def resolve(self, name: str) -> str:
        """In vLLM's spelling: its aliases, underscores for dashes, and any beginning that only one flag has."""
        if name in self.aliases:
            return self.aliases[name]
        if not name.startswith("--"):
            return name
        base, dot, field = name.partition(".")
        plain = self.aliases.get(base.replace("_", "-"), base.replace("_", "-"))
        if self.is_known(plain) or dot:
            return plain + dot + field
        longer = self.beginning(plain)
        return longer[0] if len(longer) == 1 else plain

    def beginning(self, name: str) -> list[str]:
        """As argparse takes them: every flag that an abbreviation may stand for."""
        negated = {f"--no-{switch[2:]}" for switch in self.switches}
        return sorted(found for found in self.names | negated if found.startswith(name))


@functools.cache
def load() -> ServeFlags:
    section = datafile.read(DATA / "serve_flags.json", " ".join(ServeFlags.__dataclass_fields__))
    return ServeFlags(
        version=section.text("version"),
        one=frozenset(section.texts("one")),
        several=frozenset(section.texts("several")),
        optional=frozenset(section.texts("optional")),
        switches=frozenset(section.texts("switches")),
        aliases={name: str(flag) for name, flag in section.mapping("aliases").items()},
        values={name: str(kind) for name, kind in section.mapping("values").items()},
        choices={name: _texts(listed) for name, listed in section.mapping("choices").items()},
    )


def _texts(listed: object) -> tuple[str, ...]:
    assert isinstance(listed, list)
    return tuple(map(str, listed))


def check(words: Sequence[str], version: str, warn: Callable[[str], None]) -> None:
    """Refuse what vLLM itself would only refuse once it has been started anew; of another version, only warn."""
    known = load()
    place, flags = parse(words)
    said = [tr("expected a vLLM flag, found {word!r}", word=place)] if place else []
    said += [text for flag in flags if (text := _problem(flag, known))]
    for text in said:
        if version_key(version)[:3] != version_key(known.version)[:3]:
            warn(tr("vLLM {version} may refuse this: {text}", version=version, text=text))
            continue
        raise UsageError(text, tr("nothing was changed; all flags: {url}", url=REFERENCE))


def _problem(flag: Flag, known: ServeFlags) -> str:
    """What is wrong with one flag; "" where nothing is."""
    name, base = flag.name, flag.name.partition(".")[0]
    if name == "-O":
        return ""
    if not known.is_known(name):
        longer = known.beginning(name)
        near = tr(", ").join(longer) if 1 < len(longer) < 9 else known.near(name)
        return tr("vLLM {version} has no flag {name}", version=known.version, name=flag.words[0].partition("=")[0]) + (
            tr("; is {near} meant?", near=near) if near else ""
        )
    if base not in known.names - known.switches:
        return tr("{name} takes no value, found {value!r}", name=name, value=flag.value) if flag.values else ""
    if not flag.values and base not in known.optional:
        return tr("{name} lacks its value", name=name)
    return "" if "." in name else next((text for value in flag.values if (text := _of_value(name, value, known))), "")


def _of_value(name: str, value: str, known: ServeFlags) -> str:
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
    known, flags = load(), list[Flag]()
    places: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            places.append(word)
            continue
        name, equals, value = word.partition("=")
        if word.startswith("-O") and not equals and len(word) > 2:
            name, equals, value = "-O", "=", word[2:].lstrip(".=")
        name = known.resolve(name)
        taken = 0 if equals else _taken(known, name, words[position:])
        values = (value,) if equals else tuple(words[position : position + taken])
        flags.append(Flag(name, values, (word, *words[position : position + taken])))
        position += taken
    if len(places) > 1:
        raise Refused(
            tr("the vLLM command names {count} things by their place, of which one can be the model", count=len(places))
        )
    return (places[0] if places else None), flags


def _taken(known: ServeFlags, name: str, following: Sequence[str]) -> int:
    """How many of the following words are a flag's values; of an unknown flag, all up to the next one."""
    free = next((i for i, word in enumerate(following) if _is_flag(word)), len(following))
    base = name.partition(".")[0]
    if base in known.switches or f"--{base.removeprefix('--no-')}" in known.switches:
        return 0
    if base in known.one or "." in name:
        if not free:
            raise Refused(
                tr("{name} lacks its value", name=name), tr("vLLM's own flags and their values stand after --")
            )
        return 1
    return min(free, 1) if base in known.optional else free


def _is_flag(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))
