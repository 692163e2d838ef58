"""Weights from a host that has them to those that do not: read there once, and led by whoever leads the change.

He alone is sure to reach all of them. A host that can fetch what nobody has does so first, and gives it to those that
cannot. Each sums what it gets before it shows it to anybody.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.report import Advance, Report, size
from installer.flow import needs
from installer.group.carry import GIVE, TAKE
from installer.group.job import Job
from installer.group.member import Ran
from installer.group.reach import Connection, Lost, Team, data_of, puzzling, raise_all, understood
from installer.spec.model import distinct
from installer.spec.offer import Need, Offer, offer_of
from installer.spec.settings import Settings
from installer.weights.handover import Part

PIECE = 1 << 20  # bytes
ELSEWHERE = mark("the host where this was typed")  # which is none of them
NEEDS = ("--dry-run", "--stage", "needs")


@dataclass(frozen=True)
class Copy:
    """A model that some hosts get from another one."""

    offer: Offer
    to: tuple[str, ...]
    begun: bool  # who gives it has it already


def arranged(team: Team, names: Iterable[str], job: Job, host: Host) -> tuple[Job, tuple[Copy, ...]]:
    """Who gives what to whom, and the same job with each host told what it gets. Nothing is changed by it.

    A host that cannot even say what it is to serve is passed by: the plan of the change says why.
    """
    needed = _needed(team, names, job)
    if len(needed) < 2 and team.here:
        return job, ()
    found = []
    for key in dict.fromkeys(need.key for each in needed.values() for need in each):
        of = {name: need for name, each in needed.items() for need in each if need.key == key}
        if copy := _arranged(of, team, host):
            found.append(copy)
    more = dict(job.more)
    for copy in found:
        told = ("--offered", json.dumps(dataclasses.asdict(copy.offer)))
        more |= {name: (*more.get(name, ()), *told) for name in copy.to}
    return dataclasses.replace(job, more=more), tuple(found)


def _needed(team: Team, names: Iterable[str], job: Job) -> dict[str, tuple[Need, ...]]:
    answers = team.try_each_of("run", {name: job.on(name, *NEEDS) for name in names})
    found = {}
    for name, answer in answers.items():
        if not isinstance(answer, InstallError) and (ran := understood(name, Ran, answer)).code == 0:
            found[name] = understood(name, tuple[Need, ...], data_of(name, ran.out))
    return found


def _arranged(of: Mapping[str, Need], team: Team, host: Host) -> Copy | None:
    """Where the hosts want different commits nobody helps: the comparison of what they would serve says so."""
    lacking = [name for name, need in of.items() if need.lacks]
    commits = {need.commit for need in of.values() if need.commit}
    if not lacking or len(commits) > 1:
        return None
    if team.here is None and (held := _held_here(next(iter(of.values())), commits, host)):
        return _copy(held, tr(ELSEWHERE), of, lacking, begun=True)
    if giving := sorted((name for name, need in of.items() if need.gives), key=lambda name: name != team.here):
        return _copy(of[giving[0]], giving[0], of, lacking, begun=True)
    able = next((name for name in lacking if of[name].commit and of[name].takes), None)
    helpless = [name for name in lacking if not of[name].commit]
    return _copy(of[able], able, of, helpless, begun=False) if able else None


def _held_here(need: Need, commits: Iterable[str], host: Host) -> Need | None:
    """By whoever leads the change, and is none of the hosts himself."""
    source = "modelscope" if need.provider == "modelscope" else "hub"
    meant = Settings(model=need.repo, revision=next(iter(commits), need.revision), model_sources=(source,))
    found = needs.held(meant, host)
    return found and dataclasses.replace(found, revision=need.revision)


def _copy(need: Need, source: str, of: Mapping[str, Need], to: Iterable[str], *, begun: bool) -> Copy | None:
    able = tuple(name for name in to if of[name].takes)
    return Copy(offer_of(need, source), able, begun) if able else None


def carry_out(copy: Copy, team: Team, report: Report) -> None:
    """One that fails ends it for all, as it ends the change; what has come by then is not sent again."""
    offer, source = dataclasses.asdict(copy.offer), copy.offer.host
    with team.beside({source: GIVE, **dict.fromkeys(copy.to, TAKE)}) as ends:
        takers = {name: ends[name] for name in copy.to}
        for taker in takers.values():
            taker.tell({"offer": offer})
        missing = _missing(takers, copy.offer)
        if not (read := _read(missing, copy.offer)):
            return
        for name, parts in missing.items():
            left = size(_bytes(parts.values()))
            what = tr("weights of {model} from {host}, {size}", model=copy.offer.repo, host=source, size=left)
            report.note(tr("{what}: {why}", what=name, why=what))
        ends[source].tell({"offer": offer, "parts": [dataclasses.asdict(part) for part in read]})
        ends[source].hear()
        what = tr("{model} from {place}", model=copy.offer.repo, place=source)
        with report.bytes(what, _bytes(read), len(read)) as advance:
            for part in read:
                own = {takers[name]: parts.get(part.digest) for name, parts in missing.items()}
                _lead(part, ends[source], own, advance)
                advance(0, 1)
        raise_all(error for taker in takers.values() if (error := _ended(taker)))


def _missing(takers: Mapping[str, Connection], offer: Offer) -> dict[str, dict[str, Part]]:
    """Of each, by digest; or all that stands against it on any."""
    listed, found, errors = {(file.digest, file.size) for file in offer.files}, dict[str, dict[str, Part]](), []
    for name, taker in takers.items():
        try:
            parts = understood(name, tuple[Part, ...], taker.hear())
            if not {(part.digest, part.size) for part in parts} <= listed:
                raise puzzling(name)
            found[name] = {part.digest: part for part in parts}
        except InstallError as error:
            errors.append(error)
    raise_all(errors)
    return found


def _bytes(parts: Iterable[Part]) -> int:
    return sum(part.size - part.at for part in parts)


def _read(missing: Mapping[str, Mapping[str, Part]], offer: Offer) -> list[Part]:
    """What is read at the source: of each blob from the first byte on that anybody misses, in the order of all."""
    found = []
    for file in distinct(offer.files):
        if own := [parts[file.digest] for parts in missing.values() if file.digest in parts]:
            found.append(min(own, key=lambda part: part.at))
    return found


def _lead(part: Part, source: Connection, takers: Mapping[Connection, Part | None], advance: Advance) -> None:
    """To each what it misses of a blob."""
    at = part.at
    while at < part.size:
        data = memoryview(source.take(min(PIECE, part.size - at)))
        for taker, own in takers.items():
            if own:
                _give(taker, data[max(own.at - at, 0) :])
        at += len(data)
        advance(len(data))


def _give(taker: Connection, data: memoryview) -> None:
    """One that has ended has said why."""
    try:
        taker.give(data)
    except Lost:
        taker.hear()
        raise


def _ended(taker: Connection) -> InstallError | None:
    try:
        taker.hear()
    except InstallError as error:
        return error
    return None
