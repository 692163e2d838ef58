"""API keys: making them, judging them, and their form in ExecStart: [NAME[:ROLE]=](sha256:HEX|KEY)[@EXPIRY]."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import count

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.spec import guessing

DEFAULT = "default"
PROBE = "probe"
INFERENCE = "inference"
TO_BE_MADE = "MADE-BY-DEPLOY"
SHORTEST = 16  # characters, by the form below
STAMP = "%Y-%m-%dT%H:%M:%SZ"

# The launcher reads the unit by the same form; a test holds the two together.
_FORM = re.compile(
    r"(?:(?P<name>[a-z0-9_-]+)(?::(?P<role>metrics|inference|admin))?=)?"
    r"(?:sha256:(?P<digest>[0-9a-fA-F]{64})|(?P<plain>(?!sha256:)[!-9;-?A-~]{16,}))"
    r"(?:@(?P<expiry>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?"
)


@dataclass(frozen=True)
class Key:
    """A key as the service knows it: by its digest. `plain` is set only where the unit holds it verbatim."""

    name: str
    digest: str
    role: str = INFERENCE
    expiry: str | None = None
    plain: str | None = None

    @property
    def is_over(self) -> bool:
        return is_expired(self, stamp(datetime.now(timezone.utc)))

    @property
    def is_grace(self) -> bool:
        """Whether it is an old key that was kept beside its successor for a while, and is meant to end."""
        return self.expiry is not None and re.search(r"-old(-\d+)?$", self.name) is not None

    @property
    def argument(self) -> str:
        role = "" if self.role == INFERENCE else f":{self.role}"
        expiry = f"@{self.expiry}" if self.expiry else ""
        return f"{self.name}{role}={self.plain or 'sha256:' + self.digest}{expiry}"


def parse(argument: str) -> Key:
    match = _FORM.fullmatch(argument)
    if not match or not _exists(match["expiry"]):
        raise UsageError(
            tr("an --api-key in the unit is neither [NAME[:ROLE]=]sha256:HEX[@EXPIRY] nor a key"),
            tr("mend the ExecStart line, or let deploy render it anew"),
        )
    plain = match["plain"]
    return Key(
        name=match["name"] or DEFAULT,
        digest=match["digest"].lower() if match["digest"] else digest(plain),
        role=match["role"] or INFERENCE,
        expiry=match["expiry"],
        plain=plain,
    )


def _exists(expiry: str | None) -> bool:
    """Whether the calendar has that day and the clock that hour."""
    try:
        return expiry is None or bool(datetime.strptime(expiry, STAMP))
    except ValueError:
        return False


def digest(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


def generate(service: str) -> str:
    return f"sk-{service}-{secrets.token_urlsafe(32)}"


def check_plain(plain: str) -> str:
    """Refuse what could be guessed from its digest, or could not travel in an HTTP header."""
    if not plain:
        raise UsageError(
            tr("the API key is empty"), tr("give one, or none at all: vllm-install set-apikey makes one then")
        )
    if not re.fullmatch(r"[!-9;-?A-~]+", plain):
        raise UsageError(
            tr("an API key consists of printable ASCII characters without spaces, ':' or '@'"),
            tr("let vllm-install make one, or: openssl rand -hex 32"),
        )
    if len(plain) > 512:
        raise UsageError(tr("an API key has at most 512 characters, this one has {length}", length=len(plain)))
    if len(plain) < SHORTEST or guessing.is_weak(plain):
        raise UsageError(
            tr("this API key is too weak: its digest is public on this host and could be guessed back"),
            tr("people who guess know words, rows of keys and repetitions; let one be made, or: openssl rand -hex 32"),
        )
    return plain


# Changing a service's keys


def named_apart(held: Iterable[Key]) -> tuple[Key, ...]:
    """The keys with a name each: of two keys pasted in under one name, the second becomes NAME-2."""
    found: dict[str, Key] = {}
    for key in held:
        name = key.name
        for number in count(2):
            if name not in found:
                break
            name = f"{key.name}-{number}"
        found[name] = replace(key, name=name)
    return in_order(found.values())


def in_order(held: Iterable[Key]) -> tuple[Key, ...]:
    """The one order in which a unit names its keys, so that no two verbs write it differently."""
    return tuple(sorted(held, key=lambda key: (key.name == PROBE, key.name != DEFAULT, key.name)))


def rotate(held: Iterable[Key], new: Key, keep_until: str | None, now: str) -> tuple[Key, ...]:
    """The new key in the place of the one of its name, which stays valid beside it until `keep_until`."""
    kept, replaced = [], []
    for key in held:
        if key.digest == new.digest or is_expired(key, now):
            continue
        if key.name != new.name:
            kept.append(key)
        elif keep_until:
            replaced.append(replace(key, name=f"{key.name}-old", expiry=min(key.expiry or keep_until, keep_until)))
    return named_apart((new, *kept, *replaced))  # those that have a name already keep it


def revoke(held: Iterable[Key], name: str, now: str) -> tuple[Key, ...]:
    held = tuple(held)
    names = [key.name for key in held if key.name != PROBE]
    if name == PROBE:
        raise UsageError(
            tr("the probe key stays: with it the service is watched and proved, and only root can read it"),
            tr("keys that can be revoked: {names}", names=", ".join(names)),
        )
    if name not in names:
        raise UsageError(tr("there is no key named {name!r}", name=name), tr("keys: {names}", names=", ".join(names)))
    left = tuple(key for key in held if key.name != name)
    if not may_ask(key for key in left if not is_expired(key, now)):
        raise UsageError(
            tr("{name!r} is the last key that can ask the model; without it nobody could", name=name),
            tr("rotate it instead: vllm-install set-apikey"),
        )
    return left


def may_ask(held: Iterable[Key]) -> bool:
    """Whether any of these keys can ask the model."""
    return any(key.name != PROBE and key.role != "metrics" for key in held)


def check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_-]{1,32}", name):
        raise UsageError(
            tr("{name!r} cannot be the name of a key", name=name),
            tr("use up to 32 lower-case letters, digits, - and _"),
        )
    if name == PROBE:
        raise UsageError(tr("the probe key is vllm-install's own"), tr("choose another --name"))
    return name


def is_expired(key: Key, now: str) -> bool:
    return key.expiry is not None and key.expiry <= now


def duration(text: str) -> timedelta:
    """How long an old key may be kept."""
    seconds = in_seconds(text)
    if seconds > 366 * 86400:
        raise UsageError(
            tr("{text} is longer than a year", text=text), tr("give the old key a name of its own instead: --name")
        )
    return timedelta(seconds=seconds)


def in_seconds(text: str) -> int:
    """10m, 36h, 7d; a bare number is seconds."""
    match = re.fullmatch(r"(\d{1,7})([smhd]?)", text, re.ASCII)
    if not match or int(match[1]) == 0:
        raise UsageError(tr("{text!r} is not a duration", text=text), tr("write 90s, 10m, 36h or 7d"))
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def stamp(moment: datetime) -> str:
    """A moment in the form of an expiry; such texts compare as the moments do."""
    return moment.astimezone(timezone.utc).strftime(STAMP)
