"""What the hosts of one model say to each other: who is there, when all begin, that each still lives, and who is lost.

    head      → follower   32 random bytes                 a connection is worth as much as what answers them
    follower  →            32 random bytes, {"is": "hello", "rank": 1, "runs": {…}}
    head      →            {"is": "refused", "why": …}     it runs something else; or {"is": "welcome"}
              →            {"is": "start", "epoch": …}     all are there: each starts its engine
    both      ↔            {"is": "beat", "epoch": …}      every second; who is silent for ten is lost
    head      →            {"is": "serves"}                a request was answered
    follower  →            {"is": "down", "why": …}        its engine has ended
    head      →            {"is": "end", "why": …, …}      one is lost: each ends its engine, and says hello again

How it is said, so that nobody else is believed: vllm_channel.py. Who does not say who it is in time is not listened to.
Stdlib only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_channel import LONGEST, Broken, Channel
    from installer.runtime.vllm_systemd import say
else:
    from vllm_channel import LONGEST, Broken, Channel
    from vllm_systemd import say

BEAT = 1.0  # seconds
LOST_AFTER = 10.0  # seconds of silence
HELLO_WITHIN = 5.0  # seconds
MOST_LINES = 32  # of the journal, in an epoch
MOST_UNKNOWN = 16  # connections that have not said who they are; one more, and the oldest is closed
SHORTEST_KEY = 32
CREDENTIAL = "group-key"
WAITING = "waiting for the group: "
NOT_YET = "it has not answered yet"


class Ended(Exception):
    """The head has ended the epoch, and waits for all to call again."""


class Group(NamedTuple):
    """As the unit has it; `runs` is what all have to have in common."""

    hosts: tuple[str, ...]
    rank: int
    port: int
    key: bytes
    runs: Mapping[str, str]


def task(serve: list[str]) -> dict[str, Any] | None:
    """The group that this unit is a member of, as a supervisor is told of it; None for a service of one host."""
    hosts = list(filter(None, os.environ.get("GROUP_HOSTS", "").split(",")))
    if not hosts:
        return None
    with open(os.path.join(os.environ["CREDENTIALS_DIRECTORY"], CREDENTIAL)) as file:
        key = file.read(LONGEST).strip()
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"the group's key has fewer than {SHORTEST_KEY} characters")
    shared = json.dumps([hosts, without_place(serve)])
    runs = {
        "engine": os.environ.get("GROUP_ENGINE", ""),
        "model": os.environ.get("GROUP_MODEL", ""),
        "settings": hashlib.sha256(shared.encode()).hexdigest()[:16],
    }
    number = {name: int(os.environ[f"GROUP_{name.upper()}"]) for name in ("rank", "port")}
    return {"hosts": hosts, **number, "key": key, "runs": runs}


def of_task(told: Mapping[str, Any]) -> Group:
    return Group(tuple(told["hosts"]), told["rank"], told["port"], told["key"].encode(), told["runs"])


def without_place(serve: list[str]) -> list[str]:
    """The command without what may be another one on each host: where the model lies, the API's address, its rank."""
    words = serve[:1] + serve[2:]
    for flag in ("--host", "--port", "--node-rank"):
        if flag in words:
            at = words.index(flag)
            words = words[:at] + words[at + 2 :]
    return words


