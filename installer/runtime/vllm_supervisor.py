"""Stands above vLLM: has the socket that callers wait on, all processes of the engine, and ends as the engine ends.

    vllm_supervisor.py TASK    a descriptor with what the launcher laid out, as JSON

It is the unit's main process, so what systemd does to it is done to the engine. For a change another one is started
beside it, with the next engine, which takes its place once that engine has answered (vllm_handover.py). Stdlib only.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    from installer.runtime import vllm_handover, vllm_hold
    from installer.runtime.vllm_listen import GO, LISTENER, READY
    from installer.runtime.vllm_processes import end_all, end_as, end_strangers, reap, send
    from installer.runtime.vllm_systemd import notify, own_unit, say, seconds, systemctl, write
else:
    import vllm_handover
    import vllm_hold
    from vllm_listen import GO, LISTENER, READY
    from vllm_processes import end_all, end_as, end_strangers, reap, send
    from vllm_systemd import notify, own_unit, say, seconds, systemctl, write

SET_CHILD_SUBREAPER = 36
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGCONT)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TICK = 0.1
PULSE = 5.0  # seconds from one word to the watchdog to the next
LAST_WORDS_WITHIN = 5.0  # seconds that the watcher gets to say why a start has failed
HEARD = 1.0  # the same, from the next supervisor to the launcher that waits for it
SLACK = 10.0  # seconds beyond what was agreed on
WATCHERS = 3  # of one engine that may die; more of them die of themselves, not of somebody's kill


class Supervisor:
    """Of an engine and its watcher; `since` is when callers began to be held, None while the engine serves."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.task = task
        self.runtime = os.environ["RUNTIME_DIRECTORY"].partition(":")[0]
        self.listener = socket.socket(fileno=task["listener"])
        self.record = vllm_hold.Record(task["record"])
        self.selector = selectors.DefaultSelector()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}  # kept, or subprocess itself would reap them
        self.engine = self.watcher = 0
        self.reports = set[int]()  # what watchers write to
        self.lost_watchers = 0
        self.is_active = False  # whether the unit counts as started: systemd waits for word of life from then on
        self.is_proved = False
        self.is_told = False  # to end
        self.why = ""  # the engine did not start
        self.mark = 0  # the backlog that we listen with; the engine's is another one
        self.since: float | None = None
        self.first: float | None = None  # of those who wait now
        self.noted_at = 0.0
        self.refusal: vllm_hold.Refusal | None = None

    def run(self) -> NoReturn:
        self.listen_to_signals()
        self.begin()
        while True:
            for key, _ in self.selector.select(self.patience()):
                if self.selector.get_map().get(key.fd) is key:  # and not closed by one before it
                    key.data()
            self.look_at_the_time()
            self.look_at_the_queue()

    def begin(self) -> None:
        raise NotImplementedError

    def patience(self) -> float | None:
        return TICK if self.since is not None or self.refusal is not None else None

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
        self.hold()
        self.engine = self.release_engine()
        self.lost_watchers, self.is_proved, self.why = 0, False, ""
        self.start_watcher()
        if not self.task["hold"]:
            self.listener.close()  # or a service that stops would go on listening

    def release_engine(self) -> int:
        return self.spawn_engine({})

    def spawn_engine(self, pipes: Mapping[str, int]) -> int:
        descriptors = {LISTENER: self.listener.fileno(), **pipes}
        environment = {**self.task["environment"], **{name: str(number) for name, number in descriptors.items()}}
        return self.spawn(self.task["command"], environment, list(descriptors.values()))

    def start_watcher(self) -> None:
        read, report = os.pipe()
        descriptors = {"listener": self.listener.fileno(), "key": self.task["key"], "report": report}
        known = {
            "pid": self.engine, "host": self.task["host"], "mark": self.mark, "holds": self.task["hold"] > 0,
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
            since, starts = self.record.read()
            self.record.write(since or vllm_hold.now(), starts)
            self.part_from_callers(status, starts)
        end_as(status)

    # The callers

    def hold(self) -> None:
        self.listener.listen(vllm_hold.backlog())
        self.mark = (vllm_hold.queue(self.listener) or (0, 0))[1]
        if self.task["hold"]:
            since, starts = self.record.read()
            self.since = since or vllm_hold.now()
            self.record.write(self.since, starts)

    def look_at_the_queue(self) -> None:
        if self.since is not None:
            found = vllm_hold.queue(self.listener) or (0, self.mark)
            if found[1] != self.mark:
                self.let_go()
            else:
                self.note(found[0])
                if self.refusal is None and vllm_hold.now() - self.since > self.task["hold"]:
                    say(f"it has been starting for {self.task['hold']} s: callers are told to come back from now on", 4)
                    self.refusal = vllm_hold.Refusal(self.listener)
        if self.refusal is not None:
            self.refusal.step(TICK, accepts=self.since is not None)
            if self.since is None and not self.refusal:
                self.refusal = None

    def let_go(self) -> None:
        """The engine itself listens."""
        self.since = self.first = None
        self.record.write(None, self.record.read()[1])
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.runtime, vllm_hold.HOLDING))

    def note(self, waiting: int) -> None:
        at = vllm_hold.now()
        self.first = (self.first or at) if waiting else None
        if at - self.noted_at >= 1:
            self.noted_at = at
            noted = {"since": self.first or self.since, "waiting": waiting, "hold": self.task["hold"]}
            with contextlib.suppress(OSError):  # a full /run must not end a service
                write(os.path.join(self.runtime, vllm_hold.HOLDING), json.dumps(noted))

    def part_from_callers(self, status: int, starts: list[float]) -> None:
        """They wait for the next start, if there is one to come."""
        if self.is_told:
            if not is_stopped():
                return
            vllm_hold.close(self.listener)
        elif vllm_hold.is_last(os.waitstatus_to_exitcode(status), starts):
            vllm_hold.refuse_all(self.listener)
        else:
            return
        vllm_hold.forget(vllm_hold.SOCKET)
        vllm_hold.forget(vllm_hold.RECORD)


