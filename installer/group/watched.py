"""One Prometheus for all hosts: each knows, by its digest, the key with which Prometheus on another reads figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Report
from installer.group.change import group_of
from installer.group.member import Ran, Watch
from installer.group.reach import Team, reached, understood
from installer.runtime.vllm_text import one_line
from installer.spec.group import Group
from installer.spec.records import services

T = TypeVar("T")
ENABLE = ("monitor", "enable")


def introduce_all(host: Host, report: Report) -> None:
    """The hosts of every service to one another."""
    for service in services(host):
        if group := group_of(host, service):
            with reached(group.serving, service, host, report) as team:
                introduce(team, group, report)


def watch_together(team: Team, group: Group, report: Report, new: Collection[str] = ()) -> None:
    """After a change of which hosts there are: where they are watched together, a new one is so, too."""
    found = _watches(team, report)
    if any(watch.together for watch in found.values()):
        _enable(team, [name for name in new if name in found and not found[name].key], report)
        introduce(team, group, report)


def introduce(team: Team, group: Group, report: Report) -> None:
    """What one cannot be told is said, and undoes nothing. Of a host that is away the others keep what they know."""
    found = _watches(team, report)
    keys = {peer.name: found[peer.name].key if peer.name in found else None for peer in group.peers}
    told = {name: {each: keys[each] for each in keys if each != name} if name in keys else {} for name in found}
    _asked(team, "read_by", {name: {"readers": readers} for name, readers in told.items()}, type(None), report)


def _watches(team: Team, report: Report) -> dict[str, Watch]:
    return _asked(team, "watch", {name: {} for name in team.far}, Watch, report)


def _enable(team: Team, names: Collection[str], report: Report) -> None:
    """Of a host where it fails `watch` says that it is not watched."""
    ran = _asked(team, "run", {name: {"words": [*ENABLE]} for name in names}, Ran, report)
    for name, ended in ran.items():
        if ended.message:
            _warn(name, ended.message, report)


def _asked(team: Team, do: str, given: Mapping[str, Mapping[str, Any]], kind: type[T], report: Report) -> dict[str, T]:
    """What those answered that could be asked."""
    found: dict[str, T] = {}
    for name, answer in team.try_each_of(do, given).items():
        try:
            if isinstance(answer, InstallError):
                raise answer
            found[name] = understood(name, kind, answer)
        except InstallError as error:
            _warn(name, error.message, report)
    return found


def _warn(name: str, why: str, report: Report) -> None:
    report.warn(tr("{name} is not watched together with the others: {why}", name=name, why=one_line(why)))
