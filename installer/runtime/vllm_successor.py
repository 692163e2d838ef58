"""The supervisor of the next engine, until that one answers: then it is the unit's main process. Stdlib only."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_handover, vllm_hold
    from installer.runtime.vllm_callers import TICK
    from installer.runtime.vllm_listen import GO, READY
    from installer.runtime.vllm_main import SLACK, Main
    from installer.runtime.vllm_processes import end_all
    from installer.runtime.vllm_systemd import notify, say, seconds, write
else:
    import vllm_handover
    import vllm_hold
    from vllm_callers import TICK
    from vllm_listen import GO, READY
    from vllm_main import SLACK, Main
    from vllm_processes import end_all
    from vllm_systemd import notify, say, seconds, write

HEARD = 1.0  # seconds from one word to the launcher that waits for us to the next


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
        vllm_hold.close(self.callers.listener)
        host, port = self.task["host"], self.task["port"]
        try:
            self.callers.listener = vllm_hold.listen(host, port)
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
            vllm_hold.keep(vllm_hold.SOCKET, self.callers.listener.fileno())
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
        for listener in self.callers.listeners:
            listener.close()
        vllm_handover.send(self.predecessor, "failed", why=why)
        self.hear_its_end()
        self.tell(why)
        os._exit(1)

    def tell(self, why: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self.task["verdict"], f"{why or 'done'}\n".encode())
            os.close(self.task["verdict"])