class Main(Supervisor):
    """The unit's main process. Who comes in its place is `successor`, from its first word until one of us is gone."""

    successor: socket.socket | None = None
    launcher = 0  # the process that brought it, and waits for how it ends
    gives_way_until: float | None = None  # from when it asked for the switch
    old_keys = new_keys = ""
    pulsed_at = 0.0

    def begin(self) -> None:
        if self.task["hold"]:
            vllm_hold.keep(vllm_hold.SOCKET, self.listener.fileno())
            vllm_hold.keep(vllm_hold.RECORD, self.record.descriptor)
            since, starts = self.record.read()
            self.record.write(since, [*starts, vllm_hold.now()])
            self.take_control()
        self.start_engine()

    def take_control(self) -> None:
        self.control = vllm_handover.listen(self.runtime)
        self.selector.register(self.control, selectors.EVENT_READ, self.meet)

    def meet(self) -> None:
        connection, _ = self.control.accept()
        launcher, user = vllm_handover.peer(connection)
        if self.successor or self.is_told or user != os.getuid():
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
            handed = [self.listener.fileno(), self.task["key"], self.record.descriptor]
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

    def give_way(self, keys: str) -> None:
        """Everybody gets the answer that is owed; who comes now waits for the next engine."""
        self.new_keys = keys
        self.gives_way_until = time.monotonic() + seconds("DRAIN") + SLACK
        watcher, self.watcher = self.watcher, 0  # it would take the silence of who has gone to drain for a hang
        send(watcher, signal.SIGKILL)
        send(self.engine, signal.SIGTERM if self.since is None else signal.SIGKILL)
        self.record.write(self.record.read()[0] or vllm_hold.now(), self.record.read()[1])

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
            self.since = None

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


