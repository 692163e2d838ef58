"""Machines with a network of their own: a switch, a cable to each of them that can be cut, and places for strangers.

    with Network() as network, network.machine(1) as one, network.machine(2) as two:
        two.shell(f"ping -c 1 {network.address(1)}")

A place is a network namespace by itself: what a machine is booted in, and where a stranger runs without one.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests.kit.boot.machine import PREFIX, Machine, has_owner

PLACES = Path("/run/netns")
CARD = "peers0"  # the network card of each place
NOBODY = "02:00:00:00:00:ff"  # the address of a card that none has

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_count = itertools.count(1)


class Network:
    """Use as a context manager; leave it after the machines. `places` are numbered from 1."""

    def __init__(self, places: int = 3) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-net{next(_count)}"
        self.places = range(1, places + 1)

    def __enter__(self) -> Network:
        _sweep()
        try:
            _ip("netns", "add", self.name)
            self._switch("link", "add", "switch", "type", "bridge")
            self._switch("link", "set", "switch", "up")
            for number in self.places:
                self._wire(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.places:
            subprocess.run(["ip", "netns", "delete", self.place(number)], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def _wire(self, number: int) -> None:
        place = self.place(number)
        _ip("netns", "add", place)
        cable = ("link", "add", CARD, "netns", place, "type", "veth", "peer", "name", _port(number))
        _ip(*cable, "netns", self.name)
        _ip("-n", place, "address", "add", f"{self.address(number)}/24", "dev", CARD)
        for card in ("lo", CARD):
            _ip("-n", place, "link", "set", card, "up")
        self._switch("link", "set", _port(number), "master", "switch", "up")

    def place(self, number: int) -> str:
        return f"{self.name}-{number}"

    def address(self, number: int) -> str:
        return f"10.77.0.{number}"

    def machine(self, number: int, **options: Any) -> Machine:
        """A machine in that place, to be entered."""
        path = f"--network-namespace-path={PLACES / self.place(number)}"
        return Machine(network=True, nspawn=[path], **options)

    def stranger(self, number: int, *argv: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command of this host in that place."""
        command = ["ip", "netns", "exec", self.place(number), *map(str, argv)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)

    @contextmanager
    def inside(self, number: int) -> Iterator[None]:
        """This thread is in that place, and what it starts stays there."""
        with open("/proc/thread-self/ns/net") as before, open(PLACES / self.place(number)) as place:
            _enter(place)
            try:
                yield
            finally:
                _enter(before)

    # Cables: what is sent into a cut one is lost, and nobody is told

    def cut(self, number: int) -> None:
        self._switch("link", "set", _port(number), "nomaster")

    def mend(self, number: int) -> None:
        self._switch("link", "set", _port(number), "master", "switch")

    def deafen(self, number: int, to: int) -> None:
        """What `to` sends does not reach `number` any more; the other way all is well."""
        entry = (self.address(number), "lladdr", NOBODY, "nud", "permanent", "dev", CARD)
        _ip("-n", self.place(to), "neighbour", "replace", *entry)

    def undeafen(self, number: int, to: int) -> None:
        _ip("-n", self.place(to), "neighbour", "delete", self.address(number), "dev", CARD)

    def _switch(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _port(number: int) -> str:
    return f"port{number}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _enter(place: IO[str]) -> None:
    if _libc.setns(place.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {place.name}")


def _sweep() -> None:
    """Remove the networks of test runs that were killed."""
    for place in PLACES.glob(f"{PREFIX}-*"):
        if not has_owner(place.name):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", place.name)
