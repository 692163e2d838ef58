"""How a group of hosts does, as the member on this one tells: looked at as those are who wait (units/holding.py)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.runtime.vllm_member import SHOWN, STARTING
from installer.runtime.vllm_text import one_line
from installer.units.graph import Member

LONGEST = 16384  # bytes of the file
STALE = 10.0  # seconds; it is written every two
SILENT = "its supervisor says nothing of the group"


@dataclass(frozen=True)
class Standing:
    stage: str  # what the member waits for; "" while all of them serve
    lost: str  # what the last epoch ended with, if one has

    @property
    def waits(self) -> bool:
        """For others, and not for the engines."""
        return self.stage not in ("", STARTING)


def standing(host: Host, member: Member) -> Standing:
    """For root's eyes. What nobody writes any more is not believed."""
    owner = host.owner(member.run_dir)
    path = member.run_dir / SHOWN
    try:
        found = json.loads(host.read_of(path, () if owner is None else (owner,), LONGEST) or "")
        stage, lost, written = str(found["stage"]), str(found["lost"]), host.modified(path)
    except (InstallError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return Standing(SILENT, "")
    fresh = written is not None and time.time() - written < STALE
    return Standing(one_line(stage) if fresh else SILENT, one_line(lost))
