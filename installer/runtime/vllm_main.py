"""The unit's main process: its socket is in systemd's hands, and it gives way to the next engine. Stdlib only."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_handover
    from installer.runtime.vllm_callers import TICK
    from installer.runtime.vllm_processes import end_strangers, send
    from installer.runtime.vllm_supervision import Supervisor
    from installer.runtime.vllm_systemd import notify, own_unit, say, seconds, write
else:
    import vllm_handover
    from vllm_callers import TICK
    from vllm_processes import end_strangers, send
    from vllm_supervision import Supervisor
    from vllm_systemd import notify, own_unit, say, seconds, write

PULSE = 5.0  # seconds from one word to the watchdog to the next
SLACK = 10.0  # seconds beyond what was agreed on


class Main(Supervisor):
    """The unit's main process. Who comes in its place is `successor`, from its first word until one of us is gone."""

    successor: socket.socket | None = None
    launcher = 0  # the process that brought it, and waits for how it ends
    gives_way_until: float | None = None  # from when it asked for the switch
    old_keys = new_keys = ""
    pulsed_at = 0.0

    def begin(self) -> None:
        if self.task["hold"]:
            self.callers.keep()
            self.take_control()
        self.start_engine()

    def take_control(self) -> None:
        self.control = vllm_handover.listen(self.runtime)
        self.selector.register(self.control, selectors.EVENT_READ, self.meet)

    def meet(self) -> None:
        connection, _ = self.control.accept()
        launcher, user = vllm_handover.peer(connection)
        if self.successor or self.is_told or self.gives_way_until is not None or user != os.getuid():
            connection.close()
            return
        self.successor, self.launcher = connection, launcher
        self.selector.register(connection, selectors.EVENT_READ, self.hear_successor)

    def hear_successor(self) -> None:
        assert self.successor is not None
        message, _ = vllm_handover.receive(self.successor)
        what = message.get("is")
        if what == "run" and message.get("run") == self.task["run"]:
            vllm_handover.send(self.successor, "same")
            self.part_from_successor()
        elif what == "run":
            self.old_keys = self.keys()
            handed = [self.callers.listener.fileno(), self.task["key"], self.callers.record.descriptor]
            handed += [self.callers.door.fileno()] if self.callers.door else []
            watchdog = os.environ.get("WATCHDOG_USEC", "")
            vllm_handover.send(self.successor, "other", handed, watchdog=watchdog)
        elif what == "switch" and "keys" in message and self.gives_way_until is None:
            self.give_way(str(message["keys"]))
        elif what == "done" and not self.engine:
            os._exit(0)
        elif what == "failed":
            self.go_on(str(message.get("why")))
        else:
            end_strangers(self.launcher)
            self.go_on("who was to take its place is gone")

    def part_from_successor(self) -> None:
        if self.successor is not None:
            self.selector.unregister(self.successor)
            self.successor.close()
            self.successor = None

    def see_told_to_end(self) -> None:
        if self.successor is not None:
            self.part_from_successor()
            end_strangers(self.launcher)
        if not self.engine:
            self.part(0)
        elif not self.is_proved and not own_unit():
            # vLLM ignores SIGTERM until it serves. In a container no watcher can ask systemd whether that is a stop.
            send(self.engine, signal.SIGHUP)

    def give_way(self, keys: str) -> None:
        """Everybody gets the answer that is owed; who comes now waits for the next engine, as long as he may."""
        self.new_keys = keys
        self.gives_way_until = time.monotonic() + seconds("DRAIN") + SLACK
        watcher, self.watcher = self.watcher, 0  # it would take the silence of who has gone to drain for a hang
        send(watcher, signal.SIGKILL)
        send(self.engine, signal.SIGTERM if self.callers.since is None else signal.SIGKILL)
        self.callers.hold()

    def patience(self) -> float | None:
        return TICK if self.gives_way_until is not None else super().patience()

    def look_at_the_time(self) -> None:
        if self.gives_way_until is None or not self.engine:
            return
        if time.monotonic() > self.gives_way_until:
            send(self.engine, signal.SIGKILL)
        if time.monotonic() > self.pulsed_at + PULSE:
            self.pulsed_at = time.monotonic()
            notify("WATCHDOG=1")

    def part(self, status: int) -> None:
        if self.is_told or self.gives_way_until is None:
            super().part(status)
        elif self.successor is None:
            self.come_back()
        else:
            self.change_keys(self.old_keys, self.new_keys)
            vllm_handover.send(self.successor, "gone")
            self.callers.since = None

    def keys(self) -> str:
        with open(os.open(os.path.join(self.runtime, "keys"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            return file.read()

    def change_keys(self, before: str, after: str) -> None:
        """Unless somebody has changed them since: a key that was revoked while all this took its time stays away."""
        if self.keys() == before:
            write(os.path.join(self.runtime, "keys"), after)

    def go_on(self, why: str) -> None:
        say(f"the change is not taken over: {why}", 3)
        self.part_from_successor()
        if not self.engine:
            self.come_back()

    def come_back(self) -> None:
        """With the engine and the keys of before."""
        say("starting again what ran before", 4)
        self.change_keys(self.new_keys, self.old_keys)
        self.gives_way_until = None
        self.start_engine()
