"""What every supervisor does: it starts an engine and its watcher, hears both of them, and ends as the engine ends.

One loop over `selector`: whoever has more to hear registers it there, with what is to be called then. Supervisors
differ in `begin`, `patience`, `look_at_the_time`, `release_engine`, `part`, and in what they do when they `see_…`.
Stdlib only.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_hold
    from installer.runtime.vllm_callers import TICK, Callers
    from installer.runtime.vllm_door import DESCRIPTOR
    from installer.runtime.vllm_listen import LISTENER
    from installer.runtime.vllm_processes import end_all, end_as, reap, send
    from installer.runtime.vllm_systemd import say, write
else:
    import vllm_hold
    from vllm_callers import TICK, Callers
    from vllm_door import DESCRIPTOR
    from vllm_listen import LISTENER
    from vllm_processes import end_all, end_as, reap, send
    from vllm_systemd import say, write

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGCONT)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAST_WORDS_WITHIN = 5.0  # seconds that the watcher gets to say why a start has failed
WATCHERS = 3  # of one engine that may die; more of them die of themselves, not of somebody's kill


class Supervisor:
    """Of an engine and its watcher."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.task = task
        self.runtime = os.environ["RUNTIME_DIRECTORY"].partition(":")[0]
        listener, record = socket.socket(fileno=task["listener"]), vllm_hold.Record(task["record"])
        door = None if task["door"] is None else socket.socket(fileno=task["door"])
        self.callers = Callers(listener, door, record, self.runtime, task["hold"])
        self.selector = selectors.DefaultSelector()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}  # kept, or subprocess itself would reap them
        self.engine = self.watcher = 0
        self.reports = set[int]()  # what watchers write to
        self.lost_watchers = 0
        self.is_active = False  # whether the unit counts as started: systemd waits for word of life from then on
        self.is_proved = False
        self.is_told = False  # to end
        self.why = ""  # the engine did not start

    def run(self) -> NoReturn:
        self.listen_to_signals()
        self.begin()
        while True:
            for key, _ in self.selector.select(self.patience()):
                if self.selector.get_map().get(key.fd) is key:  # and not closed by one before it
                    key.data()
            self.look_at_the_time()
            self.callers.look()

    def begin(self) -> None:
        raise NotImplementedError

    def patience(self) -> float | None:
        return TICK if self.callers.need_a_look else None

    def look_at_the_time(self) -> None:
        """Whatever is due."""

    # Signals

    def listen_to_signals(self) -> None:
        self.woken, wake = os.pipe()
        for descriptor in (self.woken, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # What was ignored before us would stay so for the engine, and by these its start is ended.
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self.selector.register(self.woken, selectors.EVENT_READ, self.hear_signals)

    def hear_signals(self) -> None:
        for number in os.read(self.woken, 4096):
            if number != signal.SIGCHLD:
                send(self.engine, number)
            if number in ENDING:
                self.is_told = True
                self.see_told_to_end()
        ended = reap()
        if self.engine in ended:
            self.see_engine_ended(ended[self.engine])
        elif self.watcher in ended:
            self.see_watcher_ended(ended[self.watcher])

    def see_told_to_end(self) -> None:
        """The engine was told so, too, and its end will be ours."""

    # The engine and its watcher

    def start_engine(self) -> None:
        for name, text in self.task["files"].items():
            write(os.path.join(self.runtime, name), text)
        self.callers.hold()
        self.engine = self.release_engine()
        self.lost_watchers, self.is_proved, self.why = 0, False, ""
        self.start_watcher()
        if not self.task["hold"]:
            for listener in self.callers.listeners:
                listener.close()  # or a service that stops would go on listening

    def release_engine(self) -> int:
        return self.spawn_engine({})

    def spawn_engine(self, pipes: Mapping[str, int]) -> int:
        descriptors = {LISTENER: self.callers.listener.fileno(), **pipes}
        if self.callers.door:
            descriptors[DESCRIPTOR] = self.callers.door.fileno()
        environment = {**self.task["environment"], **{name: str(number) for name, number in descriptors.items()}}
        # podman's order is another at each start, and who changes the first variable loses the place for vLLM's names.
        environment = dict(sorted(environment.items()))
        return self.spawn(self.task["command"], environment, list(descriptors.values()))

    def start_watcher(self) -> None:
        read, report = os.pipe()
        descriptors = {"listener": self.callers.listener.fileno(), "key": self.task["key"], "report": report}
        known = {
            "pid": self.engine, "host": self.task["host"], "mark": self.callers.mark, "holds": self.task["hold"] > 0,
            "is_active": self.is_active, "family": self.task["family"],
        }  # fmt: skip
        # Not -I, which would keep it from the files beside it.
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vllm_watcher.py")
        command = [sys.executable, "-EsS", program, json.dumps({**known, **descriptors})]
        self.watcher = self.spawn(command, os.environ, list(descriptors.values()))
        os.close(report)
        self.reports.add(read)
        self.selector.register(read, selectors.EVENT_READ, lambda: self.hear_watcher(read))

    def spawn(self, command: list[str], environment: Mapping[str, str], descriptors: Sequence[int]) -> int:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, pass_fds=descriptors, start_new_session=True
        )
        self.processes[process.pid] = process
        return process.pid

    def hear_watcher(self, report: int) -> None:
        words = os.read(report, 65536).decode(errors="replace")
        if not words:
            self.selector.unregister(report)
            self.reports.remove(report)
            os.close(report)
        for line in words.splitlines():
            word, _, text = line.partition(" ")
            if word == "failed":
                self.why = text
            elif word == "ready" and not self.is_proved:
                self.is_proved = self.is_active = True
                self.see_it_proved()

    def see_it_proved(self) -> None:
        """The engine has answered."""

    def see_watcher_ended(self, status: int) -> None:
        """It leaves by itself once it has ended the engine, or seen it end; otherwise it was killed."""
        self.watcher = 0
        if status == 0:
            return
        self.lost_watchers += 1
        if self.task["hold"] and self.lost_watchers <= WATCHERS:
            say("the watcher was killed: another one takes its place", 4)
            self.start_watcher()
        else:
            say("the watcher was killed: ending the engine, to be started anew", 3)
            send(self.engine, signal.SIGKILL)

    def see_engine_ended(self, status: int) -> None:
        self.engine = 0
        self.let_watcher_finish()
        end_all()
        self.part(status)

    def let_watcher_finish(self) -> None:
        """Of a start that failed it has the reason, and reads it only when the start is over."""
        end = time.monotonic() + LAST_WORDS_WITHIN
        while self.watcher and not self.is_proved and time.monotonic() < end:
            if self.watcher in reap():
                self.watcher = 0
            time.sleep(0.01)
        while readable := select.select(list(self.reports), [], [], 0)[0]:
            self.hear_watcher(readable[0])

    def part(self, status: int) -> None:
        if self.task["hold"]:
            self.callers.part(status, is_told=self.is_told)
        end_as(status)
