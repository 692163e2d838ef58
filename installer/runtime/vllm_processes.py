"""The processes below a supervisor, and those beside it: ended to the last one, and reaped. Stdlib only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_systemd import descendants, own_group
else:
    from vllm_systemd import descendants, own_group

TRACKERS_WITHIN = 3.0  # seconds that Python's resource trackers get to remove shared memory
GIVE_UP_AFTER = 30.0  # seconds; a process in the hands of a broken driver cannot be killed


def send(pid: int, number: int) -> None:
    if pid:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def reap() -> dict[int, int]:
    """pid -> wait status of every child that has ended."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"multiprocessing.resource_tracker" in file.read()
    return False


def end_all() -> None:
    """Everything below us. The trackers last: they see that nobody uses the shared memory any more, and remove it."""
    began = time.monotonic()
    while (left := descendants(os.getpid())) and time.monotonic() - began < GIVE_UP_AFTER:
        over = time.monotonic() - began > TRACKERS_WITHIN
        for pid in left:
            if over or not is_tracker(pid):
                send(pid, signal.SIGKILL)
        reap()
        time.sleep(0.01)
    reap()


def end_strangers(spared: int) -> None:
    """Those of the unit that are not below us: a successor, and what it had started, if it has died."""
    began = time.monotonic()
    while (left := members() - {os.getpid(), spared} - descendants(os.getpid())) and (
        time.monotonic() - began < GIVE_UP_AFTER
    ):
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.01)


def members() -> set[int]:
    """The unit's processes, as the kernel counts them: those of another sandbox do not show in our /proc."""
    group = own_group()
    if "INVOCATION_ID" not in os.environ or not group.endswith(".service"):
        return set()  # not started by systemd: whose group that is nobody knows
    with contextlib.suppress(OSError, ValueError), open(f"/sys/fs/cgroup{group}/cgroup.procs") as file:
        return set(map(int, file.read().split()))
    return set()


def end_as(status: int) -> NoReturn:
    """As the engine did: by what ended it, systemd tells a clean end from a failure."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # the first process of a container is ended by no signal of its own
    os._exit(os.WEXITSTATUS(status))
