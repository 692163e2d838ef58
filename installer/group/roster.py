"""Which hosts a group has: one is taken out and back, and one is let go for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Report
from installer.group import carry, facts, ssh
from installer.group.change import changing, check_all_there, check_is_of, run, settle
from installer.group.job import Job
from installer.group.member import Look, Ran
from installer.group.reach import Team, understood
from installer.group.watched import watch_together
from installer.runtime.vllm_text import one_line
from installer.spec.group import Group, Peer, to_data
from installer.spec.values import SPAN


@contextmanager
def _settled(
    group: Group, name: str, verb: str, service: str, host: Host, report: Report
) -> Iterator[tuple[Team, Group, dict[str, Look]]]:
    """All hosts that answer, with nothing half done; the one that is named need not be there."""
    peers = [peer for peer in group.peers if not peer.out or peer.name == name]
    with changing(peers, service, f"hosts {verb} {name}", host, report) as team:
        now = settle(team, facts.looks(team), report)
        if now is None:
            raise Refused(
                tr("the group is no more: what made it was cut off, and is undone"),
                f"vllm-install deploy --service {service} --hosts {','.join(peer.name for peer in group.peers)}",
            )
        check_is_of(group, now, service, host)
        yield team, now, facts.looks(team)


def _check_not_needed(group: Group, service: str) -> None:
    if group.mode == SPAN:
        raise Refused(
            tr("each of these hosts holds a part of the model: without one none serves"),
            f"vllm-install uninstall --service {service}",
        )


def drain(group: Group, name: str, service: str, host: Host, report: Report) -> None:
    _check_not_needed(group, service)
    with _settled(group, name, "drain", service, host, report) as (team, now, _):
        if [peer.name for peer in now.serving] == [name]:
            raise Refused(
                tr("{name} is the last host that serves", name=name), f"vllm-install uninstall --service {service}"
            )
        _tell(team, _with(now, name, lambda peer: replace(peer, out=True)))
        if name in team.lost:
            report.warn(team.lost[name].message)
        else:
            team.one(name, "rest")


def remove(group: Group, name: str, service: str, host: Host, report: Report) -> None:
    _check_not_needed(group, service)
    with _settled(group, name, "remove", service, host, report) as (team, now, seen):
        if len(now.peers) == 1:
            raise Refused(
                tr("{name} is the last host that serves", name=name), f"vllm-install uninstall --service {service}"
            )
        left = replace(now, epoch=now.epoch + 1, peers=tuple(peer for peer in now.peers if peer.name != name))
        if any(look.gateway for look in seen.values()):
            was_there = name in {peer.name for peer in now.serving}
            left = _apart(team, left, name, service, host, report, served=was_there)
        _tell(team, left, without=name)
        watch_together(team, left, report)
        if name in team.lost:
            report.warn(team.lost[name].message)
        else:
            team.one(name, "end", of=now.id, group=None)
            if not understood(name, bool, team.one(name, "leave")):
                report.note(
                    tr(
                        "this tool stays on {name} with what serves there; once that is uninstalled: {command}",
                        name=name, command=carry.BY_HAND,
                    )
                )  # fmt: skip


def join(group: Group, name: str, service: str, host: Host, report: Report) -> None:
    with _settled(group, name, "join", service, host, report) as (team, now, seen):
        back = _with(now, name, lambda peer: _back(peer, seen))
        check_all_there(team, back)
        facts.check(team, seen, service, now.id, report)
        example = example_for(name, now, seen, host)
        wishes = understood(example, dict[str, str], team.one(example, "wishes"))
        held = tuple(word for key in seen[example].keys for word in ("--held-key", key))
        more = {name: () if seen[name].keys else held}
        has_key = now.mode == SPAN or seen[example].gateway
        key = understood(example, str, team.one(example, "group_key")) if has_key else None
        alone = replace(back, peers=tuple(replace(peer, out=peer.name != name) for peer in back.peers))
        words = ("deploy", "--service", service, "--this-host-only")
        job = Job(f"hosts join {name}", words, environment=wishes, more=more, stages=True, group_key=key)
        run(team, alone, job, host, report, like=(example,))
        team.one(name, "take_keys", held=list(seen[example].keys))
        _tell(team, replace(back, epoch=back.epoch + 1))
        facts.check_linked(team, back, facts.looks(team))
        watch_together(team, back, report, new=[name])


def _back(peer: Peer, seen: Mapping[str, Look]) -> Peer:
    return replace(peer, out=False, machine=seen[peer.name].machine if peer.name in seen else peer.machine)


def _apart(team: Team, left: Group, name: str, service: str, host: Host, report: Report, *, served: bool) -> Group:
    """Nobody's request goes to it any more, and none from there to the others."""
    check_all_there(team, left)
    words = ("set", "--service", service, "--this-host-only", "--")
    rest = [peer.address for peer in left.peers]
    others = f"GATEWAY_HOSTS={','.join(rest) if rest[1:] else ''}"
    after = run(team, left, Job(f"hosts remove {name}", (*words, others)), host, report)
    if served and name not in team.lost:
        ran = understood(name, Ran, team.one(name, "run", words=[*words, "GATEWAY_HOSTS="]))
        if ran.code:
            report.warn(tr("{what}: {why}", what=name, why=one_line(ran.message)))
    return after


def example_for(name: str, group: Group, seen: Mapping[str, Look], host: Host) -> str:
    """Whose settings a host gets: they say what is run, so this host is asked before any other is believed."""
    others = (peer.name for peer in group.serving if peer.name != name)
    return min(others, key=lambda each: seen[each].machine != ssh.machine_id(host))


def _with(group: Group, name: str, change: Callable[[Peer], Peer]) -> Group:
    peers = tuple(change(peer) if peer.name == name else peer for peer in group.peers)
    return replace(group, epoch=group.epoch + 1, peers=peers)


def _tell(team: Team, group: Group, without: str = "") -> None:
    team.each(
        "end",
        [name for name in team.far if name not in team.lost and name != without],
        of=group.id,
        group=to_data(group),
    )
