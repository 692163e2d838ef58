"""A change of all hosts of a group that holds on all of them or on none.

Each host makes it as its own transaction: claimed, applied, proved, remembered, or undone. What is added here is what
holds these together, in two phases: looked at and staged everywhere, all at once; then switched and proved one host
after the other, or at once where all of them serve one model; and back in the same way. Before the first host is
touched each has written down what is about to happen (`claim`), and whoever comes later finds by that what has to be
done:

    some host has not been changed    nobody can have said that the change holds: all go back
    all have it                       it holds, and is written down as that
    all that answer have it           the others are needed to know: nothing is touched
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from installer.base.errors import InstallError, Refused, undone
from installer.base.host import Host
from installer.base.language import english, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.group import copies, facts, ssh
from installer.group.job import STAGE, Job
from installer.group.member import Look, Ran
from installer.group.reach import Team, raise_all, reached, refused, understood
from installer.runtime.vllm_text import one_line
from installer.spec.group import Group, Joint, Peer, load_group, to_data
from installer.spec.values import SPAN


@contextmanager
def changing(peers: Sequence[Peer], service: str, what: str, host: Host, report: Report) -> Iterator[Team]:
    """All that answer, and nobody else changes the group. Every host is locked in one order, whoever asks."""
    with reached(peers, service, host, report) as team:
        for name in sorted(team.far):
            team.one(name, "lock", what=f"vllm-install {what} --service {service}")
        yield team


def group_of(host: Host, service: str) -> Group | None:
    return load_group(host, Layout(service))


# What was cut off


def settle(team: Team, seen: Mapping[str, Look], report: Report) -> Group | None:
    """The group with nothing half done on any host that answers; None where there is none, any more."""
    records = {name: look.group for name, look in seen.items() if look.group}
    if not records:
        return None
    _check_one_group(records)
    newest = max(records.values(), key=lambda group: (group.epoch, group.change is None))
    begun = {name: group.change for name, group in records.items() if group.change}
    if not begun:
        members = {peer.name for peer in newest.peers}
        _tell(team, [name for name, group in records.items() if group != newest and name in members], newest)
        _tell(team, [name for name in records if name not in members], None, newest.id)
        return newest
    what = one_line(next(iter(begun.values())).what)
    if newest.change is None:
        return _led(team, begun, newest, report)
    has_it = {name: bool(seen[name].group and name in begun and begun[name].done) for name in seen}
    if all(has_it.values()) and {peer.name for peer in newest.serving} <= has_it.keys():
        report.warn(tr("{what} was cut off when all hosts had it: it holds", what=what))
        return _end(team, list(seen), newest, kept=True)
    if all(has_it.values()):
        raise _uncertain(team, what)
    report.warn(tr("{what} was cut off; undoing it on all hosts first", what=what))
    return take_back(team, list(seen), newest)


def check_is_of(group: Group, settled: Group, service: str, host: Host) -> None:
    """A host that was let go while nobody could reach it would change the others, and itself not."""
    machine = ssh.machine_id(host)
    own = next((peer.name for peer in group.peers if peer.machine == machine), "")
    if own and own not in {peer.name for peer in settled.peers}:
        raise Refused(
            tr("{name} was let go by the other hosts while it could not be reached", name=own),
            tr(
                "what is typed here is about this host alone from now on; "
                "so that it asks the others no more: {command}",
                command=f"vllm-install set GATEWAY_HOSTS= --service {service}",
            ),
        )


def _check_one_group(records: Mapping[str, Group]) -> None:
    """Before anything is settled: what another group has half done is not ours to undo."""
    first, *others = records
    if stranger := next((name for name in others if records[name].id != records[first].id), None):
        raise Refused(
            tr("{first} and {other} are of different groups of hosts", first=first, other=stranger),
            tr("vllm-install hosts, on each of them, says who is of which; hosts remove lets one go"),
        )


def _led(team: Team, begun: Mapping[str, Joint], newest: Group, report: Report) -> Group:
    """Hosts that were away when it ended."""
    for name, change in begun.items():
        kept = bool(newest.ended and newest.ended.kept and newest.ended.id == change.id)
        report.warn(
            tr("{name} was away when {what} ended; it follows the others", name=name, what=one_line(change.what))
        )
        if not kept:
            team.one(name, "undo")
    _tell(team, list(begun), newest)
    return newest


def _uncertain(team: Team, what: str) -> Refused:
    away = ", ".join(sorted(team.lost))
    return Refused(
        tr(
            "{what} was cut off when every host that answers had it; whether it holds only {away} can tell",
            what=what, away=away,
        ),
        tr("bring it back and run any command of the group; all hosts that answer go on serving"),
    )  # fmt: skip


def take_back(team: Team, names: Sequence[str], group: Group) -> Group | None:
    """Every host is as it was before the change; one that could not be put back stays marked, and is tried again.

    As it was made, one host after the other, so that those answer that are not about to go back: the last one first.
    """
    at_once = [names] if group.mode == SPAN else [[name] for name in reversed(names)]
    answers = {name: answer for each in at_once for name, answer in team.try_each("undo", each).items()}
    back = [name for name, answer in answers.items() if not isinstance(answer, InstallError)]
    left = _end(team, back, group, kept=False)
    raise_all(error for error in answers.values() if isinstance(error, InstallError))
    return left


def _end(team: Team, names: Sequence[str], group: Group, *, kept: bool) -> Group | None:
    """A first deploy that is undone leaves no group."""
    after = group.ending(kept=kept) if kept or group.epoch else None
    _tell(team, names, after, group.id)
    if after is None:
        team.try_each("leave", names)
    return after


def _tell(team: Team, names: Sequence[str], group: Group | None, of: str = "") -> None:
    """A host that is lost in this moment is led there when it is back."""
    team.try_each("end", names, of=group.id if group else of, group=group and to_data(group))


# The change


def check_all_there(team: Team, group: Group) -> None:
    missing = [team.lost[peer.name] for peer in group.serving if peer.name in team.lost]
    raise_all(missing)


def plan(team: Team, group: Group, job: Job, host: Host, *words: str) -> dict[str, str]:
    """What `run` would do on each host."""
    if job.stages:
        job, _ = copies.arranged(team, [peer.name for peer in group.serving], job, host)
    return look_ahead(team, group, job, *words)


def look_ahead(team: Team, group: Group, job: Job, *words: str) -> dict[str, str]:
    """What it would do on each host; or all that stands against it on any."""
    return _run_all(team, [peer.name for peer in group.serving], job, "--dry-run", *words)


def run(team: Team, group: Group, job: Job, host: Host, report: Report, like: Sequence[str] = ()) -> Group:
    """All hosts have it and were proved, or all are as they were. They are to serve what others serve as well."""
    names = [peer.name for peer in group.serving]
    job, given = copies.arranged(team, [*names, *like], job, host) if job.stages else (job, ())
    if job.looks:
        look_ahead(team, group, job)
    change = Joint(secrets.token_hex(8), english(job.what), of_keys=job.of_keys)
    claimed = dataclasses.replace(group, change=change)
    try:
        team.each("claim", names, group=to_data(claimed), key=job.group_key)
        if job.stages:
            report.note(tr("engine and weights, on all hosts at once"))
            for copy in given:
                if not copy.begun:
                    _run_all(team, [copy.offer.host], job, *STAGE)
                copies.carry_out(copy, team, report)
            facts.check_staged(_run_all(team, [*names, *like], job, *STAGE), group.mode)
        if group.mode == SPAN and not job.of_keys:
            report.note(tr("{what}: {why}", what=", ".join(names), why=job.what))
            _switch_together(team, names, job)
        else:
            for name in names:
                report.note(tr("{what}: {why}", what=name, why=job.what))
                _check(name, team.one(name, "switch", **job.on(name)))
        seen = {name: look for name, look in facts.looks(team).items() if name in (*names, *like)}
        facts.check_same(seen)
        facts.check_linked(team, group, seen)
        check_all_there(team, group)
    except Exception as error:
        raise undone(error, lambda _: _all_back(team, names, claimed)) from error
    after = _end(team, names, claimed, kept=True)
    assert after is not None, "what is kept has a record"
    return after


def _switch_together(team: Team, names: Sequence[str], job: Job) -> None:
    """None of them serves without the others, nor goes back without them: one that fails ends it for all."""

    def back(name: str) -> None:
        begun[name].exception()  # when it has ended
        team.try_each("undo", [name])

    with ThreadPoolExecutor(2 * len(names)) as pool:
        begun = {name: pool.submit(team.one, name, "switch", **job.on(name)) for name in names}
        of = {future: name for name, future in begun.items()}
        try:
            for future in as_completed(of):
                _check(of[future], future.result())
        except Exception:
            for name in names:
                if not begun[name].done():
                    team.far[name].stop()
            for name in names:
                pool.submit(back, name)
            raise


def _all_back(team: Team, names: Sequence[str], claimed: Group) -> str:
    take_back(team, [name for name in names if name not in team.lost], claimed)
    if away := sorted(name for name in names if name in team.lost):
        return tr(
            "all hosts that answer are as they were; {away} follows with the next command of the group",
            away=", ".join(away),
        )
    return tr("all hosts are as they were")


def _run_all(team: Team, names: Sequence[str], job: Job, *words: str) -> dict[str, str]:
    """What a verb prints on each host, run on all at once; or all that went wrong at once."""
    requests = {name: job.on(name, *words) for name in names}
    answers = team.try_each_of("run", requests)
    raise_all(error for name, answer in answers.items() if (error := _fault(name, answer)))
    return {name: understood(name, Ran, answer).out for name, answer in answers.items()}


def _fault(name: str, answer: Any) -> InstallError | None:
    if isinstance(answer, InstallError):
        return answer
    ran = understood(name, Ran, answer)
    if ran.code == 0:
        return None
    message = ran.message or tr("it ended with exit status {code}", code=ran.code)
    return refused(name, {"message": message, "hint": ran.hint, "code": ran.code})


def _check(name: str, answer: Any) -> None:
    if fault := _fault(name, answer):
        raise fault


def everywhere(team: Team, names: Sequence[str], job: Job) -> dict[str, str]:
    """What is undone on no host because another failed: a key that leaked, and what is taken away."""
    return _run_all(team, names, job)
