"""What is seen of a group from one of its hosts: each host's state in a word, and a finding for each that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.group import look, ssh
from installer.group.member import Look
from installer.group.reach import Team
from installer.spec.group import Group, Joint, Peer
from installer.spec.values import SPAN
from tests.group.test_facts import HEALTHY, Answering

GROUP = Group("mine", (Peer("gpu1"), Peer("gpu2")), SPAN, 3)
SERVES = replace(HEALTHY, group=GROUP, served=True, active="active", model="m@1")
AWAY = "waiting for the group: 10.0.0.2: it has not answered yet"


def seen(monkeypatch: pytest.MonkeyPatch, *looks: Look | None) -> look.GroupLook:
    """By the first host; None is one that does not answer."""
    told = dict(zip(("gpu1", "gpu2"), looks, strict=True))

    @contextmanager
    def reached(*_: object) -> Iterator[Team]:
        far = (Answering(name, {"look": json.loads(json.dumps(asdict(each)))}) for name, each in told.items() if each)
        yield Team(far, {name: ssh.Unreachable(f"{name}: it is away") for name, each in told.items() if each is None})

    monkeypatch.setattr(look, "reached", reached)
    return look.at(Host(), GROUP, "qwen3vl", Report())


@pytest.mark.parametrize(
    ("other", "state", "finding"),
    [
        (SERVES, look.SERVES, None),
        (None, look.LOST, "host-lost"),
        (replace(SERVES, group=None), look.BEHIND, "host-behind"),
        (replace(SERVES, active="failed"), look.STOPPED, "host-down"),
        (replace(SERVES, active="failed", stage=AWAY), look.STOPPED, "host-down"),
        (replace(SERVES, stage=AWAY), look.APART, "group-broken"),
        (replace(SERVES, stage=AWAY, active="activating"), look.APART, "group-broken"),
        (replace(SERVES, group=replace(GROUP, change=Joint("c", "set PORT=1"))), look.SERVES, "hosts-pending"),
    ],
)
def test_each_state_of_a_host_is_told_and_what_is_wrong_is_a_finding(
    other: Look | None, state: str, finding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = seen(monkeypatch, SERVES, other)
    assert [host.state for host in found.hosts] == [look.SERVES, state]
    assert [each.id for each in look.findings(found)] == ([finding] if finding else [])
    assert found.is_whole == (finding is None)
    if state == look.APART:
        assert next(look.findings(found)).evidence == AWAY
        assert AWAY in list(look.lines(found))[1]
