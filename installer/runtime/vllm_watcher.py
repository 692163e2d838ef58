"""Stands beside vLLM and tells systemd the truth about it: `vllm_watcher.py TASK`, what its supervisor knows, as JSON.

STATUS= with the stage of the start, READY=1 once a request was answered and one without a key refused, WATCHDOG=1 as
long as the engine makes progress. `/health` is no witness of progress: it is 200 with a hung engine. Stdlib only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_hold
    from installer.runtime.vllm_seen import Vllm
    from installer.runtime.vllm_systemd import command_of, notify, own_unit, say, seconds, stat, systemctl
    from installer.runtime.vllm_words import FAMILIES, SERVING
else:
    import vllm_hold
    from vllm_seen import Vllm
    from vllm_systemd import command_of, notify, own_unit, say, seconds, stat, systemctl
    from vllm_words import FAMILIES, SERVING

NOISE = 4096  # bytes read and written by all processes that are no sign of progress: a process waiting writes a little


def is_gone(pid: int) -> bool:
    return not stat(pid)


class Watcher:
    def __init__(self, vllm: Vllm, report: int, *, holds: bool, is_active: bool) -> None:
        self.vllm = vllm
        self.report = report
        self.holds = holds
        self.is_active = is_active  # the unit, already: systemd waits for word of life
        self.patience = seconds("START_PATIENCE_SEC")
        self.watchdog = int(os.environ.get("WATCHDOG_USEC") or 120_000_000) / 1e6
        self.stage = "starting"
        self.waiting = ""
        self.is_ready = threading.Event()
        self.unit = own_unit()

    def watch(self) -> NoReturn:
        notify("STATUS=starting")
        wait = self.vllm.await_listening if self.holds else self.vllm.turn_away
        for beside in (wait, self.stop_at_once, *([self.pulse] if self.is_active else [])):
            threading.Thread(target=beside, daemon=True).start()
        self.see_it_start()
        self.is_ready.set()
        self.stage = "serving"
        self.tell_supervisor("ready")
        notify("READY=1", f"STATUS=serving {self.vllm.model}")
        say(f"serving {self.vllm.model}: a request was answered")
        self.see_it_serve()

    def pulse(self) -> None:
        """A start has its own patience; the watchdog's is for an engine that serves."""
        notify("WATCHDOG=1")
        while not self.is_ready.wait(self.watchdog / 4):
            notify("WATCHDOG=1")

    def tell_supervisor(self, words: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self.report, f"{words}\n".encode())

    def is_stopping(self) -> bool:
        """Whether systemd is ending the unit, however far it has come."""
        return systemctl("show", "--property=SubState", "--value", self.unit).startswith(("stop", "final"))

    def stop_at_once(self) -> None:
        """vLLM ignores SIGTERM until it serves; SIGHUP ends it, and systemd counts that as a clean end."""
        while not self.is_ready.wait(1):
            if self.is_stopping():
                say(f"stop asked for while {self.stage}: ending it at once")
                self.vllm.signal(signal.SIGHUP)
                return

    def see_it_start(self) -> None:
        """Return once it serves; a start is never cut while it gets on, however long it takes."""
        seen, at, traffic = 0, time.monotonic(), 0
        while (guarded := self.vllm.is_guarded()) is None:
            running, moved = self.vllm.is_running(), self.vllm.traffic()
            lines = self.vllm.log_lines()
            self.tell_stage(lines[seen:])
            if not running:
                sys.exit(0)
            # Traffic falls when a process ends, which is a step ahead as well.
            self.tell_waiting()
            if len(lines) > seen or abs(moved - traffic) > NOISE:
                seen, at, traffic = len(lines), time.monotonic(), moved
            elif time.monotonic() - at > self.patience:
                self.end_hung(f"the start made no progress for {self.patience:.0f} s")
            time.sleep(0.25)
        if not guarded:
            self.end(f"port {self.vllm.port} answers without a key: the guard is not in place")
        self.tell_stage([f"INFO {SERVING[0]}"])
        self.see_first_answer()

    def see_first_answer(self) -> None:
        end = time.monotonic() + self.patience
        while not self.vllm.answers(self.patience):
            self.leave_with_vllm()
            if self.vllm.refusal:
                self.end(f"the model refuses the smallest request: {self.vllm.refusal!a}")
            if self.vllm.is_dead():
                self.end("the engine died of its first request")
            if time.monotonic() > end:
                self.end_hung(f"the first request was not answered within {self.patience:.0f} s")
            time.sleep(0.5)

    def tell_stage(self, lines: list[str]) -> None:
        for line in lines:
            level, _, text = line.partition(" ")
            stages = [stage for words, stage in self.vllm.words.stages if words in text]
            if level in ("ERROR", "CRITICAL"):
                notify(f"STATUS=failed while {self.stage}: {text}")
                self.tell_supervisor(f"failed it failed while {self.stage}: {text}")
            elif stages and stages[0] != self.stage:
                self.stage, self.waiting = stages[0], ""
                self.tell_waiting(is_new=True)

    def tell_waiting(self, *, is_new: bool = False) -> None:
        waiting = held_callers()
        if is_new or waiting != self.waiting:
            self.waiting, stage = waiting, self.stage + waiting
            notify(f"STATUS={stage}")

    def see_it_serve(self) -> NoReturn:
        counters, engine, at = self.vllm.metrics(self.vllm.words.progress), self.vllm.children(), time.monotonic()
        while True:
            worked = self.vllm.worked()
            self.wait_for_tick(engine)
            before, counters = counters, self.vllm.metrics(self.vllm.words.progress)
            # It cannot take a connection, ours neither; that is no hang, and no reason to take it from those it serves.
            is_short = not counters and self.vllm.lacks_descriptors() and self.vllm.worked() > worked
            self.tell_shortage(is_short)
            alive = is_short or (bool(counters) and counters != before)
            if not alive:
                # Idle, or hung, or in a step longer than a tick: only the last of these moves on during the question.
                answered = self.vllm.answers(self.watchdog / 2)
                counters = self.vllm.metrics(self.vllm.words.progress)
                alive = answered or (bool(counters) and counters != before)
            if alive:
                at = time.monotonic()
                notify("WATCHDOG=1")
            elif self.vllm.is_dead():
                self.end(f"the engine died: ending {self.vllm.words.title}, to be started anew")
            elif time.monotonic() - at > 0.7 * self.watchdog:
                if self.vllm.refuses_us:
                    self.end("the watcher's own key is refused: the file with the keys is damaged")
                self.end_hung("the engine makes no progress and answers no request")
            engine |= self.vllm.children()

    def tell_shortage(self, is_short: bool) -> None:
        if is_short == (self.stage != "serving"):
            return
        self.stage = "short of descriptors" if is_short else "serving"
        say(f"it is {self.stage}", 4)
        if is_short:
            notify("STATUS=too many connections: no descriptor is left for another one")
        else:
            notify(f"STATUS=serving {self.vllm.model}")

    def wait_for_tick(self, engine: set[int]) -> None:
        """A quarter of the watchdog's time, in which the death of an engine process is noticed within a second."""
        tick = time.monotonic() + self.watchdog / 4
        while time.monotonic() < tick:
            self.leave_with_vllm()
            lost = engine - self.vllm.children()
            engine -= lost
            # A child may end for other reasons; of its engine's death vLLM itself knows within moments.
            if lost and self.wait_for(lambda: self.vllm.is_dead() or not self.vllm.is_running(), 5):
                self.leave_with_vllm()
                self.end(f"the engine died (process {min(lost)}): ending {self.vllm.words.title}, to be started anew")
            time.sleep(min(1, self.watchdog / 10))

    def leave_with_vllm(self) -> None:
        if not self.vllm.is_running():
            sys.exit(0)

    def stand_back_if_stopping(self) -> None:
        while self.is_stopping():
            self.leave_with_vllm()
            time.sleep(1)

    def end(self, why: str) -> NoReturn:
        """By a signal that systemd counts as a failure, and which ends the rest of the unit, too."""
        self.stand_back_if_stopping()
        say(why, 3)
        notify(f"STATUS={why}")
        self.tell_supervisor(f"failed {why}")
        self.vllm.signal(signal.SIGKILL)
        sys.exit(0)

    def end_hung(self, why: str) -> NoReturn:
        """Every Python stack into the journal (PYTHONFAULTHANDLER=1), then the watchdog's verdict over the unit."""
        self.stand_back_if_stopping()
        queues = " ".join(self.vllm.metrics(self.vllm.words.queues)) or "no metrics"
        say(f"{why}; stage: {self.stage}; {queues}", 3)
        notify(f"STATUS={why}")
        self.tell_supervisor(f"failed {why}")
        for pid in sorted(self.vllm.children()):
            if command_of(pid).startswith(self.vllm.words.processes):
                say(f"stacks of {command_of(pid)} (pid {pid}), stopped by SIGABRT:", 3)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGABRT)
                    os.kill(pid, signal.SIGCONT)
                self.wait_for(functools.partial(is_gone, pid), 2)
        # Of a start beside another engine its own supervisor knows; the unit itself is not to be ended for it.
        if self.is_ready.is_set() or not self.is_active:
            notify("WATCHDOG=trigger")
        if not self.wait_for(lambda: not self.vllm.is_running(), 5):
            self.vllm.signal(signal.SIGABRT)
            self.vllm.signal(signal.SIGCONT)
        sys.exit(0)

    @staticmethod
    def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def held_callers() -> str:
    """How many wait for this start, and for how long, as the supervisor notes it once a second."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(os.path.join(os.environ["RUNTIME_DIRECTORY"].partition(":")[0], vllm_hold.HOLDING)) as file:
            found = json.loads(file.read(4096))
        if waiting := found["waiting"]:
            they = "1 caller waits" if waiting == 1 else f"{waiting:d} callers wait"
            return f"; {they}, longest {vllm_hold.now() - found['since']:.0f} s"
    return ""


def main(words: list[str]) -> None:
    task = json.loads(words[0])
    key = os.pread(task["key"], 4096, 0).decode().strip()
    vllm = Vllm(FAMILIES[task["family"]], task["pid"], task["host"], task["listener"], task["mark"], key)
    Watcher(vllm, task["report"], holds=task["holds"], is_active=task["is_active"]).watch()


if __name__ == "__main__":
    main(sys.argv[1:])
