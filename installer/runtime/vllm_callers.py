"""Who calls while no engine listens: they wait in the socket's queue, and are told to come back when it takes long.

Stdlib only, as everything that runs with vLLM.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_hold
    from installer.runtime.vllm_systemd import own_unit, say, systemctl, write
else:
    import vllm_hold
    from vllm_systemd import own_unit, say, systemctl, write

TICK = 0.1  # seconds from one look at them to the next


class Callers:
    """Of a service, with the sockets that outlive its engines; `limit` is for how many seconds they may wait.

    A replica has two: its port, by which it shows whether an engine listens, and the door for the gateway.
    """

    def __init__(
        self, listener: socket.socket, door: socket.socket | None, record: vllm_hold.Record, runtime: str, limit: int
    ) -> None:
        self.listener, self.door, self.record, self.runtime, self.limit = listener, door, record, runtime, limit
        self.mark = 0  # the backlog that we listen with; the engine's is another one
        self.since: float | None = None  # when they began to be held; None while the engine serves
        self.first: float | None = None  # of those who wait now
        self.noted_at = 0.0
        self.refusal: vllm_hold.Refusal | None = None

    def keep(self) -> None:
        """In systemd's hands, where the socket and the record outlive us as well; a start more is on record."""
        vllm_hold.keep(vllm_hold.SOCKET, self.listener.fileno())
        vllm_hold.keep(vllm_hold.RECORD, self.record.descriptor)
        since, starts = self.record.read()
        self.record.write(since, [*starts, vllm_hold.now()])

    @property
    def listeners(self) -> list[socket.socket]:
        return [self.listener, *([self.door] if self.door else [])]

    def hold(self) -> None:
        for listener in self.listeners:
            listener.listen(vllm_hold.backlog())
        self.mark = (vllm_hold.queue(self.listener) or (0, 0))[1]
        if self.limit:
            self.since = self.wait_on()

    def wait_on(self) -> float:
        """Since when they wait, which is on record from now on, for whoever starts the next engine."""
        since, starts = self.record.read()
        since = since or vllm_hold.now()
        self.record.write(since, starts)
        return since

    @property
    def need_a_look(self) -> bool:
        return self.since is not None or self.refusal is not None

    def look(self) -> None:
        if self.since is not None:
            found = vllm_hold.queue(self.listener) or (0, self.mark)
            if found[1] != self.mark:
                self.let_go()
            else:
                self.note(found[0])
                if self.refusal is None and vllm_hold.now() - self.since > self.limit:
                    say(f"it has been starting for {self.limit} s: callers are told to come back from now on", 4)
                    self.refusal = vllm_hold.Refusal(*self.listeners)
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
            noted = {"since": self.first or self.since, "waiting": waiting, "hold": self.limit}
            with contextlib.suppress(OSError):  # a full /run must not end a service
                write(os.path.join(self.runtime, vllm_hold.HOLDING), json.dumps(noted))

    def part(self, status: int, *, is_told: bool) -> None:
        """The engine is gone: they wait for the next start, if there is one to come."""
        self.wait_on()
        if is_told:
            if not is_stopped():
                return
            for listener in self.listeners:
                vllm_hold.close(listener)
        elif vllm_hold.is_last(os.waitstatus_to_exitcode(status), self.record.read()[1]):
            vllm_hold.refuse_all(*self.listeners)
        else:
            return
        for name in (vllm_hold.SOCKET, vllm_hold.DOOR, vllm_hold.RECORD):
            vllm_hold.forget(name)


def is_stopped() -> bool:
    """Whether the unit is stopped, and not to be started again at once."""
    jobs = [line.split() for line in systemctl("list-jobs", "--plain", "--no-legend", own_unit()).splitlines()]
    return any(job[2:3] == ["stop"] for job in jobs)
