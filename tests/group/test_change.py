"""A change of several hosts, cut off at every request on every host: afterwards all have it, or none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from installer.base.errors import Exit, InstallError
from installer.base.host import Host
from installer.flow.prove import NotProved
from installer.group import carry
from installer.group.reach import Lost
from installer.spec.group import Group, Joint, Peer, load_group, save_group
from installer.spec.records import load_state
from installer.spec.values import REPLICAS, SPAN
from installer.units.keyring import unit_keys
from tests.flow import test_deploy, test_transaction
from tests.flow.test_transaction import LAYOUT, Proofs
from tests.group.world import NAMES, Killed, World

host, proofs, seen = test_transaction.host, test_transaction.proofs, test_deploy.seen
ONE, TWO = NAMES
MOMENTS = ("before", "after")


@pytest.fixture
def world(host: Host, proofs: Proofs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two bare hosts."""
    monkeypatch.setattr(carry, "digest", lambda: "the-same")
    monkeypatch.setattr(carry, "take_away", lambda host: None)
    return World.of_bare(tmp_path / "world", host.root)


@pytest.fixture
def copies(world: World, tmp_path: Path) -> Callable[[], World]:
    """Any number of worlds as that one is."""
    numbers = count(1)
    return lambda: world.copy(tmp_path / f"copy{next(numbers)}")


def requests(world: World, act: Callable[[World], object]) -> list[tuple[str, str]]:
    """Who is asked what by it, in an order that is the same every time for each host."""
    asked: list[tuple[str, str]] = []

    def cut(name: str, do: str, done: bool) -> None:
        if not done:
            asked.append((name, do))

    world.cut = cut
    act(world)
    world.cut = lambda *_: None
    return asked


def cut_at(name: str, number: int, moment: str, fault: BaseException) -> Callable[[str, str, bool], None]:
    """From its request of that number on, a host is lost; or whoever asks is no more."""
    seen = {"before": 0, "after": 0}

    def cut(asked: str, do: str, done: bool) -> None:
        at = "after" if done else "before"
        if asked == name:
            seen[at] += 1
        if (asked == name or isinstance(fault, Killed)) and seen[moment] > number:
            raise fault

    return cut


def first(world: World) -> None:
    world.deploy()


def change(world: World) -> None:
    world.set("PORT=8001")


ACTS = (
    pytest.param(first, REPLICAS, None, 8000, id="first"),
    pytest.param(change, REPLICAS, 8000, 8001, id="set"),
    pytest.param(change, SPAN, 8000, 8001, id="set-span"),
)


def points(asked: list[tuple[str, str]]) -> Iterator[tuple[str, int, str, str]]:
    for name in NAMES:
        for number, do in enumerate(do for each, do in asked if each == name):
            for moment in MOMENTS:
                yield name, number, moment, do


@pytest.mark.parametrize(("act", "mode", "before", "after"), ACTS)
def test_whoever_makes_a_change_may_be_killed_at_any_request(
    act: Callable[[World], None], mode: str, before: int | None, after: int, world: World, copies: Callable[[], World]
) -> None:
    """What the next command finds, from whichever host, it completes or undoes on both."""
    ended: dict[int | None, int] = {}
    world.mode = mode
    if before:
        world.deploy()
    for name, number, moment, do in points(requests(copies(), act)):
        world, where = copies(), (name, number, moment, do)
        world.cut = cut_at(name, number, moment, Killed())
        with pytest.raises(Killed):
            act(world)
        world.cut = lambda *_: None
        uncertain = f"only {name} can tell"
        assert uncertain in said(lambda world=world, name=name: world.settle(name), uncertain), (
            where
        )  # it is away first
        world.settle()
        world.check_settled()
        assert world.port(ONE) == (after if world.switched == {*NAMES} else before), where
        ended[world.port(ONE)] = ended.get(world.port(ONE), 0) + 1
        world.deploy()  # and goes on as if nothing had been
        world.check_settled()
    print(f"killed at {sum(ended.values())} points: {ended}")
    assert set(ended) == {before, after}


