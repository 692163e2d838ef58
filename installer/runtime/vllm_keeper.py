"""Keeps a throwaway vLLM: starts it, passes on what it says of itself, and leaves nothing of it behind.

Whoever starts this holds the other end of its standard input, and writes two lines of JSON there: this text, and its
task. When that end is closed, by the death of its holder as well, everything ends: the server's processes, and the
directory it lived in. Stdlib only, because it runs on the engine's Python.

    in:  {"home": PATH, "files": {NAME: TEXT}, "command": [PYTHON, LAUNCHER, WORD...], "environment": {}, "cache": PATH,
          "key": KEY}
    out: {"status": STAGE}, {"ready": true}, {"error": WORDS}, {"ended": STATUS, "log": [LINE...]}
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
LOG_LINES = 400
TRACKERS_WITHIN = 3.0  # seconds that Python's resource trackers get to remove shared memory
GIVE_UP_AFTER = 30.0  # seconds; a process in the hands of a broken driver cannot be killed
LIBC = ctypes.CDLL(None, use_errno=True)


class Told(Exception):
    """A signal asks us to end."""


def say(**what: object) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more: the end of our input says the same
        os.write(1, json.dumps(what).encode() + b"\n")


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", errors="replace") as file:
        return int(file.read().rpartition(") ")[2].split()[1])
    return 0


def descendants() -> set[int]:
    """Everything that was started here: what loses its parent becomes our child."""
    parents = {pid: parent_of(pid) for pid in (int(path[6:]) for path in glob.glob("/proc/[0-9]*"))}
    found, fresh = set[int](), {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"multiprocessing.resource_tracker" in file.read()
    return False


def reap() -> dict[int, int]:
    """pid -> status of every child that has ended."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def end_all() -> None:
    """The trackers last: they see that nobody uses the shared memory any more, and take it away."""
    began = time.monotonic()
    while (left := descendants()) and time.monotonic() - began < GIVE_UP_AFTER:
        over = time.monotonic() - began > TRACKERS_WITHIN
        for pid in left:
            if over or not is_tracker(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.02)


def leash() -> None:
    LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL)


def start(spec: dict[str, Any], home: str) -> subprocess.Popen[bytes]:
    places = {name: os.path.join(home, name) for name in ("runtime", "run", "credentials", "cache", "tmp")}
    for place in places.values():
        os.mkdir(place, 0o700)
    for name, text in {
        **{f"runtime/{n}": t for n, t in spec["files"].items()},
        "credentials/probe-key": spec["key"],
    }.items():
        with open(os.open(os.path.join(home, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    python, launcher, *words = spec["command"]
    environment = {name: value.replace(spec["cache"], places["cache"]) for name, value in spec["environment"].items()}
    environment |= {
        "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TMPDIR": places["tmp"],
        "RUNTIME_DIRECTORY": places["run"], "CREDENTIALS_DIRECTORY": places["credentials"],
        "NOTIFY_SOCKET": os.path.join(home, "notify"),
    }  # fmt: skip
    with open(os.path.join(home, "log"), "wb") as log:
        return subprocess.Popen(
            [python, os.path.join(places["runtime"], os.path.basename(launcher)), *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=places["cache"], env=environment, preexec_fn=leash,
        )  # fmt: skip


def pass_on(notify: socket.socket) -> None:
    message, descriptors, _, _ = socket.recv_fds(notify, 65536, 8)
    for descriptor in descriptors:
        os.close(descriptor)  # which is what the sender waits for
    for line in message.decode(errors="replace").splitlines():
        name, _, text = line.partition("=")
        if name == "STATUS":
            say(status=text)
        elif (name, text) == ("READY", "1"):
            say(ready=True)


def watch(server: subprocess.Popen[bytes], notify: socket.socket) -> int | None:
    """The server's exit status; None where its keeper's input ended first."""
    while True:
        readable, _, _ = select.select([sys.stdin, notify], [], [], 0.2)
        if notify in readable:
            pass_on(notify)
        elif sys.stdin in readable and not os.read(0, 4096):
            return None
        ended = reap()
        if server.pid in ended:
            return ended[server.pid]


def keep(spec: dict[str, Any]) -> None:
    home, log, status = str(spec["home"]), deque[str](maxlen=LOG_LINES), None
    try:
        os.makedirs(home, mode=0o700, exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(os.path.join(home, "notify"))
            status = watch(start(spec, home), notify)
        with open(os.path.join(home, "log"), errors="replace") as file:
            log.extend(line.rstrip("\n") for line in file)
    except Told:
        pass
    except OSError as error:
        say(error=str(error))
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        end_all()
        shutil.rmtree(home, ignore_errors=True)
    if status is not None:
        say(ended=status, log=list(log))


def told(number: int, frame: object) -> None:
    raise Told


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, told)
    LIBC.prctl(SET_CHILD_SUBREAPER, 1)
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (part := os.read(0, 65536)):
            return  # whoever started us is gone already
        line += part
    keep(json.loads(line))


if __name__ == "__main__":
    main()
