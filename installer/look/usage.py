"""What each key of a service has used: read from a file of the service's own, of which nothing is believed unseen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta, timezone

from installer.base.cells import pad
from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.runtime import vllm_usage
from installer.runtime.vllm_text import one_line
from installer.runtime.vllm_usage import Numbers, Used
from installer.spec import limits
from installer.spec.records import managed
from installer.units import keyring

EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Spent:
    requests: int
    errors: int
    refused: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Day(Spent):
    day: str


@dataclass(frozen=True)
class KeyUsage(Spent):
    key: str
    last_used: str | None
    days: tuple[Day, ...]


@dataclass(frozen=True)
class Usage:
    service: str
    since: str  # a day of UTC
    tokens_are_counted: bool
    keys: tuple[KeyUsage, ...]


def usage(service: str, host: Host, seconds: int, key: str | None = None) -> Usage:
    layout = Layout(service)
    managed(host, layout, to_look=True)
    try:
        content = _content(host, layout)
        used = [each for each in vllm_usage.read(content) if key in (None, each.name)]
        if key is not None and not used:
            limits.check_account(key, limits.accounts(keyring.unit_keys(host, layout)))
    except PermissionError:
        raise Refused(
            tr("only root can see who has used how much"), f"sudo vllm-install usage --service {service}"
        ) from None
    first = int(time.time() // 86400) - max(1, -(-seconds // 86400)) + 1
    found = [_of_key(each, first) for each in used]
    found.sort(key=lambda each: -(each.prompt_tokens + each.completion_tokens))
    return Usage(service, _text(first), vllm_usage.knows_tokens(content) or not content, tuple(found))


def together(found: Iterable[Usage]) -> Usage:
    """What several hosts counted, as one; what they say are texts of others."""
    first, *others = found
    by_key: dict[str, list[KeyUsage]] = {}
    for each in (first, *others):
        for used in each.keys:
            by_key.setdefault(one_line(used.key, 64), []).append(used)
    keys = [_sum_of_key(name, several) for name, several in by_key.items()]
    keys.sort(key=lambda each: -(each.prompt_tokens + each.completion_tokens))
    counted = all(each.tokens_are_counted for each in (first, *others))
    return Usage(first.service, one_line(first.since, 10), counted, tuple(keys))


def _sum_of_key(name: str, several: Sequence[KeyUsage]) -> KeyUsage:
    days: dict[str, list[Spent]] = {}
    for used in several:
        for day in used.days:
            days.setdefault(one_line(day.day, 10), []).append(day)
    last = max((one_line(used.last_used, 20) for used in several if used.last_used), default=None)
    shown = tuple(Day(**_sum(spent), day=day) for day, spent in sorted(days.items()))
    return KeyUsage(**_sum(several), key=name, last_used=last, days=shown)


def _sum(several: Sequence[Spent]) -> dict[str, int]:
    return {each.name: sum(getattr(spent, each.name) for spent in several) for each in fields(Spent)}


def last_used(host: Host, layout: Layout) -> dict[str, str | None]:
    """By key; nothing for who may not know it."""
    try:
        content = _content(host, layout)
    except (InstallError, OSError):
        return {}
    return {used.name: _moment(used.last_used) for used in vllm_usage.read(content)}


def _content(host: Host, layout: Layout) -> bytes:
    """Nothing where nobody has asked anything yet."""
    owner = host.owner(layout.usage_dir)
    text = host.read_of(layout.usage_file, () if owner is None else (owner,), vllm_usage.SIZE)
    return (text or "").encode(errors="surrogateescape")


def _of_key(used: Used, first: int) -> KeyUsage:
    days = {day: numbers for day, numbers in used.days.items() if day >= first}
    total = Numbers(*map(sum, zip(*days.values(), strict=True))) if days else Numbers()
    shown = tuple(Day(*numbers, day=_text(day)) for day, numbers in days.items())
    return KeyUsage(*total, key=used.name, last_used=_moment(used.last_used), days=shown)


def _text(day: int) -> str:
    return (EPOCH + timedelta(days=day)).isoformat()


def _moment(seconds: int) -> str | None:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None


def lines(found: Usage, *, by_day: bool) -> list[str]:
    """A table: a line for each key, or for each day of one."""
    titles = (tr("requests"), tr("errors"), tr("refused"), tr("prompt"), tr("cached"), tr("completion"))
    rows: list[tuple[str, Spent, str]] = [(each.key, each, each.last_used or "-") for each in found.keys]
    head = (tr("key"), titles, tr("last used"))
    if by_day:
        rows = [(day.day, day, "") for each in found.keys for day in each.days]
        head = (tr("day"), titles, "")
    return [_line(*head), *(_line(name, _numbers(spent), end) for name, spent, end in rows)]


def _numbers(spent: Spent) -> list[str]:
    return [f"{getattr(spent, each.name):,}" for each in fields(Spent)]


def _line(first: str, cells: Iterable[str], last: str) -> str:
    return f"{pad(first, 20)} {' '.join(pad(cell, -12) for cell in cells)}  {last}".rstrip()
