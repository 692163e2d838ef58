"""What the house knows of a family of engines: plain data, and functions that read and write its words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from installer.base.language import tr
from installer.spec.calibration import Calibration
from installer.spec.profile import Profile
from installer.spec.settings import FIELDS, Settings, named
from installer.spec.soak import Requests
from installer.spec.target import Target
from installer.spec.toolkit import Toolkit


@dataclass(frozen=True)
class Rules:
    """What resolving one kind of engine goes by, each a list of lines for uv."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    exclusions: tuple[str, ...]


@dataclass(frozen=True)
class Imports:
    """What the check of an installed engine must get through, and what it imports besides for its bytecode."""

    package: str  # whose version every command of it asks for first
    entry: str
    needed: Mapping[str, tuple[str, ...]]  # by kind
    useful: tuple[str, ...]


@dataclass(frozen=True)
class Packages:
    """What an engine is made of."""

    rules: Callable[[str, str], Rules]  # of a kind and a version
    lock: Callable[[str, str, str], str | None]  # that was tested, for an interpreter and a machine too
    harmless_clashes: Callable[[], frozenset[str]]  # files that several bring with different content, read by nobody
    imports: Imports
    bytes: Mapping[str, int]  # by kind, installed and with bytecode
    glibc: Mapping[str, Mapping[str, tuple[int, int]]]  # by kind and machine: the oldest that its wheels load on
    pythons: Mapping[str, range]  # by kind: minor versions with wheels

    def said_pythons(self, kind: str) -> str:
        """The Pythons that there are wheels for, in words; empty where there is no build of that kind."""
        versions = [f"3.{minor}" for minor in self.pythons.get(kind, ())]
        return tr("{first} to {last}", first=versions[0], last=versions[-1]) if versions[1:] else "".join(versions)


@dataclass(frozen=True)
class Abilities:
    """What one version registers, as its own source says; of another version, nothing is claimed."""

    version: str
    tool_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    architectures: frozenset[str]
    removed_architectures: Mapping[str, str]  # and the last version that had them
    quantizations: Mapping[str, int]  # and the lowest compute capability, as 75 for 7.5
    quantizations_without_cpu: frozenset[str]
    rocm_quantizations: frozenset[str]
    deprecated_quantizations: frozenset[str]
    own_model_types: frozenset[str]  # they need no code from the model's own repository
    own_tokenizers: frozenset[str]  # model types and classes whose tokenizer needs none


@dataclass(frozen=True)
class Refusal:
    """An engine's own account of why a context does not fit."""

    context: int = 0
    needed_gib: float = 0.0
    available_gib: float = 0.0
    estimated_max: int = 0  # 0 where it names none


@dataclass(frozen=True)
class Log:
    """What it says while it starts, read back."""

    report: Callable[[Iterable[str]], Calibration | None]  # of its memory
    refusal: Callable[[Iterable[str]], Refusal | None]


@dataclass(frozen=True)
class Metrics:
    """The names of what it counts, and the reading of what a name does not tell."""

    prefix: str  # of all of them
    running: str
    waiting: str
    cache_used: str  # share, 0 to 1
    generated: str  # tokens since the start
    prompted: str
    first_token: str  # a histogram of seconds
    between_tokens: str  # another
    progress: re.Pattern[str]  # what the engine moves and nothing else does
    cache_tokens: Callable[[str], int | None]  # how many the cache holds
    requests: Callable[[str], Requests | None]


@dataclass(frozen=True)
class Compiling:
    """What it would have a CUDA compiler for, and how it does without."""

    describe: Callable[[Toolkit], str]
    cost: str  # of none, to be translated
    attention: Callable[[Sequence[tuple[int, int]], Callable[[], bool]], str]  # without one; "" for its own choice
    # Whether a compiler was measured to be worth its longer first start; asks whether weights are dense FP8.
    pays: Callable[[Sequence[tuple[int, int]], Callable[[], bool]], bool]


@dataclass(frozen=True)
class Family:
    name: str  # as the setting has it
    title: str  # as people write it
    version_setting: str
    arguments: Callable[[Target], list[str]]  # what the launcher is given, behind the keys
    environment: Callable[[Target, Path], dict[str, str]]
    check_words: Callable[[Settings, Callable[[str], None]], None]  # of flags that it would refuse itself
    memory_share: Callable[[Settings, str], float]  # of a kind of engine
    gpus_a_rank: Callable[[Settings], int]
    packages: Packages
    abilities: Callable[[], Abilities]
    in_own_words: Callable[[Profile], Profile]  # what was found out by names of vLLM's parsers
    log: Log
    metrics: Metrics
    compiling: Compiling | None  # None where nothing is done about a compiler
    predicts_memory: bool  # whether it is known beforehand which context fits
    measures: bool  # whether it has a bench that we run
    keeps_weights: Callable[[Settings], bool]  # whether they take the room that their files do
    several_on_cpu: Mapping[str, str] = field(default_factory=dict)  # variables where others use the same processor

    def version(self, settings: Settings) -> str:
        return str(getattr(settings, self.version_setting))


def say_unheeded(title: str, names: Iterable[str], settings: Settings, warn: Callable[[str], None]) -> None:
    """Settings that were chosen, and that mean nothing to this family."""
    for name in names:
        if getattr(settings, name) != FIELDS[name].default:
            said = tr(
                "{engine} has nothing like {setting}: it is kept, and does nothing", engine=title, setting=named(name)
            )
            warn(said)
