"""Limits of a key as people write them: 8, 600/min, 100k/min, 5M/month, high, or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.runtime.vllm_limits import NO_LIMIT, NUMBERS, Limit, line
from installer.spec.keys import PROBE, Key

LIFTED = "none"
PER = {"concurrent": "", "requests": "/min", "tokens": "/min", "budget": "/month"}
EXAMPLES = {"concurrent": "8", "requests": "600/min", "tokens": "100k/min", "budget": "5M/month"}
SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
HEAD = """\
# What each API key may use at most; by: vllm-install keys limit NAME --help
# concurrent: at once; requests, tokens: in a minute; budget: tokens in a calendar month of UTC. In force at once.
"""


def parse(name: str, text: str) -> int | None:
    """The number of one limit; None lifts it."""
    if text == LIFTED:
        return None
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)([kKmMgG]?)" + re.escape(PER[name]), text, re.ASCII)
    number = Decimal(match[1]) * SCALES[match[2].lower()] if match else Decimal(0)
    if not match or number != int(number) or number >= 10**15:
        raise UsageError(
            tr("{option} {text!r} is no limit", option=f"--{name}", text=text),
            tr("for example: {example}", example=f"--{name} {EXAMPLES[name]}"),
        )
    if not number:
        raise UsageError(
            tr("a limit of 0 would shut the key out"),
            tr("to take it out of force: vllm-install keys revoke NAME; to lift the limit: --{name} none", name=name),
        )
    return int(number)


def changed(limit: Limit, given: Mapping[str, str]) -> Limit:
    """The limit with what was given in the place of what was there."""
    numbers = {name: parse(name, text) for name, text in given.items() if name in NUMBERS}
    priority = given.get("priority", limit.priority)
    return limit._replace(**numbers, priority="normal" if priority == LIFTED else priority)


def to_text(limits: Mapping[str, Limit]) -> str:
    """The file that the service reads; nothing where nobody is limited."""
    lines = [line(name, limit) for name, limit in sorted(limits.items()) if limit != NO_LIMIT]
    return HEAD + "".join(f"{each}\n" for each in lines) if lines else ""


def account(key: Key) -> str:
    """Whose limits and usage it is: a key that lives on for a while and its successor are one client's."""
    return re.sub(r"-old(-\d+)?$", "", key.name) if key.is_grace else key.name


def accounts(held: Iterable[Key]) -> list[str]:
    return list(dict.fromkeys(map(account, held)))


def check_account(name: str, held: Iterable[str]) -> None:
    """Of a name that somebody typed."""
    if name not in held:
        names = ", ".join(each for each in held if each != PROBE)
        raise UsageError(tr("there is no key named {name!r}", name=name), tr("keys: {names}", names=names))


def in_words(limit: Limit) -> str:
    """As the options have it, for a line on a terminal."""
    words = [f"{name} {getattr(limit, name)}{PER[name]}" for name in NUMBERS if getattr(limit, name) is not None]
    return ", ".join([*words, *([f"priority {limit.priority}"] if limit.priority != "normal" else [])])


def to_json(limit: Limit) -> dict[str, object]:
    return limit._asdict()
