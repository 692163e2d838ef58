"""Lines of a log that tell why something failed: what they mean and what helps, as data in data/signatures.json.

The order of the table is the order of causes: an entry further up explains those further down.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from installer.base.assets import DATA
from installer.base.language import tr
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.said import translated
from installer.runtime.vllm_text import one_line

TABLE = DATA / "signatures.json"
SERVICE, KERNEL, DRIVER = "service", "kernel", "driver"
ELIDED = "…"
# What a server says in passing is no fault, whatever words it uses; a client may have chosen them.
ASIDE = re.compile(r"(?:\([\w ]+ ?(?:pid=\d+)?\) )?(?:INFO|DEBUG|WARNING)\b")
# A traceback quotes the program before it says what happened.
QUOTED = re.compile(r"(?:^\s*|\]\s+)raise \w")


@dataclass(frozen=True)
class Example:
    line: str
    source: str


@dataclass(frozen=True)
class Signature:
    id: str
    where: frozenset[str]  # whose lines are meant: the service's, the kernel's, or what the GPU's driver answers
    severity: str
    patterns: tuple[re.Pattern[str], ...]
    cause: str
    commands: tuple[str, ...]
    examples: tuple[Example, ...]

    def explain(self, line: str, service: str, *, is_first: bool = False) -> Finding | None:
        """After a first start, which leaves no service behind, no command helps that changes one."""
        if self.severity == FAULT and (ASIDE.match(line) or QUOTED.search(line)):
            return None
        match = next((found for pattern in self.patterns if (found := pattern.search(line))), None)
        if match is None:
            return None
        groups = [one_line(group or "") for group in match.groups()]
        cause = tr(self.cause).format(*map(translated, groups), service=service)
        # Whatever stands in a log, in a command it is one word.
        words = [shlex.quote(group) for group in groups]
        set_none = f"sudo vllm-install set VLLM_ARGS= --service {service}"
        without = tr("run the same command without those vLLM flags") if is_first else set_none
        commands = tuple(command.format(*words, service=service, without_flags=without) for command in self.commands)
        return Finding(self.id, cause, one_line(line), commands, self.severity)


def recognise(line: str, service: str, where: str = SERVICE, *, is_first: bool = False) -> Finding | None:
    """What one line means; None for nearly every line."""
    # Nearly every line of a log is said in passing, for which only the notes are looked through.
    if not _any_pattern(NOTE if ASIDE.match(line) else FAULT).search(line):
        return None
    candidates = (s.explain(line, service, is_first=is_first) for s in signatures() if where in s.where)
    return next((finding for finding in candidates if finding), None)


def in_our_words(name: str, service: str) -> Finding | None:
    """What that signature means, with nothing in it that stood in a log."""
    found = next((signature for signature in signatures() if signature.id == name), None)
    if found is None:
        return None
    gaps = [ELIDED] * max(pattern.groups for pattern in found.patterns)
    commands = tuple(command.format(*gaps, service=service, without_flags=ELIDED) for command in found.commands)
    return Finding(name, tr(found.cause).format(*gaps, service=service), "", commands, found.severity)


def explain(lines: Iterable[str], service: str, where: str = SERVICE, *, is_first: bool = False) -> list[Finding]:
    """What these lines mean, each meaning once with the first line that has it, root causes first."""
    found: dict[str, Finding] = {}
    for line in lines:
        finding = recognise(line, service, where, is_first=is_first)
        if finding:
            found.setdefault(finding.id, finding)
    return [found[signature.id] for signature in signatures() if signature.id in found]


@functools.cache
def signatures() -> tuple[Signature, ...]:
    return parse(TABLE.read_text(encoding="utf-8"))


@functools.cache
def _any_pattern(severity: str) -> re.Pattern[str]:
    patterns = [p.pattern for s in signatures() for p in s.patterns if severity in (FAULT, s.severity)]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def parse(text: str) -> tuple[Signature, ...]:
    """The table, or a ValueError that names the entry that is wrong."""
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("the table is no list")
    found = tuple(_signature(entry, number) for number, entry in enumerate(entries, 1))
    names = [signature.id for signature in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"used twice: {', '.join(repeated)}")
    return found


def _signature(entry: object, number: int) -> Signature:
    keys = {"id", "where", "severity", "patterns", "cause", "commands", "examples"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise ValueError(f"entry {number} does not have exactly the keys {', '.join(sorted(keys))}")
    name = entry["id"]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"entry {number} has no proper id")
    where = _texts(entry["where"], name, "where")
    if not {*where} <= {SERVICE, KERNEL, DRIVER} or entry["severity"] not in (FAULT, NOTE):
        raise ValueError(f"{name}: where or severity is none that is known")
    examples = entry["examples"]
    if not isinstance(examples, list) or not examples:
        raise ValueError(f"{name} has no examples")
    try:
        signature = Signature(
            id=name,
            where=frozenset(where),
            severity=entry["severity"],
            patterns=tuple(re.compile(pattern) for pattern in _texts(entry["patterns"], name, "patterns")),
            cause=_texts([entry["cause"]], name, "cause")[0],
            commands=_texts(entry["commands"], name, "commands"),
            examples=tuple(Example(**example) for example in examples),
        )
        for pattern in signature.patterns:
            for template in (signature.cause, *signature.commands):
                template.format(*[""] * pattern.groups, service="", without_flags="")
    except (re.error, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{name}: {error}") from None
    return signature


def _texts(value: object, name: str, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise ValueError(f"{name}: {field} is no list of texts")
    return tuple(value)
