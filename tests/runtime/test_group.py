"""What the hosts of a group say to each other, on sockets: who is welcome, who is lost, and what nobody is believed."""

from __future__ import annotations

import itertools
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from installer.runtime import vllm_channel, vllm_group
from installer.runtime.vllm_channel import LENGTH, MAC, Channel
from installer.runtime.vllm_group import Follower, Group, Head
from tests.kit.boot.surroundings import held_port

KEY = b"k" * 64
RUNS = {"engine": "e1", "model": "tiny@1", "settings": "s1"}
HEAD, SECOND, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"
PATIENCE = 180.0
STEP = 0.005


class Clock:
    """Goes on by a step when all sides have had their turn: whoever is kept from the processor is silent for nobody."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (vllm_group, vllm_channel):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(vllm_group, "BEAT", 0.05)
    monkeypatch.setattr(vllm_group, "LOST_AFTER", 0.6)
    monkeypatch.setattr(vllm_group, "HELLO_WITHIN", 0.6)
    return clock


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(vllm_group, "say", lambda text, priority=6: lines.append(text))
    return lines


class Network:
    """A head, its followers, and whoever else is there; what passes between them can be held up."""

    def __init__(self, hosts: tuple[str, ...], clock: Clock) -> None:
        self.place, port = held_port(HEAD)
        self.clock = clock
        self.group = Group(hosts, 0, port, KEY, RUNS)
        self.head = Head(self.group)
        self.sides: list[vllm_group.Member] = [self.head]
        self.connections: list[socket.socket] = []

    def follower(self, rank: int = 1, **other: Any) -> Follower:
        follower = Follower(self.group._replace(rank=rank, **other))
        self.sides.append(follower)
        return follower

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            for side in self.sides:
                side.step()
            self.clock.now += STEP
            time.sleep(STEP)

    def passes(self, seconds: float) -> None:
        ended = self.clock.now + seconds
        self.until(lambda: self.clock.now > ended)

    def all_begin(self) -> None:
        self.until(lambda: not self.head.waits_for())
        self.head.begin()
        self.until(lambda: all(side.epoch == self.head.epoch for side in self.sides))

    def call(self, own: str = SECOND) -> socket.socket:
        """A connection as anybody may open one from a host of the group."""
        connection = socket.create_connection((HEAD, self.group.port), timeout=PATIENCE, source_address=(own, 0))
        self.connections.append(connection)
        return connection

    def is_closed(self, connection: socket.socket) -> bool:
        """By the head, whatever it said before."""
        connection.setblocking(False)
        try:
            while connection.recv(65536):
                pass
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        self.place.close()
        self.head.listener.close()
        for connection in self.connections:
            connection.close()
        for channel in [*self.head.unknown, *self.head.members.values()]:
            channel.connection.close()
        for side in self.sides:
            if isinstance(side, Follower) and side.channel:
                side.channel.connection.close()
            side.selector.close()


@pytest.fixture
def network(said: list[str], clock: Clock) -> Iterator[Network]:
    network = Network((HEAD, SECOND), clock)
    yield network
    network.close()


@pytest.fixture
def three(said: list[str], clock: Clock) -> Iterator[Network]:
    network = Network((HEAD, SECOND, THIRD), clock)
    yield network
    network.close()


def test_all_begin_when_the_last_one_is_there_and_in_one_epoch(three: Network) -> None:
    second = three.follower(1)
    assert three.head.waits_for() == f"waiting for the group: {SECOND}, {THIRD}"
    three.until(lambda: three.head.waits_for() == f"waiting for the group: {THIRD}")
    assert second.waits_for() == f"waiting for the group: {HEAD}: it waits for the others"
    third = three.follower(2)
    three.all_begin()
    assert second.epoch == third.epoch == three.head.epoch != ""
    assert not second.head_serves
    three.head.serves()
    three.until(lambda: second.head_serves and third.head_serves)


def test_a_follower_that_comes_first_waits_and_says_so_once(said: list[str], clock: Clock) -> None:
    network = Network((HEAD, SECOND), clock)
    follower = network.follower()
    network.head.listener.close()
    network.sides.remove(network.head)
    network.passes(0.5)
    assert follower.waits_for() == f"waiting for the group: {HEAD}: it has not answered yet"
    assert not follower.why
    assert said == []
    network.head = Head(network.group)
    network.sides.insert(0, network.head)
    network.all_begin()
    network.close()


def test_the_end_of_a_connection_is_heard_at_once_by_both(network: Network) -> None:
    follower = network.follower()
    network.all_begin()
    assert follower.channel
    follower.channel.connection.shutdown(socket.SHUT_RDWR)
    network.until(lambda: network.head.why and follower.why)
    assert network.head.why == f"{SECOND} is lost: it has closed the connection"
    assert follower.why.startswith(f"{HEAD} is lost: ")


def test_who_is_silent_is_lost_for_the_other(network: Network) -> None:
    follower = network.follower()
    network.all_begin()
    network.sides.remove(follower)  # as frozen, or behind a cable that was cut
    network.until(lambda: network.head.why)
    assert network.head.why == f"{SECOND} is lost: nothing was heard of it for 1 s"


def test_a_head_that_is_silent_is_lost_for_its_followers(network: Network) -> None:
    follower = network.follower()
    network.all_begin()
    network.sides.remove(network.head)
    network.until(lambda: follower.why)
    assert follower.why == f"{HEAD} is lost: nothing was heard of it for 1 s"


def test_a_follower_calls_again_only_when_nothing_of_its_engine_is_left(network: Network) -> None:
    follower = network.follower()
    network.all_begin()
    first = network.head.epoch
    assert follower.channel
    follower.channel.connection.shutdown(socket.SHUT_RDWR)
    network.until(lambda: network.head.why and follower.why)
    network.head.end()
    network.passes(0.3)
    assert network.head.waits_for() == f"waiting for the group: {SECOND}"
    follower.end()
    network.all_begin()
    assert network.head.epoch != first


def test_what_one_follower_loses_ends_it_for_all(three: Network) -> None:
    second, third = three.follower(1), three.follower(2)
    three.all_begin()
    second.down("its engine has ended with status 1")
    three.until(lambda: three.head.why)
    assert three.head.why == f"{SECOND}: its engine has ended with status 1"
    three.head.end()
    three.until(lambda: third.why and not second.channel)
    assert third.why == f"{SECOND}: its engine has ended with status 1"
    assert second.why == "", "its own word is no reason for it"


def test_a_follower_that_started_anew_ends_the_epoch_and_is_not_refused(network: Network) -> None:
    """One that lost its power says no goodbye, and comes back from the same address."""
    before = network.follower()
    network.all_begin()
    network.sides.remove(before)
    after = network.follower()
    network.until(lambda: network.head.why)
    assert network.head.why == f"{SECOND} is lost: it has started anew"
    network.head.end()
    network.until(lambda: after.channel is None)
    after.end()
    network.sides.remove(after)
    last = network.follower()
    network.all_begin()
    assert last.epoch


@pytest.mark.parametrize("what", ["engine", "model", "settings"])
def test_another_engine_model_or_setting_is_refused_in_words(network: Network, said: list[str], what: str) -> None:
    follower = network.follower(runs={**RUNS, what: "another"})
    network.until(lambda: len(said) >= 2)
    why = f"{SECOND}: its {what} is 'another', and '{RUNS[what]}' here"
    assert said == [
        f"refused {SECOND} as a member of the group: {why}",
        f"{HEAD} refuses this host as a member of the group: {why}",
    ]
    assert network.head.waits_for() == f"waiting for the group: {SECOND}: {why}"
    assert follower.waits_for() == f"waiting for the group: {HEAD}: it refuses this host: {why}"
    network.passes(0.5)
    assert len(said) == 2, "it is tried on and on, and said once"


def test_a_rank_belongs_to_its_address(three: Network, said: list[str]) -> None:
    follower = three.follower(1)
    three.sides.remove(follower)
    taker = Follower(three.group._replace(rank=2))
    taker.group = taker.group._replace(hosts=(HEAD, THIRD, SECOND))  # it calls from 127.0.0.2
    three.sides.append(taker)
    three.until(lambda: said)
    assert f"rank 2 of this group is not at {SECOND}" in said[0]
    assert not three.head.members


def test_another_key_opens_nothing(network: Network, said: list[str]) -> None:
    network.follower(key=b"x" * 64)
    network.until(lambda: said)
    assert said == [f"closed a connection from {SECOND}: it has not got the group's key"]
    assert not network.head.members


def test_a_false_head_starts_no_engine(network: Network) -> None:
    """Whoever answers at the head's address has to have the key as well."""
    network.head.group = network.group._replace(key=b"x" * 64)
    follower = network.follower()
    network.passes(0.5)
    assert follower.epoch == ""
    assert not follower.channel or not follower.channel.is_welcome


