"""Stands above the engine of one host of several that serve one model together.

As vllm_main.py does above any other; but an engine starts when the whole group is there, and ends when one of it
is lost: one side alone neither notices nor survives that (vllm_group.py says what they tell each other). A loss is no
failed start of this host: its unit stays, and waits. Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_group
    from installer.runtime.vllm_main import PULSE, Main
    from installer.runtime.vllm_processes import end_all, end_as, send
    from installer.runtime.vllm_systemd import descendants, notify, say, stat, write
else:
    import vllm_group
    from vllm_main import PULSE, Main
    from vllm_processes import end_all, end_as, send
    from vllm_systemd import descendants, notify, say, stat, write

GRACE = 3.0  # seconds in which the reason of an engine's end may come from another host
MORE_TIME = 7200  # seconds for a start, from when it need not wait for others any more
SHOWN = "group"  # in the runtime directory: how the group does, as this member sees it
SHOW_EVERY = 2.0  # seconds
FAILED = 1 << 8  # a wait status
TICK = 0.25
STARTING = "the engines of all hosts start together"
BROKEN = "the group is broken"
ENDED = "the engine has ended"


class Member(Main):
    """What head and follower have in common; `member` is its side of the group."""

    member: vllm_group.Member
    pulsed_at = looked_at = shown_at = 0.0
    was_stopped = False
    stage = ""
    lost = ""  # what ended the last epoch
    is_broken = False  # the engine is being ended, and not by its own fault

    def take_control(self) -> None:
        """Nobody prepares an engine beside this one: it would have to be prepared on all hosts."""

    def join(self, member: vllm_group.Member) -> None:
        self.member = member
        self.selector.register(member.selector, selectors.EVENT_READ, lambda: None)

    def patience(self) -> float:
        return TICK

    def look_at_the_time(self) -> None:
        self.member.step()
        if self.engine and not self.is_broken:
            if not self.member.why and self.is_frozen():
                self.see_frozen()
            if self.member.why:
                self.break_up()
        elif not self.engine:
            self.see_who_is_there()
        self.show()
        if self.is_unwatched() and time.monotonic() > self.pulsed_at + PULSE:
            self.pulsed_at = time.monotonic()
            notify("WATCHDOG=1" if self.is_active else f"EXTEND_TIMEOUT_USEC={MORE_TIME * 1_000_000}")

    def is_unwatched(self) -> bool:
        """Else it is the watcher who tells systemd that all is well."""
        return not self.engine

    def see_who_is_there(self) -> None:
        """Start, once all are."""
        raise NotImplementedError

    def see_frozen(self) -> None:
        raise NotImplementedError

    def is_frozen(self) -> bool:
        """Whether a process of the engine was stopped: the other hosts would wait for it without end."""
        if time.monotonic() < self.looked_at + vllm_group.BEAT:
            return False
        self.looked_at = time.monotonic()
        before, self.was_stopped = (
            self.was_stopped,
            any(stat(pid)[:1] == ["T"] for pid in (self.engine, *descendants(self.engine))),
        )
        return before and self.was_stopped

    def break_up(self) -> None:
        self.is_broken, self.lost = True, self.member.why
        say(f"{BROKEN}: {self.lost}; its engines end, and start together when all are there", 4)
        notify(f"STATUS=the group is broken: {self.lost}")
        watcher, self.watcher = self.watcher, 0  # it would take the end of the engine for a failure
        send(watcher, signal.SIGKILL)
        send(self.engine, signal.SIGKILL)

    def hear_others(self, seconds: float) -> None:
        """Why this engine has ended may be on its way from another host."""
        end = time.monotonic() + seconds
        while not self.member.why and time.monotonic() < end:
            select.select([self.member.selector], [], [], TICK)
            self.member.step()

    def show(self) -> None:
        """For `status`, which reads it as it reads who waits, and believes it for as long as it is written."""
        stage = self.member.waits_for() or ENDED if not self.engine else "" if self.is_proved else STARTING
        is_new = stage != self.stage
        if is_new or time.monotonic() > self.shown_at + SHOW_EVERY:
            self.stage, self.shown_at = stage, time.monotonic()
            group = self.member.group
            shown = {"hosts": group.hosts, "rank": group.rank, "stage": stage, "lost": self.lost}
            with contextlib.suppress(OSError):  # a full /run must not end a service
                write(os.path.join(self.runtime, SHOWN), json.dumps(shown))
            if is_new and stage and not self.engine:
                notify(f"STATUS={stage}")


class Head(Member):
    """Has the API, and the word."""

    def begin(self) -> None:
        group = vllm_group.of_task(self.task["group"])
        try:
            self.head = vllm_group.Head(group)
        except OSError as error:
            say(f"cannot listen for the group on {group.hosts[0]} port {group.port}: {error.strerror}", 3)
            end_as(FAILED)
        self.join(self.head)
        super().begin()

    def start_engine(self) -> None:
        """Once all are there; whoever calls until then waits."""
        self.is_broken = False
        self.callers.hold()

    def see_who_is_there(self) -> None:
        if not self.is_told and not self.head.waits_for():
            self.head.begin()
            say(f"all {len(self.head.group.hosts)} hosts of the group are there: epoch {self.head.epoch} begins")
            super().start_engine()

    def see_it_proved(self) -> None:
        self.head.serves()

    def see_frozen(self) -> None:
        self.head.lose(f"{self.head.group.hosts[0]}: its engine was stopped")

    def see_engine_ended(self, status: int) -> None:
        self.engine = 0
        self.show()
        if self.is_proved and not self.is_told:  # else it is a start that failed, and the reason is here
            self.hear_others(GRACE)
        self.is_broken = self.is_broken or bool(self.head.why)
        self.head.lose(f"{self.head.group.hosts[0]}: its engine has ended")
        self.lost = self.head.why
        self.head.end()
        super().see_engine_ended(status)

    def part(self, status: int) -> None:
        if self.is_broken and not self.is_told:
            self.start_engine()
        else:
            super().part(0 if self.is_broken else status)


class Follower(Member):
    """Has no API: nobody calls it, and no watcher can ask it. It is ready when the head says that all serve."""

    def begin(self) -> None:
        self.follower = vllm_group.Follower(vllm_group.of_task(self.task["group"]))
        self.join(self.follower)
        self.callers.listener.close()

    def see_who_is_there(self) -> None:
        if self.follower.epoch and not self.is_told:
            say(f"{self.follower.head} begins epoch {self.follower.epoch}")
            notify(f"STATUS={STARTING}")
            for name, text in self.task["files"].items():
                write(os.path.join(self.runtime, name), text)
            self.is_broken = self.is_proved = False
            self.engine = self.spawn(self.task["command"], self.task["environment"], [])

    def look_at_the_time(self) -> None:
        super().look_at_the_time()
        if self.engine and self.follower.head_serves and not self.is_proved:
            self.is_proved = self.is_active = True
            notify("READY=1", f"STATUS=serving as a part of {self.follower.head}")
            say(f"serving: {self.follower.head} has answered a request")

    def is_unwatched(self) -> bool:
        return True

    def see_frozen(self) -> None:
        self.follower.down("its engine was stopped")
        self.follower.lose("the engine of this host was stopped")

    def see_told_to_end(self) -> None:
        """Its engine waits for the others, and would not end by itself."""
        self.follower.down("it was stopped")
        send(self.engine, signal.SIGKILL)
        if not self.engine:
            self.part(0)

    def see_engine_ended(self, status: int) -> None:
        self.engine = 0
        self.show()
        if not self.is_told and not self.is_broken:
            self.follower.down(f"its engine has ended with status {os.waitstatus_to_exitcode(status)}")
            self.hear_others(GRACE)
            self.lost = self.follower.why
        own_fault = not self.is_broken and not self.follower.why
        end_all()
        self.follower.end()
        if self.is_told:
            self.part(0)
        if own_fault:
            say("the engine of this host has ended by itself", 3)
            self.part(status or FAILED)  # vLLM exits 0 here, whatever has happened

    def part(self, status: int) -> NoReturn:
        end_as(status)