class Successor(Main):
    """Prepares the next engine beside the one that runs, takes its place, and is the main process once it answers."""

    is_main = False
    go = 0
    prepared_until: float | None = None
    heard_at = 0.0  # by the launcher

    def begin(self) -> None:
        self.is_active = True
        self.predecessor = socket.socket(fileno=self.task["predecessor"])
        self.selector.register(self.predecessor, selectors.EVENT_READ, self.hear_predecessor)
        if not self.task["stands_by"]:
            self.ask_for_the_switch()
            return
        for name, text in self.task["files"].items():
            if name != "stages":  # which the engine that still runs writes
                write(os.path.join(self.runtime, name), text)
        self.ready, ready = os.pipe()
        go, self.go = os.pipe()
        self.engine = self.spawn_engine({READY: ready, GO: go})
        os.close(ready)
        os.close(go)
        self.prepared_until = time.monotonic() + seconds("START_PATIENCE_SEC")
        self.selector.register(self.ready, selectors.EVENT_READ, self.hear_standby)

    def patience(self) -> float | None:
        return TICK if not self.is_main else super().patience()

    def look_at_the_time(self) -> None:
        if self.is_main:
            super().look_at_the_time()
            return
        self.be_heard()
        if self.prepared_until is not None and time.monotonic() > self.prepared_until:
            self.fail("the next engine could not be prepared in time")

    def be_heard(self) -> None:
        """By the launcher, which would wait for ever for one that was stopped."""
        if time.monotonic() > self.heard_at + HEARD:
            self.heard_at = time.monotonic()
            with contextlib.suppress(OSError):
                os.write(self.task["verdict"], f"{vllm_handover.PULSE}\n".encode())

    def hear_standby(self) -> None:
        is_ready = os.read(self.ready, 1)
        self.selector.unregister(self.ready)
        os.close(self.ready)
        if is_ready:
            self.ask_for_the_switch()

    def ask_for_the_switch(self) -> None:
        self.prepared_until = None
        if self.nobody_waits():
            self.fail("nobody waits for it any more")
        say("the next engine takes over: who calls now is answered by it")
        vllm_handover.send(self.predecessor, "switch", keys=self.task["keys"])

    def nobody_waits(self) -> bool:
        waiting = select.poll()
        waiting.register(self.task["verdict"], 0)
        return bool(waiting.poll(0))

    def hear_predecessor(self) -> None:
        message, _ = vllm_handover.receive(self.predecessor)
        if message.get("is") != "gone":
            self.fail("the service ends")
        if self.task["is_late"]:
            self.move()
        self.start_engine()

    def move(self) -> None:
        vllm_hold.close(self.listener)
        host, port = self.task["host"], self.task["port"]
        try:
            self.listener = vllm_hold.listen(host, port)
        except OSError as error:
            self.fail(f"cannot listen on {host} port {port}: {error.strerror}")

    def release_engine(self) -> int:
        if self.is_main or not self.engine:
            return super().release_engine()
        os.write(self.go, b"g")
        os.close(self.go)
        return self.engine

    def see_it_proved(self) -> None:
        if self.is_main:
            return
        notify(f"MAINPID={os.getpid()}")
        self.is_main = True
        if self.task["is_moved"]:
            vllm_hold.forget(vllm_hold.SOCKET)
            vllm_hold.keep(vllm_hold.SOCKET, self.listener.fileno())
        self.take_control()
        self.selector.unregister(self.predecessor)
        vllm_handover.send(self.predecessor, "done")
        self.hear_its_end()
        self.predecessor.close()
        self.tell("")

    def hear_its_end(self) -> None:
        self.predecessor.settimeout(SLACK)
        vllm_handover.receive(self.predecessor)

    def see_told_to_end(self) -> None:
        if self.is_main:
            super().see_told_to_end()
        else:
            self.fail("it was told to end")

    def see_watcher_ended(self, status: int) -> None:
        if status and not self.is_main:
            self.fail("the watcher of the next engine was killed")
        super().see_watcher_ended(status)

    def part(self, status: int) -> None:
        if not self.is_main:
            self.fail(self.why or f"the next engine ended with status {os.waitstatus_to_exitcode(status)}")
        super().part(status)

    def fail(self, why: str) -> NoReturn:
        """Nothing of the next engine is left when the other one hears of it, and starts anew where it was gone."""
        end_all()
        self.listener.close()
        vllm_handover.send(self.predecessor, "failed", why=why)
        self.hear_its_end()
        self.tell(why)
        os._exit(1)

    def tell(self, why: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self.task["verdict"], f"{why or 'done'}\n".encode())
            os.close(self.task["verdict"])


def is_stopped() -> bool:
    """Whether the unit is stopped, and not to be started again at once."""
    jobs = [line.split() for line in systemctl("list-jobs", "--plain", "--no-legend", own_unit()).splitlines()]
    return any(job[2:3] == ["stop"] for job in jobs)


def main(words: list[str]) -> NoReturn:
    # What loses its parent becomes our child, so that nothing of the engine is out of reach.
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    task = json.loads(os.pread(int(words[0]), 1 << 24, 0))
    (Successor if "predecessor" in task else Main)(task).run()


if __name__ == "__main__":
    main(sys.argv[1:])