def test_a_stranger_from_elsewhere_is_not_even_answered(network: Network) -> None:
    stranger = network.call(own="127.0.0.9")
    network.until(lambda: select.select([stranger], [], [], 0)[0])
    assert stranger.recv(1) == b""


class Recorded:
    """One honest conversation, as somebody on the wire has it: what the follower sent, from its first byte."""

    def __init__(self, network: Network) -> None:
        taken: list[bytes] = []
        follower = network.follower()

        class Tapped(Channel):
            def _write(self, data: bytes) -> None:
                taken.append(data)
                super()._write(data)

        vllm_group.Channel = Tapped  # type: ignore[misc]
        try:
            network.until(lambda: follower.channel)
        finally:
            vllm_group.Channel = Channel  # type: ignore[misc]
        network.until(lambda: network.head.members and len(taken) >= 4)
        network.sides.remove(follower)
        self.follower, self.frames = follower, list(taken)


def test_what_was_recorded_is_worth_nothing_again(network: Network, said: list[str]) -> None:
    recorded = Recorded(network)
    before = network.head.members[1]
    again = network.call()
    again.sendall(b"".join(recorded.frames))
    network.until(lambda: network.is_closed(again))
    assert f"closed a connection from {SECOND}: it has not got the group's key" in said
    assert network.head.members.get(1) in (before, None), "the honest one was not replaced"


