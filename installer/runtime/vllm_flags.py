"""The words of `vllm serve` as its own parser reads them; vllm_flags.json has its flags, held to vLLM by a test.

The one reader on either side: our guard and the launcher's must understand a word alike. Stdlib only, for the launcher.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_words import VLLM, Words
else:
    from vllm_words import VLLM, Words

# How all flags of TLS begin.
TLS_FLAGS = ("--ssl", "--enable-ssl")
NO_TLS = "the gateway before it speaks TLS: TLS_CERT and TLS_KEY, or TLS=self"


@dataclass(frozen=True)
class Flag:
    """One flag of a command line: its name in vLLM's own spelling, its values, and the words that stood there."""

    name: str
    values: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        return self.values[-1] if self.values else ""

    @property
    def base(self) -> str:
        """Without the field of its JSON value that --compilation-config.level 3 sets."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Table:
    version: str
    one: Sequence[str]
    several: Sequence[str]
    optional: Sequence[str]
    switches: Sequence[str]
    aliases: Mapping[str, str]
    values: Mapping[str, str]  # json, tokens, float or int; any text where a flag is not named
    choices: Mapping[str, Sequence[str]]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        return frozenset((*self.one, *self.several, *self.optional, *self.switches))

    @functools.cached_property
    def spellings(self) -> dict[str, str]:
        """The flag that each name stands for; a switch has a second one that takes it back."""
        switched = (*self.switches, *(opposite(name) for name in self.switches))
        return {name: name for name in (*self.names, *switched)} | dict(self.aliases)

    def is_known(self, name: str) -> bool:
        return name.partition(".")[0] in self.spellings

    def resolve(self, name: str) -> str:
        """In vLLM's spelling: its aliases, underscores for dashes, and any beginning that only one flag has."""
        base, dot, field = name.partition(".")
        base = base.replace("_", "-") if base.startswith("--") else base
        longer = [self.spellings[base]] if base in self.spellings else self.beginning(base)
        return (longer[0] if len(longer) == 1 else base) + dot + field

    def beginning(self, name: str) -> list[str]:
        """Every flag that an abbreviation may stand for."""
        return sorted({flag for spelling, flag in self.spellings.items() if spelling.startswith(name)})

    def most(self, name: str) -> int:
        """How many words a flag takes at most; one that nobody knows takes all up to the next."""
        base = name.partition(".")[0]
        if base in self.switches or opposite(base) in self.switches:
            return 0
        return 1 if base != name or base in self.one or base in self.optional else 10**6


@functools.cache
def load_table(name: str = VLLM.table) -> Table:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name)) as file:
        return Table(**json.load(file))


def opposite(name: str) -> str:
    return f"--{name[5:]}" if name.startswith("--no-") else f"--no-{name[2:]}"


def parse(words: Sequence[str], of: Words = VLLM) -> tuple[list[str], list[Flag]]:
    """What stands there by its place, and every flag in order; a flag may lack its value."""
    table, places, flags = load_table(of.table), list[str](), list[Flag]()
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            places.append(word)
            continue
        name, equals, value = _glued(word, table) or word.partition("=")
        name = table.resolve(name)
        following = words[position:]
        free = next((i for i, other in enumerate(following) if _is_flag(other)), len(following))
        taken = 0 if equals else min(free, table.most(name))
        values = (value,) if equals else tuple(following[:taken])
        flags.append(Flag(name, values, (word, *following[:taken])))
        position += taken
    return places, flags


def _glued(word: str, table: Table) -> tuple[str, str, str] | None:
    """-O3 and -qfp8: a flag of one letter and its value in one word."""
    letter, value = word[:2], word[2:]
    if word in table.spellings or not value or value[0] in "=." or letter not in ("-O", *table.aliases):
        return None
    return letter, "=", value


def _is_flag(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))


def given(words: Sequence[str], of: Words = VLLM) -> dict[str, str]:
    """Flag -> value, "" where it has none. The last one counts, and --no-x takes --x back."""
    found: dict[str, str] = {}
    for flag in parse(words, of)[1]:
        found.pop(opposite(flag.base), None)
        found[flag.base] = flag.value
    return found


def meant(flag: Flag, flags: Iterable[str], of: Words = VLLM) -> str:
    """The one of these that a flag is, or might be in a version that knows fewer others or more; "" for none."""
    known = load_table(of.table).is_known(flag.base)
    return next((name for name in flags if name == flag.base or (not known and name.startswith(flag.base))), "")


def refused(words: Sequence[str], of: Words = VLLM) -> tuple[str, str] | None:
    """The first flag that a guarded and watched service cannot have, and why."""
    for flag in parse(words, of)[1]:
        if name := meant(flag, of.refused, of):
            return name, of.refused[name]
        if flag.base.startswith(TLS_FLAGS):
            return flag.base, NO_TLS
    return None


def split(words: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    """The launcher's --api-key arguments, the places of what else stands before the `--`, and what follows it."""
    end = words.index("--") if "--" in words else len(words)
    keys, strays = list[str](), list[int]()
    rest = iter(words[:end])
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--api-key":
            keys.append(value if equals else next(rest, ""))
        else:
            strays.append(len(keys) + 1)
    return keys, strays, list(words[end + 1 :])
