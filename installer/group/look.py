"""What the hosts of a group say of themselves, looked at from one of them; nothing is changed by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from installer.base.cells import pad
from installer.base.host import Host
from installer.base.language import english, mark, tr
from installer.base.report import Report
from installer.diagnosis.finding import Finding
from installer.diagnosis.said import translated
from installer.group import facts
from installer.group.member import Look
from installer.group.reach import reached
from installer.runtime.vllm_text import one_line
from installer.spec.group import Group

SERVES, OUT, LOST, STOPPED, BEHIND, APART = (
    mark("serves"), mark("taken out"), mark("lost"), mark("does not serve"), mark("does not know of this group"),
    mark("waits for the others"),
)  # fmt: skip


@dataclass(frozen=True)
class HostLook:
    name: str
    state: str  # one of the words above
    model: str = ""
    engine: str = ""
    why: str = ""  # it is lost, or waits


@dataclass(frozen=True)
class GroupLook:
    service: str
    epoch: int
    pending: str | None  # a change that was cut off
    hosts: tuple[HostLook, ...]

    @property
    def is_whole(self) -> bool:
        return self.pending is None and all(host.state in (SERVES, OUT) for host in self.hosts)


def at(host: Host, group: Group, service: str, report: Report) -> GroupLook:
    with reached(group.peers, service, host, report) as team:
        seen = facts.looks(team)
    newest = max([group, *(look.group for look in seen.values() if look.group)], key=lambda each: each.epoch)
    pending = next((look.group.change.what for look in seen.values() if look.group and look.group.change), None)
    lost = {name: error.message.removeprefix(f"{name}: ") for name, error in team.lost.items()}
    found = tuple(
        HostLook(peer.name, OUT if peer.out else LOST, why=lost[peer.name])
        if peer.name in lost
        else _of(peer.name, OUT if peer.out else None, seen[peer.name], group.id)
        for peer in newest.peers
        if peer.name in lost or peer.name in seen
    )
    return GroupLook(service, newest.epoch, pending and one_line(pending), found)


def _of(name: str, state: str | None, look: Look, group_id: str) -> HostLook:
    if state is None and (look.group is None or look.group.id != group_id):
        state = BEHIND
    if state is None and look.stage and look.active in ("active", "activating"):
        state = APART
    if state is None:
        state = SERVES if look.served and look.active in ("active", "reloading") else STOPPED
    return HostLook(name, state, one_line(look.model), one_line(look.engine), one_line(look.damage or look.stage))


def findings(found: GroupLook) -> Iterator[Finding]:
    """What is wrong between the hosts; what is wrong on one of them its own `doctor` says."""
    for host in found.hosts:
        if host.state == LOST:
            yield Finding(
                "host-lost",
                tr("{name} is lost: no change of all hosts can be made", name=host.name),
                host.why,
                (f"ssh {host.name} true", f"sudo vllm-install hosts drain {host.name} --service {found.service}"),
            )
        elif host.state == BEHIND:
            yield Finding(
                "host-behind",
                tr("{name} does not know of this group: it was installed anew, or let go there", name=host.name),
                tr("it has no record of the group"),
                (f"sudo vllm-install hosts join {host.name} --service {found.service}",),
            )
        elif host.state == APART:
            yield Finding(
                "group-broken",
                tr("{name} waits for the other hosts of its model", name=host.name),
                host.why,
                (f"ssh {host.name} sudo vllm-install doctor {found.service}",),
            )
        elif host.state == STOPPED:
            yield Finding(
                "host-down",
                tr("the service does not run on {name}", name=host.name),
                host.why or tr("its unit is not active"),
                (f"ssh {host.name} sudo vllm-install doctor {found.service}",),
            )
    if found.pending:
        yield Finding(
            "hosts-pending",
            tr("a change of all hosts was cut off"),
            found.pending,
            (f"sudo vllm-install deploy --service {found.service}",),
        )


def lines(found: GroupLook) -> Iterator[str]:
    for host in found.hosts:
        about = translated(host.why) if host.state == APART else host.model or host.why or "-"
        yield f"{pad(host.name, 20)} {pad(tr(host.state), 28)} {about}"
    if found.pending:
        yield tr(
            "{what} was cut off; the next command that changes {service} completes it or undoes it on all hosts",
            what=found.pending, service=found.service,
        )  # fmt: skip


def to_json(found: GroupLook) -> dict[str, object]:
    data = dataclasses.asdict(found)
    for host in data["hosts"]:
        host["why"] = english(host["why"])
    return {**data, "whole": found.is_whole}