class Member:
    """One side of it. `why` is the reason for which this epoch is over, from the moment it is known."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.selector = selectors.EpollSelector()
        self.epoch = ""  # of the engine that runs; "" while none does
        self.why = ""
        self.beaten_at = 0.0
        self._said = set[str]()

    def step(self) -> None:
        """Hear what has come, and do what is due; never waits."""
        for key, _ in self.selector.select(0):
            key.data()
        if time.monotonic() > self.beaten_at + BEAT:
            self.beaten_at = time.monotonic()
            self.beat()

    def beat(self) -> None:
        raise NotImplementedError

    def waits_for(self) -> str:
        """Whom, and why, as people read it; "" once all are there."""
        raise NotImplementedError

    def say_once(self, text: str) -> None:
        """A line for the journal, once an epoch: it is tried every second, and by whoever likes to."""
        if text not in self._said and len(self._said) < MOST_LINES:
            self._said.add(text)
            say(text, 4)

    def close(self, channel: Channel) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(channel.connection)
        channel.connection.close()


class Head(Member):
    """Listens, and decides: when all begin, and when it is over."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.listener = socket.create_server((group.hosts[0], group.port), backlog=64)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.unknown: list[Channel] = []
        self.members: dict[int, Channel] = {}
        self.refused: dict[str, str] = {}  # by address
        self.cause = 0  # the rank of who was lost

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, (address, *_) = self.listener.accept()
            if address not in self.group.hosts[1:]:
                connection.close()
                return
            while len(self.unknown) >= MOST_UNKNOWN:
                self.close(self.unknown.pop(0))
            try:
                channel = Channel(connection, self.group.key, is_head=True)
            except Broken:
                connection.close()
                return
            channel.name = address
            self.unknown.append(channel)
            self.selector.register(connection, selectors.EVENT_READ, lambda: self.hear(channel))

    def hear(self, channel: Channel) -> None:
        try:
            for message in channel.read():
                self.take(channel, message)
        except (Broken, ValueError, RecursionError) as broken:
            self.part(channel, str(broken) if isinstance(broken, Broken) else "it does not speak as a member does")

    def take(self, channel: Channel, message: Mapping[str, Any]) -> None:
        what = message.get("is")
        if what == "hello" and channel in self.unknown:
            self.welcome(channel, message)
        elif what == "beat" and channel.is_welcome:
            epoch = str(message.get("epoch"))
            # In the moments after a start it has not heard of it yet: it runs nothing then.
            if epoch not in ("", self.epoch) or (channel.epoch and epoch != channel.epoch):
                raise Broken("it runs an engine of another epoch")
            channel.epoch = epoch
        elif what == "down" and channel.is_welcome:
            self.lose(f"{channel.name}: {message.get('why')}", channel.rank)
        else:
            raise Broken("it does not speak as a member does")

    def welcome(self, channel: Channel, message: Mapping[str, Any]) -> None:
        rank, runs = message.get("rank"), message.get("runs")
        if type(rank) is not int or not 0 < rank < len(self.group.hosts) or self.group.hosts[rank] != channel.name:
            self.refuse(channel, f"rank {rank} of this group is not at {channel.name}")
            return
        channel.rank = rank
        if why := differences(self.group.runs, runs if isinstance(runs, dict) else {}, channel.name):
            self.refuse(channel, why)
            return
        if before := self.members.get(rank):  # it has started anew, and the end of the other one is still on its way
            self.part(before, "it has started anew")
        self.unknown.remove(channel)
        channel.is_welcome = True
        self.members[rank] = channel
        self.refused.pop(channel.name, None)
        channel.send("welcome")

    def refuse(self, channel: Channel, why: str) -> None:
        self.say_once(f"refused {channel.name} as a member of the group: {why}")
        self.refused[channel.name] = why
        channel.is_refused = True
        channel.send("refused", why=why)
        raise Broken(why)

    def part(self, channel: Channel, why: str) -> None:
        self.close(channel)
        if channel in self.unknown:
            self.unknown.remove(channel)
            if not channel.is_refused:
                self.say_once(f"closed a connection from {channel.name}: {why}")
        elif self.members.get(channel.rank) is channel:
            del self.members[channel.rank]
            self.lose(f"{channel.name} is lost: {why}", channel.rank)

    def lose(self, why: str, rank: int = 0) -> None:
        if self.epoch and not self.why:
            self.why, self.cause = why, rank

    def beat(self) -> None:
        for channel in [each for each in self.unknown if time.monotonic() > each.opened_at + HELLO_WITHIN]:
            self.part(channel, f"it has not said who it is within {HELLO_WITHIN:.0f} s")
        for channel in list(self.members.values()):
            if channel.silent_for() > LOST_AFTER:
                self.part(channel, f"nothing was heard of it for {LOST_AFTER:.0f} s")
        self.tell("beat", epoch=self.epoch)

    def tell(self, what: str, **more: object) -> None:
        for channel in list(self.members.values()):
            try:
                channel.send(what, **more)
            except Broken as broken:
                self.part(channel, str(broken))

    def waits_for(self) -> str:
        away = [address for rank, address in enumerate(self.group.hosts) if rank and rank not in self.members]
        why = "; ".join(self.refused[address] for address in away if address in self.refused)
        return f"{WAITING}{', '.join(away)}" + (f": {why}" if why else "") if away else ""

    def begin(self) -> None:
        """All are there: a new epoch."""
        self.epoch, self.why = secrets.token_hex(4), ""
        self._said.clear()
        self.tell("start", epoch=self.epoch)

    def serves(self) -> None:
        self.tell("serves")

    def end(self) -> None:
        """The epoch is over for all who are still there; they come back when nothing of their engines is left."""
        why, self.epoch = self.why, ""
        self.tell("end", why=why, cause=self.cause)
        for channel in list(self.members.values()):
            self.part(channel, why)
        self.why = ""


