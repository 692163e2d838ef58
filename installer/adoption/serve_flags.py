"""The flags of `vllm serve` and how many words each takes: installer/data/serve_flags.json, held to vLLM by a test."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from installer import datafile
from installer.assets import DATA
from installer.errors import Refused
from installer.language import tr


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
        longer = {found for found in self.names if found.startswith(plain)}
        return longer.pop() if len(longer) == 1 else plain


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
    )


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
        if not following:
            raise Refused(tr("{name} at the end of the vLLM command lacks its value", name=name))
        return 1
    return min(free, 1) if base in known.optional else free


def _is_flag(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))
