"""The gateway's runtime socket as root speaks it: how each member does; one leaves the balance, and comes back.

The socket lies in a directory of the gateway's user: what comes over it is believed as far as it can be a number or a
short word.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.runtime import vllm_haproxy
from installer.runtime.vllm_text import one_line

MEMBERS, HELD, HOLD = "members", "held", "hold"  # in the configuration: two backends with every member, a frontend
SERVER = re.compile(r"r([1-9]\d?)", re.ASCII)
OTHER = re.compile(r"\d{1,3}(\.\d{1,3}){3}", re.ASCII)
ANSWERS_WITHIN = 5.0  # seconds
UP_WITHIN = 30.0
LOOK_EVERY = 0.1


class NoGateway(InstallError):
    """Nobody answers by the runtime socket, or not as a gateway does."""


@dataclass(frozen=True)
class MemberState:
    """What the gateway holds a member for."""

    status: str  # UP, DOWN, MAINT, or one of these with more behind
    check: str  # how its last check ended, as HAProxy words it: L7OK, L4CON, L7TOUT
    current: int  # requests under way

    @property
    def is_up(self) -> bool:
        return self.status.startswith("UP")

    @property
    def is_heard(self) -> bool:
        """It answers the check, whatever it says of itself."""
        return self.is_up or self.check.removeprefix("* ") in ("L7STS", "L7RSP")

    @property
    def is_out(self) -> bool:
        """Taken out of the balance by a command."""
        return self.status.startswith(("MAINT", "DRAIN"))


@dataclass(frozen=True)
class GatewayState:
    members: dict[int, MemberState]
    waiting: int  # callers that are held because no member is up
    down_for: int | None = None  # seconds for which none is; None while one is up
    others: Mapping[str, MemberState] = field(default_factory=dict)  # hosts that are asked as well, by address


def state(host: Host, layout: Layout) -> GatewayState:
    members: dict[int, MemberState] = {}
    others: dict[str, MemberState] = {}
    waiting, down_for = 0, None
    for row in _rows(_ask(host, layout, "show stat")):
        found = SERVER.fullmatch(row.get("svname", ""))
        if row.get("pxname") == HOLD and row.get("svname") == "FRONTEND":
            waiting = _number(row, "scur")
        elif row.get("pxname") == HELD and row.get("svname") == "BACKEND":
            down_for = None if row.get("status", "").startswith("UP") else _number(row, "lastchg")
        elif row.get("pxname") == MEMBERS and OTHER.fullmatch(row.get("svname", "")):
            others[row["svname"]] = _state(row, _number(row, "scur"))
        elif found and row.get("pxname") in (MEMBERS, HELD):
            number = int(found[1])
            seen = _state(row, 0)
            before = members.get(number, seen)
            shown = seen if row["pxname"] == MEMBERS else before
            members[number] = MemberState(shown.status, shown.check, before.current + _number(row, "scur"))
    return GatewayState(members, waiting, down_for, others)


def _state(row: dict[str, str], current: int) -> MemberState:
    return MemberState(one_line(row.get("status", ""), 20), one_line(row.get("check_status", ""), 20), current)


def drain(host: Host, layout: Layout, number: int, seconds: float) -> int:
    """No new request goes to the member; how many are still under way when none is, or the time is over."""
    _set(host, layout, number, "maint")  # not `drain`, in which a session that sticks to a member still comes to it
    end = time.monotonic() + seconds
    while (current := _member(host, layout, number).current) and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
    return current


def ready(host: Host, layout: Layout, number: int, seconds: float = UP_WITHIN) -> bool:
    """Requests go to the member again; whether it is up by then."""
    _set(host, layout, number, "ready")
    end = time.monotonic() + seconds
    while not (is_up := _member(host, layout, number).is_up) and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
    return is_up


def reaches(host: Host, layout: Layout, addresses: Collection[str], seconds: float = UP_WITHIN) -> dict[str, str]:
    """Of those hosts the ones that the gateway does not reach by then, and how it words that."""
    end = time.monotonic() + seconds
    while True:
        others = state(host, layout).others
        missing = {each: others[each].check if each in others else "" for each in addresses}
        missing = {each: check for each, check in missing.items() if each not in others or not others[each].is_up}
        if not missing or time.monotonic() > end:
            return missing
        time.sleep(LOOK_EVERY)


def has_read(host: Host, layout: Layout, config: Path) -> bool:
    """Whether the worker that answers began after the configuration was written."""
    pid, written = vllm_haproxy.worker(_socket(host, layout)), host.modified(config)
    if not pid or written is None:
        return False
    return written < vllm_haproxy.began((host.read(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split())


def _socket(host: Host, layout: Layout) -> str:
    return str(host.at(layout.run_dir / vllm_haproxy.SOCKET))


def _member(host: Host, layout: Layout, number: int) -> MemberState:
    found = state(host, layout).members.get(number)
    if found is None:
        raise _no_gateway(layout, tr("it knows no member {number}", number=number))
    return found


def _set(host: Host, layout: Layout, number: int, wanted: str) -> None:
    if said := _ask(host, layout, f"set server {MEMBERS}/r{number} state {wanted}").strip():
        raise _no_gateway(layout, one_line(said))


def _ask(host: Host, layout: Layout, command: str) -> str:
    try:
        return vllm_haproxy.ask(_socket(host, layout), command, ANSWERS_WITHIN)
    except TimeoutError:
        raise _no_gateway(layout, tr("it does not answer")) from None
    except OSError as error:
        raise _no_gateway(layout, error.strerror or str(error)) from None


def _no_gateway(layout: Layout, why: str) -> NoGateway:
    return NoGateway(
        tr("the gateway of {service} cannot be asked: {why}", service=layout.service, why=why),
        f"systemctl status {layout.unit_name}",
    )


# What it says


def _rows(answer: str) -> Iterator[dict[str, str]]:
    """HAProxy's table, by the names in its first line."""
    lines = answer.removeprefix("# ").splitlines()
    try:
        yield from ({name: text or "" for name, text in row.items() if name} for row in csv.DictReader(lines))
    except csv.Error:
        return


def _number(row: dict[str, str], name: str) -> int:
    text = row.get(name, "")
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 0