class Follower(Member):
    """Calls the head until it answers, and does as it says."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.head = group.hosts[0]
        self.channel: Channel | None = None
        self.head_serves = self.is_down = False
        self.state = NOT_YET

    def call(self) -> None:
        connection = socket.socket()
        try:
            connection.bind((self.group.hosts[self.group.rank], 0))
            connection.setblocking(False)
            connection.connect_ex((self.head, self.group.port))
        except OSError as error:
            connection.close()
            self.say_once(f"cannot call {self.head}: {error.strerror}")
            return
        self.channel = channel = Channel(connection, self.group.key, is_head=False)
        channel.name = self.head
        self.selector.register(connection, selectors.EVENT_READ, self.hear)

    def hear(self) -> None:
        channel = self.channel
        assert channel is not None
        was_keyed = channel.is_keyed
        try:
            messages = channel.read()
            if channel.is_keyed and not was_keyed:
                channel.send("hello", rank=self.group.rank, runs=dict(self.group.runs))
            for message in messages:
                self.take(channel, message)
        except Ended:
            self.close(channel)
            self.channel = None
        except (Broken, ValueError, RecursionError) as broken:
            self.part(str(broken) if isinstance(broken, Broken) else "it does not speak as a head does")

    def take(self, channel: Channel, message: Mapping[str, Any]) -> None:
        what = message.get("is")
        if not channel.is_welcome and what not in ("welcome", "refused"):
            raise Broken("it does not speak as a head does")
        if what == "welcome":
            channel.is_welcome, self.state = True, "it waits for the others"
        elif what == "refused":
            self.state = f"it refuses this host: {message.get('why')}"
            self.say_once(f"{self.head} refuses this host as a member of the group: {message.get('why')}")
            raise Broken(self.state)
        elif what == "start" and not self.epoch:
            self.epoch, self.head_serves = str(message.get("epoch")), False
            self._said.clear()
        elif what == "beat":
            if message.get("epoch") != self.epoch:
                raise Broken("it has begun another epoch")
        elif what == "serves":
            self.head_serves = True
        elif what == "end":
            if not self.is_down or message.get("cause") != self.group.rank:  # else it repeats what it was told
                self.lose(str(message.get("why")))
            raise Ended
        else:
            raise Broken("it does not speak as a head does")

    def part(self, why: str) -> None:
        if self.channel is not None:
            was_welcome = self.channel.is_welcome
            self.close(self.channel)
            self.channel = None
            self.lose(f"{self.head} is lost: {why}")
            if was_welcome and not self.epoch:
                self.state = why

    def lose(self, why: str) -> None:
        if self.epoch and not self.why:
            self.why = why

    def beat(self) -> None:
        channel = self.channel
        if channel is None:
            if not self.epoch:  # first nothing of the old engine is to be left
                self.call()
        elif not channel.is_welcome:
            if time.monotonic() > channel.opened_at + HELLO_WITHIN:
                self.part("it does not answer")
        elif channel.silent_for() > LOST_AFTER:
            self.part(f"nothing was heard of it for {LOST_AFTER:.0f} s")
        else:
            self.tell("beat", epoch=self.epoch)

    def tell(self, what: str, **more: object) -> None:
        if self.channel is not None:
            try:
                self.channel.send(what, **more)
            except Broken as broken:
                self.part(str(broken))

    def waits_for(self) -> str:
        return "" if self.epoch else f"{WAITING}{self.head}: {self.state}"

    def down(self, why: str) -> None:
        self.is_down = True
        self.tell("down", why=why)

    def end(self) -> None:
        """Nothing of the engine is left: the head may be called again."""
        if self.channel is not None:
            self.close(self.channel)
            self.channel = None
        self.epoch = self.why = ""
        self.head_serves = self.is_down = False
        self.state = NOT_YET


def differences(ours: Mapping[str, str], theirs: Mapping[str, Any], name: str) -> str:
    """What a member runs that is not what the head runs; settings are named by their digest alone."""
    found = [
        f"its {what} is {theirs.get(what)!a}, and {value!a} here" for what, value in ours.items()
        if theirs.get(what) != value
    ]  # fmt: skip
    return f"{name}: {'; '.join(found)}" if found else ""