@pytest.mark.parametrize(("act", "mode", "before", "after"), ACTS)
def test_a_host_may_vanish_at_any_request(
    act: Callable[[World], None], mode: str, before: int | None, after: int, world: World, copies: Callable[[], World]
) -> None:
    """The others go back; it follows with the first command after it is back, from whichever host."""
    ended: dict[int | None, int] = {}
    world.mode = mode
    if before:
        world.deploy()
    for name, number, moment, do in points(requests(copies(), act)):
        world = copies()
        world.cut = cut_at(name, number, moment, Lost(f"{name}: gone"))
        where = (name, number, moment, do)
        assert name in said(lambda world=world: act(world), name), where
        world.cut = lambda *_: None
        other = TWO if name == ONE else ONE
        uncertain = f"only {name} can tell"
        assert uncertain in said(lambda world=world, name=name: world.settle(name), uncertain), (
            where
        )  # while it is away
        assert world.port(other) in (before, after), where
        world.settle()
        world.check_settled()
        ended[world.port(ONE)] = ended.get(world.port(ONE), 0) + 1
    print(f"vanished at {sum(ended.values())} points: {ended}")
    assert before in ended


def said(act: Callable[[], object], otherwise: str) -> str:
    """By the error, or what it would have said."""
    try:
        act()
    except InstallError as error:
        return error.message
    return otherwise


# One host fails


def test_a_host_that_fails_its_proof_takes_the_change_back_on_all(world: World) -> None:
    world.deploy()
    states = [load_state(world.hosts[name], LAYOUT) for name in NAMES]
    texts = [host.read(LAYOUT.settings_file) for host in world.hosts.values()]
    world.fault[TWO] = NotProved("it answers nonsense")
    with pytest.raises(InstallError, match="gpu2: it answers nonsense") as caught:
        world.set("PORT=8001")
    assert caught.value.exit_code == Exit.NOT_PROVED
    assert "all hosts are as they were" in caught.value.message
    world.check_settled()
    now = [load_state(world.hosts[name], LAYOUT) for name in NAMES]
    assert [(s.proved, s.previous) for s in now if s] == [(s.proved, s.previous) for s in states if s]
    assert world.ports() == [8000, 8000]
    assert [host.read(LAYOUT.settings_file) for host in world.hosts.values()] == texts


def test_one_host_after_the_other_goes_back_the_last_first_so_that_the_others_answer(world: World) -> None:
    world.deploy()
    world.fault[TWO] = NotProved("it answers nonsense")
    undone: list[tuple[str, bool]] = []

    def cut(name: str, do: str, done: bool) -> None:
        if do == "undo":
            undone.append((name, done))

    world.cut = cut
    with pytest.raises(InstallError, match="it answers nonsense"):
        world.set("PORT=8001")
    assert undone == [(TWO, False), (TWO, True), (ONE, False), (ONE, True)]


def test_a_first_deploy_that_fails_on_one_host_leaves_no_service_and_no_group(world: World) -> None:
    world.fault[TWO] = NotProved("it answers nonsense")
    with pytest.raises(InstallError, match="it answers nonsense"):
        world.deploy()
    assert [load_state(host, LAYOUT) for host in world.hosts.values()] == [None, None]
    assert [load_group(host, LAYOUT) for host in world.hosts.values()] == [None, None]


def test_a_power_cut_in_the_middle_of_a_hosts_own_change_is_undone_with_the_rest(world: World) -> None:
    world.deploy()
    world.fault[TWO] = Killed()
    with pytest.raises(Killed):
        world.set("PORT=8001")
    assert world.port(ONE) == 8001, "the first host had it already"
    world.settle()
    world.check_settled()
    assert world.ports() == [8000, 8000]


def test_a_host_that_cannot_be_put_back_is_tried_again_by_the_next_command(world: World) -> None:
    world.deploy()
    world.fault[TWO] = NotProved("it answers nonsense")

    def cut(name: str, do: str, done: bool) -> None:
        if (name, do, done) == (ONE, "undo", False):
            raise InstallError("gpu1: the disk is full")

    world.cut = cut
    with pytest.raises(InstallError, match="could not be put back: gpu1: the disk is full") as caught:
        world.set("PORT=8001")
    assert caught.value.exit_code == Exit.NOT_RESTORED
    assert world.ports() == [8001, 8000]
    world.cut = lambda *_: None
    world.settle()
    world.check_settled()
    assert world.ports() == [8000, 8000]


