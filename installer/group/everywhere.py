"""A verb that only looks, on every host of a group: what each of them prints, and who could not be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.report import Report
from installer.group.member import Ran
from installer.group.reach import reached, refused, understood
from installer.spec.group import Peer


@dataclass(frozen=True)
class Heard:
    ran: Mapping[str, Ran]
    lost: Mapping[str, InstallError]


def ask(peers: Sequence[Peer], service: str, words: Sequence[str], host: Host, report: Report) -> Heard:
    """One that was taken out is asked as well: it can still be looked at."""
    with reached(peers, service, host, report) as team:
        answers = team.try_each("run", words=[*words])
    ran: dict[str, Ran] = {}
    lost = dict(team.lost)
    for name, answer in answers.items():
        try:
            if isinstance(answer, InstallError):
                raise answer
            ended = understood(name, Ran, answer)
            if ended.message:
                raise refused(name, {"message": ended.message, "hint": ended.hint, "code": ended.code})
            ran[name] = ended
        except InstallError as error:
            lost[name] = error
    return Heard(ran, lost)
