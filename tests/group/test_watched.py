"""Hosts that one Prometheus reads: who is told of whose key, and what becomes of one that is away, new or let go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.report import Report
from installer.group import ssh, watched
from installer.group.member import Member
from installer.group.reach import Team
from installer.spec import keys
from installer.spec.group import Group, Peer
from installer.spec.records import load_state, save_state
from installer.units import monitoring
from installer.units.keyring import unit_keys
from tests.flow.test_transaction import LAYOUT
from tests.group import test_change
from tests.group.world import SERVICE, Told, World
from tests.group.world import run as run_verb

host, proofs, seen = test_change.host, test_change.proofs, test_change.seen
world = test_change.world
PEERS = tuple(Peer(f"gpu{number}") for number in (1, 2, 3))
GROUP = Group("mine", PEERS)


class Watched:
    """A host that says that it is watched, or not, and keeps what it is told."""

    def __init__(self, name: str, key: str = "", *, together: bool = False) -> None:
        self.name, self.key, self.together = name, key, together
        self.told: dict[str, str | None] | None = None
        self.asked: list[str] = []
        self.refuses = ""

    def ask(self, do: str, **given: Any) -> Any:
        self.asked.append(do)
        if do == self.refuses:
            raise Refused("it cannot be done\x1b[2J")
        if do == "run":
            self.key = "made"
            return {"code": 0, "out": "", "message": "", "hint": "", "words": given["words"]}
        if do == "read_by":
            self.told = json.loads(json.dumps(given["readers"]))
            return None
        return {"key": self.key, "together": self.together}

    def stop(self) -> None: ...


def team_of(hosts: Iterable[Watched], *away: str) -> Team:
    return Team(hosts, {name: ssh.Unreachable(f"{name}: it is away") for name in away})


def introduce(hosts: Iterable[Watched], *away: str, group: Group = GROUP) -> list[str]:
    said: list[str] = []
    watched.introduce(team_of(hosts, *away), group, Told(said))
    return said


def test_each_is_told_of_the_others_and_keeps_what_it_knows_of_one_that_is_away() -> None:
    one, two = Watched("gpu1", "a"), Watched("gpu2", "b")
    assert introduce((one, two), "gpu3") == []
    assert (one.told, two.told) == ({"gpu2": "b", "gpu3": None}, {"gpu1": "a", "gpu3": None})


def test_one_that_is_not_watched_any_more_reads_nowhere() -> None:
    one, two, three = Watched("gpu1", "a", together=True), Watched("gpu2"), Watched("gpu3", "c")
    introduce((one, two, three))
    assert (one.told, two.asked) == ({"gpu2": "", "gpu3": "c"}, ["watch", "read_by"])


@pytest.mark.parametrize(
    ("together", "asked", "told"),
    [(True, ["watch", "run", "watch", "read_by"], {"gpu2": None, "gpu3": "made"}), (False, ["watch"], None)],
)
def test_a_new_host_is_watched_where_the_others_are_watched_together(
    together: bool, asked: list[str], told: dict[str, str | None] | None
) -> None:
    one, three = Watched("gpu1", "a", together=together), Watched("gpu3")
    watched.watch_together(team_of((one, three), "gpu2"), GROUP, Report(), new=["gpu3"])
    assert (three.asked, one.told) == (asked, told)


def test_one_that_is_let_go_is_told_of_nobody_and_nobody_of_it() -> None:
    one, two, gone = Watched("gpu1", "a"), Watched("gpu2", "b"), Watched("gpu3", "c")
    introduce((one, two, gone), group=replace(GROUP, peers=PEERS[:2]))
    assert (one.told, gone.told) == ({"gpu2": "b"}, {})


def test_one_that_refuses_is_said_and_keeps_nobody_else_from_it() -> None:
    one, two = Watched("gpu1", "a"), Watched("gpu2", "b")
    two.refuses = "read_by"
    (said,) = introduce((one, two), "gpu3")
    assert said == "gpu2 is not watched together with the others: it cannot be done\\x1b[2J"
    assert one.told == {"gpu2": "b", "gpu3": None}


def test_what_nobody_understands_is_no_key() -> None:
    one, two = Watched("gpu1", "a"), Watched("gpu2", 7)  # type: ignore[arg-type]
    (said,) = introduce((one, two), "gpu3")
    assert "gpu2: it says what nobody understands" in said
    assert one.told == {"gpu2": None, "gpu3": None}


# On a host with a real record and a real unit


def member(host: Host) -> Member:
    return Member(SERVICE, host, Report(), lambda words, text, _: run_verb(host, words, text, None))


def names(host: Host) -> set[str]:
    return {key.name for key in unit_keys(host, LAYOUT)}


@pytest.fixture
def answering(world: World) -> Host:
    world.deploy()
    found = world.hosts["gpu1"]
    state = load_state(found, LAYOUT)
    assert state
    assert state.proved
    settings = replace(state.proved.settings, gateway_hosts=("10.0.0.1", "10.0.0.2"))
    save_state(found, LAYOUT, replace(state, proved=replace(state.proved, settings=settings)))
    return found


def test_a_host_takes_the_digests_and_no_other_host_has_to_have_them(answering: Host) -> None:
    host, ours = answering, member(answering)
    assert ours.watch() == {"key": "", "together": False}
    before = ours.look()["keys"]
    host.write(monitoring.KEY, "sk-monitor-0123456789\n", 0o600)
    ours.read_by({"gpu2": keys.digest("theirs")})
    assert names(host) == {"default", "probe", "monitor-of-gpu2"}
    assert ours.watch() == {"key": keys.digest("sk-monitor-0123456789"), "together": True}
    assert ours.look()["keys"] == before, "it is no matter of the others"
    ours.take_keys(list(before))
    assert "monitor-of-gpu2" in names(host)
    ours.read_by({})
    assert names(host) == {"default", "probe"}


def test_hosts_that_do_not_answer_for_one_another_read_nothing_of_each_other(world: World) -> None:
    world.deploy()
    host = world.hosts["gpu2"]
    member(host).read_by({"gpu1": keys.digest("theirs")})
    assert names(host) == {"default", "probe"}


def test_a_host_without_the_service_is_told_nothing(tmp_path: Path) -> None:
    bare = member(Host(tmp_path))
    bare.read_by({"gpu1": keys.digest("theirs")})
    assert bare.watch() == {"key": "", "together": False}