@pytest.mark.parametrize("order", ["twice", "swapped", "bit", "reflected"])
def test_in_a_connection_nothing_comes_twice_or_in_another_order_or_changed(network: Network, order: str) -> None:
    follower = network.follower()
    network.all_begin()
    channel = follower.channel
    assert channel
    network.sides.remove(follower)
    frames: list[bytes] = []
    channel._write = frames.append  # type: ignore[assignment, method-assign]
    channel.send("beat", epoch=follower.epoch)
    channel.send("beat", epoch=follower.epoch)
    sent = {
        "twice": [frames[0], frames[0]],
        "swapped": [frames[1], frames[0]],
        "bit": [frames[0][:-3] + bytes([frames[0][-3] ^ 1]) + frames[0][-2:]],
        "reflected": [reflected(network)],
    }[order]
    channel.connection.setblocking(True)
    for frame in sent:
        channel.connection.sendall(frame)
    network.until(lambda: network.head.why)
    assert network.head.why == f"{SECOND} is lost: it has not got the group's key"


def reflected(network: Network) -> bytes:
    """What the head itself said, with the same number as the next message of the other side."""
    channel = network.head.members[1]
    frames: list[bytes] = []
    real, channel._write = channel._write, frames.append  # type: ignore[assignment, method-assign]
    number, channel._sent = channel._sent, channel._read
    channel.send("beat", epoch=network.head.epoch)
    channel._write, channel._sent = real, number  # type: ignore[method-assign]
    return frames[0]


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4, "it does not speak as a member does"),
        (b"\0" * 4096, "it has not got the group's key"),
        (b"r" * 32 + b"\0\1\0\0" + b"x" * 64, "it does not speak as a member does"),
        (b"r" * 32 + b"\0\0\0\2" + b"m" * 32 + b"{}", "it has not got the group's key"),
    ],
)
def test_garbage_closes_its_own_connection_and_no_other(
    network: Network, said: list[str], garbage: bytes, why: str
) -> None:
    follower = network.follower()
    network.all_begin()
    somebody = network.call()
    somebody.sendall(garbage)
    network.until(lambda: network.is_closed(somebody))
    assert said == [f"closed a connection from {SECOND}: {why}"]
    network.head.serves()
    network.until(lambda: follower.head_serves)
    assert not network.head.why
    assert not follower.why


