"""What we know about a service between two commands: what was proved last, what we made, what is under way."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone

from installer.spec.calibration import Calibration
from installer.spec.former import Former
from installer.spec.soak import ROLLED_BACK, Soak
from installer.spec.target import Target


@dataclass(frozen=True)
class Event:
    when: str
    who: str
    what: str
    outcome: str

    @property
    def was_taken_back(self) -> bool:
        """By whoever made it, or by those who watched on it afterwards."""
        return self.outcome.startswith(("undone", ROLLED_BACK))


@dataclass(frozen=True)
class Rekeying:
    """A change of keys that has not finished: what it is, and the unit's keys before it."""

    what: str
    before: tuple[str, ...]


@dataclass(frozen=True)
class State:
    service: str
    # path -> digests of what we wrote there; more than one while a change is under way
    owned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    owns_user: bool = False
    owns_sysusers: bool = False  # the directory of its user's entry, which the system did not have
    proved: Target | None = None
    previous: Target | None = None  # the generation before, to which rollback returns
    calibration: Calibration | None = None  # what vLLM measured when `proved` was proved
    pending: str | None = None  # the command that has not finished, if one was cut off
    pending_model: str | None = None  # the path of the model that it works towards
    pending_engine: str | None = None  # the id of the engine that it works towards
    rekeying: Rekeying | None = None
    key_shown: bool = False
    former: Former | None = None  # the unit that the service was adopted from
    soak: Soak | None = None  # of `proved`, under way or over; of the change before it, where that went back
    history: tuple[Event, ...] = ()

    @property
    def engines(self) -> set[str]:
        """The ids of those that it runs, could roll back to, or works towards."""
        found = {target.engine.id for target in (self.proved, self.previous) if target}
        return found | ({self.pending_engine} if self.pending_engine else set())

    @property
    def unfinished(self) -> str | None:
        """The command that was cut off, if nobody is at it now."""
        return self.pending or (self.rekeying.what if self.rekeying else None)


def event(what: str, outcome: str) -> Event:
    return Event(datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), _who(), what, outcome)


def _who() -> str:
    """Whom sudo was run by, or else whose process this is."""
    name = os.environ.get("SUDO_USER") or os.environ.get("DOAS_USER")
    if name and re.fullmatch(r"[\w.@\\-]{1,64}", name):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
