"""Stands in for systemd where there is none: runs one service as its unit asks for, and writes down what happens when.

What it keeps of systemd: the notify socket, the watchdog (SIGABRT, then SIGKILL of everything), Restart=always with
RestartSec=5, KillMode=mixed, LoadCredential= and RuntimeDirectory=. Nothing of the sandbox. The place of the control
group is taken by being everybody's subreaper. Stdlib only.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
RESTART_SECONDS = 5.0
ABORT_SECONDS = 10.0


@dataclass(frozen=True)
class Event:
    at: float
    text: str


@dataclass
class Supervisor:
    """One service; `launch` are the words behind the interpreter."""

    python: str
    launch: list[str]
    place: Path
    watchdog: float
    environment: dict[str, str]
    probe_key: str
    events: list[Event] = field(default_factory=list)
    pid: int = 0
    is_wanted: bool = False
    is_ready: bool = False
    _alive_at: float = 0.0

    def __post_init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.runtime, credentials = self.place / "run", self.place / "credentials"
        for directory in (credentials, self.place / "cache"):
            directory.mkdir(parents=True, exist_ok=True)
        (credentials / "probe-key").write_text(self.probe_key + "\n")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = str(self.place / "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._address)
        self._socket.bind(self._address)
        self._environment = self.environment | {
            "RUNTIME_DIRECTORY": str(self.runtime),
            "CREDENTIALS_DIRECTORY": str(credentials),
            "NOTIFY_SOCKET": self._address,
            "WATCHDOG_USEC": str(int(self.watchdog * 1e6)),
        }
        threading.Thread(target=self._hear, daemon=True).start()

    def note(self, text: str) -> float:
        now = time.monotonic()
        self.events.append(Event(now, text))
        print(f"[{now:10.2f}] {text}", flush=True)
        return now

    def start(self) -> float:
        self.is_wanted = True
        threading.Thread(target=self._keep_running, daemon=True).start()
        return self.note("start asked for")

    def stop(self, seconds: float) -> None:
        """SIGTERM to the main process alone; the rest once it is gone or its time is over."""
        self.is_wanted = False
        self.note("stop asked for")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        self.wait(lambda: self.pid == 0, seconds, "stopped")

    def kill(self) -> None:
        self.is_wanted = False
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait(lambda: self.pid == 0, 30, "ended")

    def reload(self, words: list[str]) -> None:
        environment = {name: value for name, value in self._environment.items() if name != "CREDENTIALS_DIRECTORY"}
        subprocess.run([self.python, self.launch[0], "reload", *words], check=True, env=environment)

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}")
            time.sleep(0.02)
        return time.monotonic()

    def find(self, name: str) -> int:
        """The pid of the descendant whose command begins with this name."""
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name.encode()):
                    return pid
        raise LookupError(f"no process called {name}")

    def since(self, start: float) -> list[tuple[float, str]]:
        return [(round(event.at - start, 2), event.text) for event in self.events if event.at >= start]

    # Its life

    def _keep_running(self) -> None:
        while self.is_wanted:
            self._run_once()
            if self.is_wanted:
                time.sleep(RESTART_SECONDS)

    def _run_once(self) -> None:
        shutil.rmtree(self.runtime, ignore_errors=True)
        self.runtime.mkdir(mode=0o700)
        self.is_ready = False
        with (self.place / "journal").open("ab") as journal:
            process = subprocess.Popen(
                [self.python, *self.launch],
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                env=self._environment,
                cwd=self.place / "cache",
                start_new_session=True,
            )
        self.pid = process.pid
        self.note(f"main process {process.pid}")
        aborted = 0.0
        while process.poll() is None:
            now = time.monotonic()
            if self.is_ready and not aborted and now - self._alive_at > self.watchdog:
                self.note("watchdog: SIGABRT to the main process")
                aborted = now
                process.send_signal(signal.SIGABRT)
            if aborted and now - aborted > ABORT_SECONDS:
                process.kill()
            time.sleep(0.02)
        self.note(f"main process ended: {process.returncode}")
        self._end_the_rest()
        self.pid = 0

    def _end_the_rest(self) -> None:
        """What a control group would have held; the watcher is among it."""
        others = remains(self.pid, self.runtime)
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while others & descendants(os.getpid()) and time.monotonic() < end:
            for pid in others:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
        if others:
            self.note(f"ended {len(others)} processes left over")

    def _hear(self) -> None:
        size = array.array("i").itemsize
        while True:
            text, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(4 * size))
            for line in text.decode(errors="replace").splitlines():
                self._take(line)
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    for descriptor in array.array("i", data[: len(data) // size * size]):
                        os.close(descriptor)

    def _take(self, line: str) -> None:
        if line == "WATCHDOG=1":
            self._alive_at = time.monotonic()
        elif line == "WATCHDOG=trigger":
            self._alive_at = float("-inf")
            self.note(line)
        elif line == "READY=1":
            self._alive_at = time.monotonic()
            self.is_ready = True
            self.note(line)
        elif line != "BARRIER=1":
            self.note(line)


def remains(main: int, runtime: Path) -> set[int]:
    """Those of our descendants that belong to the service: by their session or, as the watcher, by their environment.

    Neither alone would do: the watcher has a session of its own, and a process that renames itself loses its
    environment.
    """
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == main or str(runtime).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.add(pid)
    return found


def descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
    found, fresh = set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found