def test_who_has_the_key_and_speaks_nonsense_is_parted_from(network: Network) -> None:
    for text in (b"[" * 3000, b"[]", b"nonsense", b'{"is": "hello", "rank": 1e999}', b'{"is": "beat"}'):
        follower = network.follower()
        network.until(lambda: follower.channel and follower.channel.is_keyed)  # noqa: B023
        channel = follower.channel
        assert channel
        network.sides.remove(follower)
        channel.connection.setblocking(True)
        mac = channel._mac(text, channel._sent, of_head=False)
        channel.connection.sendall(len(text).to_bytes(4, "big") + mac + text)
        network.until(lambda: network.is_closed(channel.connection))  # noqa: B023


def test_an_engine_of_another_epoch_is_not_counted_among_those_of_this_one(network: Network) -> None:
    follower = network.follower()
    network.all_begin()
    follower.tell("beat", epoch="00000000")
    network.until(lambda: network.head.why)
    assert network.head.why == f"{SECOND} is lost: it runs an engine of another epoch"


def test_who_does_not_say_who_it_is_is_closed_in_time_however_slowly_it_speaks(network: Network) -> None:
    half_open, slow = network.call(), network.call()
    began = itertools.count()

    def drip() -> bool:
        if not network.is_closed(slow) and next(began) % 10 == 0:
            try:
                slow.send(b"x")
            except OSError:
                return True
        return network.is_closed(slow)

    network.until(drip)
    network.until(lambda: network.is_closed(half_open))


def test_however_many_call_a_member_gets_in(network: Network) -> None:
    crowd = [network.call() for _ in range(3 * vllm_group.MOST_UNKNOWN)]
    network.until(lambda: len(network.head.unknown) == vllm_group.MOST_UNKNOWN)
    network.follower()
    network.all_begin()
    assert len(crowd) > len(network.head.unknown)


def test_the_journal_has_a_bound_whoever_calls(network: Network, said: list[str]) -> None:
    for number in range(100):
        network.head.say_once(f"line {number}")
    assert len(said) == vllm_group.MOST_LINES


def test_what_the_hosts_have_in_common_leaves_out_what_is_each_ones_own() -> None:
    one = ["serve", "/a/model", "--host", "0.0.0.0", "--port", "8000", "--node-rank", "0", "--max-model-len", "512"]
    two = ["serve", "/b/model", "--host", "127.0.0.1", "--port", "9", "--node-rank", "1", "--max-model-len", "512"]
    assert vllm_group.without_place(one) == vllm_group.without_place(two)
    assert vllm_group.without_place(one) != vllm_group.without_place([*two[:-1], "1024"])


def test_no_word_of_the_key_is_in_what_is_told_to_anybody(network: Network) -> None:
    recorded = Recorded(network)
    assert KEY not in b"".join(recorded.frames)
    assert json.loads(recorded.frames[1][LENGTH + MAC :])["is"] == "hello"
