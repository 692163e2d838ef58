"""The far end of a connection: requests come by standard input, one a line, and answers go to standard output.

Whoever asks is heard every few seconds. When he is not any more, or his connection ends, what runs here is undone as
after Ctrl-C, and the lock that was held for him is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, BinaryIO, TextIO

from installer.base.errors import InstallError, explain
from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Lines
from installer.group.member import Member, Run
from installer.runtime.vllm_text import one_line
from installer.spec.offer import Offer
from installer.spec.record import read_as
from installer.spec.settings import check_service
from installer.weights import handover
from installer.weights.handover import Part

READY = "vllm-install session"
BEATS_EVERY = 5.0  # seconds between two signs of life
LEASE = 20.0  # without one for so long, nobody is there


class Notes(Lines):
    """Progress, as lines of the connection."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send

    def note(self, text: str) -> None:
        self._send({"note": one_line(text)})

    def warn(self, text: str) -> None:
        self.note(tr("warning: {text}", text=text))


def _told(error: Exception) -> dict[str, Any]:
    known = explain(error) or InstallError(repr(error))
    return {"error": {"message": known.message, "hint": known.hint, "code": int(known.exit_code)}}


class End:
    """The far end of a connection for bytes: one request, what is said to it, and then those."""

    def __init__(self, came: BinaryIO, goes: BinaryIO, host: Host) -> None:
        self._came, self._goes, self._host = came, goes, host
        self._pours = False  # bytes and no lines follow

    def serve(self, act: Callable[[End, dict[str, Any]], None]) -> None:
        try:
            self._say({"ready": READY})
            if line := self._came.readline():
                act(self, json.loads(line))
        except BrokenPipeError:  # nobody hears it, now or when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._goes.fileno())
        except Exception as error:
            told = _told(error)
            if self._pours:
                print(told["error"]["message"], file=sys.stderr)
            else:
                self._say(told)

    def give(self, request: dict[str, Any]) -> None:
        """Weights of this host, for others of the group."""

        def begins() -> None:
            self._say({"answer": None})
            self._pours = True

        parts = read_as(tuple[Part, ...], request["parts"])
        handover.give(read_as(Offer, request["offer"]), parts, self._host, self._goes.fileno(), begins)

    def take(self, request: dict[str, Any]) -> None:
        """Weights of another host, for this one."""

        def ask(parts: Sequence[Part]) -> None:
            self._say({"answer": [asdict(part) for part in parts]})

        def note(text: str) -> None:
            self._say({"note": one_line(text)})

        handover.take(read_as(Offer, request["offer"]), self._host, self._came.fileno(), ask, note)
        self._say({"answer": None})

    def _say(self, line: dict[str, Any]) -> None:
        self._goes.write(json.dumps(line).encode() + b"\n")
        self._goes.flush()


class Session:
    """`runner` makes what runs a verb, given whoever is told of its progress."""

    def __init__(self, came: TextIO, goes: TextIO, host: Host, runner: Callable[[Callable[[str], None]], Run]) -> None:
        self._came, self._goes, self._host, self._runner = came, goes, host, runner
        self._requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._heard, self._busy, self._turn = threading.Event(), False, threading.Lock()

    def serve(self) -> None:
        self._send({"ready": READY})
        for listener in (self._listen, self._expire):
            threading.Thread(target=listener, daemon=True).start()
        with ExitStack() as held:
            while (request := self._requests.get()) is not None:
                self._send(self._answer(request, held))

    def _answer(self, request: dict[str, Any], held: ExitStack) -> dict[str, Any]:
        try:
            try:
                with self._turn:
                    self._busy = True
                return {"answer": self._done(request, held)}
            finally:
                with self._turn:
                    self._busy = False
        except Exception as error:
            return _told(error)

    def _done(self, request: dict[str, Any], held: ExitStack) -> Any:
        service, report = check_service(str(request.pop("service"))), Notes(self._send)
        member = Member(service, self._host, report, self._runner(report.note))
        if request["do"] == "lock":
            held.enter_context(self._host.lock(member.layout.group_lock, str(request["what"])))
            return None
        return member.answer(request)

    def _send(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody hears it: that is what `_listen` finds as well
            self._goes.write(json.dumps(line) + "\n")
            self._goes.flush()

    def _listen(self) -> None:
        for line in self._came:
            self._heard.set()
            if line.strip():
                request = json.loads(line)
                if request.get("do") == "stop":
                    self._interrupt()
                else:
                    self._requests.put(request)
        self._leave()

    def _expire(self) -> None:
        while self._heard.wait(LEASE):
            self._heard.clear()
        self._leave()

    def _leave(self) -> None:
        self._requests.put(None)
        self._interrupt()

    def _interrupt(self) -> None:
        """What runs is ended as by a signal, and undoes itself; once, for a second one would keep it from that."""
        with self._turn:
            if self._busy:
                self._busy = False
                os.kill(os.getpid(), signal.SIGTERM)
