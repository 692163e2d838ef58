"""Callers who wait while an engine starts: looked at before a service is asked, for a question would wait among them.

The supervisor counts them into a file that is the service's own, as its status in systemd is: what stands there is
believed as far as it can be a number, and only as long as somebody goes on writing it.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.units.graph import Member

LONGEST = 4096  # bytes of the file
STALE = 60.0  # seconds; it is written once a second, later only where the host is out of breath
MOST = 1 << 31
COUNTED = re.compile(r"; (1 caller waits|\d+ callers wait), longest \d+ s\Z")


@dataclass(frozen=True)
class Holding:
    waiting: int
    longest: int  # seconds since the first of them came; where nobody waits, since callers would be held
    limit: int  # seconds after which they are answered that they are to come again

    @property
    def words(self) -> str:
        if self.longest > self.limit:
            return tr("callers are told to come again: it has been starting for {seconds} s", seconds=self.longest)
        if not self.waiting:
            return tr("nobody waits; it has been starting for {seconds} s", seconds=self.longest)
        if self.waiting == 1:
            return tr("1 caller waits, longest {seconds} s", seconds=self.longest)
        return tr("{count} callers wait, longest {seconds} s", count=self.waiting, seconds=self.longest)


def holding(host: Host, member: Member) -> Holding | None:
    """None while the engine serves, and where the file is not for our eyes."""
    owner = host.owner(member.run_dir)
    try:
        text = host.read_of(member.holding, () if owner is None else (owner,), LONGEST)
        written = host.modified(member.holding)
    except (InstallError, OSError):
        return None
    found = _numbers(text or "")
    if found is None or written is None or time.time() - written > STALE:
        return None
    since, waiting, limit = found
    return Holding(int(waiting), max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - since)), int(limit))


def _numbers(text: str) -> tuple[float, float, float] | None:
    try:
        told = json.loads(text)
        since, waiting, limit = (told[name] for name in ("since", "waiting", "hold"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = (since, waiting, limit)
    return numbers if all(type(each) in (int, float) and 0 <= each < MOST for each in numbers) else None


def without_count(stage: str) -> str:
    """A stage of a start without the callers that wait for it, which are others every second."""
    return COUNTED.sub("", stage)
