"""Run inside a machine: `python -m tests.kit.cut SIGNAL POINT ARGS…` is `vllm-install ARGS…`, hit at a chosen point.

KILL and TERM hit the process alone; INT, as a terminal sends it on Ctrl-C, its children too. FULL is no signal: there,
once, the disk is full. POINT is one of
    begin:N       before the N-th change, with everything before it done
    done:N        right after the N-th change
    effect:N:K    within the N-th change, before its K-th effect: a process, a rename, a new directory, a removal…
    save:N        the N-th time the record of the service is replaced, right before that
    show          before the first word of the result is printed
    none          nowhere; afterwards the last line on stderr says which points there are, as JSON
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Mapping

from installer.base import report
from installer.base.changes import Change, Write

EFFECTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "subprocess.Popen")
LOOKS = (["systemctl", "show"], ["journalctl"])


class Cutter(report.Lines):
    """Counts what happens and sends the signal where it was told to."""

    def __init__(self, name: str, point: str) -> None:
        self.signal = None if name == "FULL" else signal.Signals[f"SIG{name}"]
        self.point = point
        self.effects: list[int] = []  # of each change begun so far
        self.folders: list[str] = []  # into which each of them writes a file
        self.saves = 0
        self.within = False

    def reach(self, point: str) -> None:
        if point != self.point:
            return
        self.point = "none"
        if self.signal is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)
        if self.signal == signal.SIGINT:
            os.killpg(0, self.signal)
        else:
            os.kill(os.getpid(), self.signal)

    def begin(self, change: Change, line: str | None = None) -> None:
        self.effects.append(0)
        self.folders.append(str(change.path.parent) if isinstance(change, Write) else "")
        self.reach(f"begin:{len(self.effects)}")
        super().begin(change, line)
        self.within = True

    def done(self, change: Change) -> None:
        self.within = False
        self.reach(f"done:{len(self.effects)}")

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        if event == "os.rename" and str(args[1]).endswith("/state.json"):
            self.saves += 1
            self.reach(f"save:{self.saves}")
        if self.within and event in EFFECTS and not is_look(event, args):
            self.effects[-1] += 1
            self.reach(f"effect:{len(self.effects)}:{self.effects[-1]}")


class Screen(io.StringIO):
    """A stdout that is reached before anybody reads from it."""

    def __init__(self, cutter: Cutter) -> None:
        super().__init__()
        self.cutter = cutter

    def write(self, text: str) -> int:
        if text:  # click writes nothing first, to see what kind of stream this is
            self.cutter.reach("show")
        return sys.__stderr__.write(text) if sys.__stderr__ else 0


def is_look(event: str, args: tuple[object, ...]) -> bool:
    argv = args[1] if event == "subprocess.Popen" else []
    assert isinstance(argv, list)
    return any(argv[: len(look)] == look for look in LOOKS)


def main(name: str, point: str, args: list[str]) -> None:
    cutter = Cutter(name, point)
    # What the command line reports by, put there before it is loaded; the rest of it runs unchanged.
    vars(report).update(choose=lambda **_: cutter)
    from installer import cli

    sys.addaudithook(cutter.audit)
    if point == "show":
        vars(sys).update(stdout=Screen(cutter))
    sys.argv = ["vllm-install", *args]
    cli.main()
    points: Mapping[str, object] = {"effects": cutter.effects, "folders": cutter.folders, "saves": cutter.saves}
    print(json.dumps(points), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