def test_a_key_that_one_host_does_not_take_is_taken_back_on_all(world: World) -> None:
    world.deploy()
    before = [unit_keys(host, LAYOUT) for host in world.hosts.values()]
    world.set_apikey("sk-another-0123456789abcdefghijklmnop")
    now = [unit_keys(host, LAYOUT) for host in world.hosts.values()]
    assert now[0][0] == now[1][0] != before[0][0]
    world.fault[TWO] = NotProved("it did not take the new keys")
    with pytest.raises(InstallError, match="gpu2: it did not take the new keys; all hosts are as they were"):
        world.set_apikey("sk-a-third-one-0123456789abcdefghijk")
    assert [unit_keys(host, LAYOUT) for host in world.hosts.values()] == now
    world.check_settled()


def test_what_another_group_has_half_done_is_not_touched(world: World) -> None:
    world.deploy()
    other = Group("another", (Peer(TWO), Peer("gpu9")), epoch=7, change=Joint("c", "set PORT=9"))
    save_group(world.hosts[TWO], LAYOUT, other)
    with pytest.raises(InstallError, match="gpu1 and gpu2 are of different groups"):
        world.settle()
    assert load_group(world.hosts[TWO], LAYOUT) == other


def test_every_host_has_the_same_key_and_none_of_them_was_sent_it(world: World) -> None:
    world.deploy()
    first, second = ([key for key in unit_keys(host, LAYOUT) if key.name == "default"] for host in world.hosts.values())
    assert first == second
    assert len(first) == 1


# Hosts that serve one model together


def test_all_hosts_of_one_model_change_at_once_and_one_that_fails_ends_it_for_all(world: World) -> None:
    """Neither would serve without the other: the first is still at it when the second has failed, and is stopped."""
    world.mode = SPAN
    world.deploy()
    stopped, undone = threading.Event(), threading.Event()
    meanwhile: list[bool] = []
    world.stop = {ONE: stopped.set}

    def cut(name: str, do: str, done: bool) -> None:
        if (name, do, done) == (ONE, "switch", False):
            stopped.wait(180)  # it waits for the other, as a host of one model does, and so does its own way back
            meanwhile.append(undone.wait(180))
            raise InstallError("gpu1: it was interrupted")
        if (name, do, done) == (TWO, "undo", True):
            undone.set()

    world.cut, world.fault[TWO] = cut, NotProved("it answers nonsense")
    with pytest.raises(InstallError, match=r"gpu2: it answers nonsense; .*; all hosts are as they were"):
        world.set("PORT=8001")
    assert (stopped.is_set(), meanwhile) == (True, [True])
    world.check_settled()
    assert world.ports() == [8000, 8000]
    world.cut = lambda *_: None
    world.set("PORT=8001")
    assert world.ports() == [8001, 8001]


def test_a_key_of_one_model_is_set_on_one_host_after_the_other(world: World) -> None:
    """No engine starts anew for it, so nobody waits for anybody."""
    world.mode = SPAN
    world.deploy()
    asked = [name for name, do in requests(world, lambda world: world.set_apikey("sk-a-third-one-0123456789abcdefgh"))
             if do == "switch"]  # fmt: skip
    assert asked == [ONE, TWO]


def test_the_key_of_one_model_comes_with_the_change_and_goes_with_it(world: World) -> None:
    world.mode = SPAN
    paths = [host.at(LAYOUT.group_key) for host in world.hosts.values()]
    world.fault[TWO] = NotProved("it answers nonsense")
    with pytest.raises(InstallError, match="it answers nonsense"):
        world.deploy(group_key="0123456789abcdef\n")
    assert not any(path.exists() for path in paths)

    def full(name: str, do: str, done: bool) -> None:
        if (name, do, done) == (TWO, "claim", False):
            raise InstallError("gpu2: the disk is full")

    world.cut = full
    with pytest.raises(InstallError, match="the disk is full"):
        world.deploy(group_key="0123456789abcdef\n")
    world.cut = lambda *_: None
    assert not any(path.exists() for path in paths)
    world.deploy(group_key="0123456789abcdef\n")
    assert [(path.read_text(), path.stat().st_mode & 0o777) for path in paths] == [("0123456789abcdef\n", 0o600)] * 2
    world.set("PORT=8001")
    assert [path.read_text() for path in paths] == ["0123456789abcdef\n"] * 2
