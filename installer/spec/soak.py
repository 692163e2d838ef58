"""A change that was proved and is watched on: what is remembered of it from one look to the next."""

from __future__ import annotations

from dataclasses import dataclass

# How it ends; until then it is "".
CONFIRMED, ENDED = "confirmed", "confirmed early"
ROLLED_BACK, BY_HAND, STUCK = "rolled back", "rolled back by hand", "not rolled back"


@dataclass(frozen=True)
class Requests:
    """How many a service has answered, and how many of them with a fault of its own."""

    answered: int = 0
    failed: int = 0

    @property
    def share(self) -> float:
        return self.failed / self.answered if self.answered else 0.0


@dataclass(frozen=True)
class Look:
    """Of a replica, at the last look."""

    run: str = ""  # the unit's
    pid: int = 0
    counted: Requests = Requests()  # what this process says that it has answered


@dataclass(frozen=True)
class Soak:
    what: str  # the command whose change it is
    seconds: int  # how long it is watched, counted while the service runs
    since: str
    boot: str = ""  # of the last look
    at: float = 0.0  # when that was: seconds of CLOCK_BOOTTIME, which nobody sets
    watched: float = 0.0
    run: str = ""  # the unit's at the last look
    pid: int = 0
    before: Requests = Requests()  # what the process before the change had answered
    counted: Requests = Requests()  # what this one says that it has answered, at the last look
    replicas: tuple[Look, ...] = ()  # the same of those behind a gateway, which has answered nothing itself
    after: Requests = Requests()  # all together since the change
    kernel: str = ""
    driver: str = ""
    notes: tuple[str, ...] = ()  # what changed of the host meanwhile
    bad: str = ""  # why it goes back
    tries: int = 0  # to go back
    outcome: str = ""

    @property
    def is_running(self) -> bool:
        return not self.outcome
