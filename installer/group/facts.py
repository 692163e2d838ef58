"""What the hosts of a group say of themselves, and why they cannot be one: all of it at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

from installer.base.errors import InstallError, Refused
from installer.base.language import tr
from installer.base.report import Report
from installer.flow.staged import Staged
from installer.group.member import LEADS_ASTRAY, Look
from installer.group.reach import Lost, Team, puzzling, raise_all, understood
from installer.runtime.vllm_text import one_line
from installer.spec.group import Group, Peer
from installer.spec.record import UNREADABLE, read_as
from installer.spec.values import SPAN

CLOCKS_DIFFER = 60.0  # seconds; keys expire by the clock of their host


def looks(team: Team) -> dict[str, Look]:
    found: dict[str, Look] = {}
    for name, answer in team.try_each("look").items():
        try:
            if not isinstance(answer, InstallError):
                found[name] = understood(name, Look, answer)
        except Lost as gone:
            team.lost[name] = gone
    return found


def known(peers: tuple[Peer, ...], seen: Mapping[str, Look]) -> tuple[Peer, ...]:
    """The same with the machines that they are."""
    return tuple(replace(peer, machine=seen[peer.name].machine) if peer.name in seen else peer for peer in peers)


def check(team: Team, seen: Mapping[str, Look], service: str, group_id: str | None, report: Report) -> None:
    """That these hosts can be a group, and that each reaches the others by the names they have here."""
    raise_all([*team.lost.values(), *_problems(seen, service, group_id)])
    machines = {name: look.machine for name, look in seen.items()}
    said = team.each("reach", machines=machines)
    answers = {name: understood(name, dict[str, str], answer) for name, answer in said.items()}
    astray = [(name, other) for name, found in answers.items() for other, why in found.items() if why == LEADS_ASTRAY]
    raise_all(
        Refused(
            tr("on {name} the name {other} leads to another host than it does here", name=name, other=other),
            tr("look into /etc/hosts there: 127.0.1.1 beside a host's own name is such a line"),
        )
        for name, other in astray
    )
    for name, found in answers.items():
        for other, why in found.items():
            report.warn(
                tr(
                    "from {name} no change of all hosts can be made, for it does not reach {other}: {why}",
                    name=name, other=other, why=one_line(why),
                )
            )  # fmt: skip


def _problems(seen: Mapping[str, Look], service: str, group_id: str | None) -> Iterator[InstallError]:
    machines: dict[str, str] = {}
    for name, look in seen.items():
        if not look.machine:
            yield Refused(tr("{name}: it has no machine-id", name=name), f"ssh {name} sudo systemd-machine-id-setup")
        elif look.machine in machines:
            first = machines[look.machine]
            yield Refused(tr("{name} and {first} are the same host", name=name, first=first), tr("name it once"))
        machines.setdefault(look.machine, name)
        if look.damage:
            yield Refused(tr("{what}: {why}", what=name, why=one_line(look.damage)))
        if look.group and look.group.id != group_id:
            others = ", ".join(peer.name for peer in look.group.peers)
            yield Refused(
                tr(
                    "{name}: {service} is of another group there: {others}",
                    name=name,
                    service=service,
                    others=others,
                ),
                f"ssh {name} sudo vllm-install uninstall {service} --this-host-only",
            )
        off = look.clock - time.time()
        if abs(off) > CLOCKS_DIFFER:
            yield Refused(
                tr(
                    "{name}: its clock is {seconds:+.0f} s off, and keys expire by it",
                    name=name,
                    seconds=off,
                ),
                f"ssh {name} sudo timedatectl set-ntp true",
            )


def check_staged(said: Mapping[str, str], mode: str) -> None:
    """That all would serve the same, before any of them does; those of one model by the same words."""
    try:
        found = {name: read_as(Staged, json.loads(text)) for name, text in said.items()}
    except UNREADABLE:
        raise Refused(tr("what the hosts would serve cannot be compared")) from None
    for what in ("model", "engine"):
        _check_equal(what, {name: getattr(staged, what) for name, staged in found.items()})
    if mode == SPAN:
        shared = set.intersection(*(set(staged.words) for staged in found.values()))
        own = {name: [word for word in staged.words if word not in shared] for name, staged in found.items()}
        _check_equal("command", {name: " ".join(words) for name, words in own.items()})


def check_same(seen: Mapping[str, Look]) -> None:
    """That all serve the same by the same."""
    for what in ("model", "engine"):
        _check_equal(what, {name: getattr(look, what) for name, look in seen.items()})


def _check_equal(what: str, found: Mapping[str, str]) -> None:
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{name}: {one_line(value)}" for name, value in found.items())
        raise Refused(
            tr("the hosts would not serve the same: {what} is {shown}", what=what, shown=shown),
            tr("name the version (VLLM_VERSION, MODEL_REVISION) and the Python (PYTHON) that all of them have"),
        )


def check_linked(team: Team, group: Group, seen: Mapping[str, Look]) -> None:
    """That gateways which answer for one another reach each other."""
    at = {peer.name: peer.address for peer in group.serving if peer.address}
    others = {name: [at[each] for each in at if each != name] for name, look in seen.items() if look.gateway}
    answers = team.try_each_of("linked", {name: {"addresses": each} for name, each in others.items()})
    raise_all(error for error in answers.values() if isinstance(error, InstallError))


# Where the hosts meet


def meet(team: Team, names: Sequence[str], within: str | None) -> tuple[str, ...]:
    """The address of each in the network by which they reach each other."""
    cards = {name: _cards(name, told) for name, told in team.each("addresses", names).items()}
    networks = [IPv4Network(within)] if within else sorted({card.network for each in cards.values() for card in each})
    found = {network: [card for each in cards.values() for card in each if card.ip in network] for network in networks}
    shared = [
        each for network, each in found.items() if len({card.ip for card in each}) == len(each) == len(names)
        and all(any(card.ip in network for card in own) for own in cards.values())
    ]  # fmt: skip
    if len(shared) != 1:
        told = "; ".join(f"{name}: {', '.join(map(str, own)) or '-'}" for name, own in cards.items())
        raise Refused(
            tr("there is no single network in which each of the hosts has one address: {told}", told=told),
            tr("name it: --peer-network 10.0.0.0/24"),
        )
    return tuple(str(card.ip) for card in shared[0])


def _cards(name: str, told: object) -> list[IPv4Interface]:
    try:
        return [IPv4Interface(each) for each in understood(name, tuple[str, ...], told)]
    except ValueError:
        raise puzzling(name) from None
