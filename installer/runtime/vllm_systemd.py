"""What launcher, supervisor and watcher share: a word to systemd, a line in the journal, a look at processes.

Stdlib only, because it runs on the engine's Python and imports nothing of ours but what lies beside it.
"""

from __future__ import annotations

import array
import contextlib
import glob
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_text import command, one_line
else:
    from vllm_text import command, one_line

JOURNAL = "/run/systemd/journal/stdout"
# What the unit may say in its environment, and what holds where it does not, or makes no sense: in seconds.
USUAL = {"DRAIN": 30.0, "HEAR_OUT": 0.0, "START_PATIENCE_SEC": 300.0, "SILENCE_SEC": 90.0}


def seconds(variable: str) -> float:
    text = os.environ.get(variable, "")
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) else USUAL[variable]


def say(text: str, priority: int = 6) -> None:
    """One line of the journal, of one line whoever had a word in it."""
    line = f"vllm-launcher: {one_line(text)}"
    if "JOURNAL_STREAM" not in os.environ or not write_to_journal(line, priority):
        print(line, file=sys.stderr, flush=True)


def write_to_journal(line: str, priority: int) -> bool:
    """By a stream of our own: the unit's takes no priority from a text, because vLLM writes there what others chose."""
    header = (own_unit().removesuffix(".service") or "vllm-launcher", "", str(priority), "0", "0", "0", "0")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(2)
        stream.connect(JOURNAL)
        stream.sendall("".join(f"{word}\n" for word in (*header, line)).encode())
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)  # its end says that the line was read while we live, by which it is placed in the unit
        return True
    return False


def own_group() -> str:
    """The control group that this process belongs to, as a path below /sys/fs/cgroup; "" where there is none."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        groups = re.findall(r"^0::(/.+)$", file.read(), re.MULTILINE)
        return groups[-1] if groups else ""
    return ""


def own_unit() -> str:
    """The unit that this process belongs to; "" where none is."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        units = re.findall(r"/([^/\n]+\.service)(?=/|$)", file.read(), re.MULTILINE)
        return units[-1] if units else ""
    return ""


def notify(*lines: str, descriptors: Sequence[int] = ()) -> None:
    """Tell systemd, and wait until it has taken note: it cannot place the word of a process that is gone by then."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    read, write = os.pipe()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address[0] == "@" else address)
        sender.sendmsg(["\n".join(map(one_line, lines)).encode()], rights(descriptors) if descriptors else [])
        sender.sendmsg([b"BARRIER=1"], rights([write]))
    os.close(write)
    select.select([read], [], [], 2)
    os.close(read)


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def systemctl(*words: str, within: float | None = 10) -> str:
    """What systemctl says within so many seconds; "" where it cannot be asked."""
    # Without NOTIFY_SOCKET: it would report its own exit there, as if it were the service's.
    quiet = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["systemctl", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within, env=quiet
        ).stdout
    return ""


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return command(file.read(4096).decode(errors="replace")) or "unknown command"
    return "unknown command"


def stat(pid: int) -> list[str]:
    """State, parent's pid and on, as in proc(5) from field 3; empty for a process that is gone or a zombie."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
        fields = file.read().rpartition(") ")[2].split()
        return fields if fields[0] != "Z" else []
    return []


def descendants(pid: int) -> set[int]:
    """Every process that descends from one, and runs."""
    pids = (int(path[6:]) for path in glob.glob("/proc/[0-9]*"))
    parents = {each: int(fields[1]) for each in pids if (fields := stat(each))}
    found, fresh = set[int](), {pid}
    while fresh:
        fresh = {each for each, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def write(path: str, text: str) -> None:
    """In one step: who reads it sees the old file or the new one, and a full /run leaves the old one."""
    new = f"{path}.{os.getpid()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
