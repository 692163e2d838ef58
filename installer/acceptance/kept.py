"""A process that we keep beside us while we work: it ends with us, and is told all by its standard input.

Where systemd runs it is a transient unit, with a service's sandbox and a user that exists no longer than it. Code and
task come by standard input: the checkout may lie where that user cannot look, and nothing of it is in an argument.

What it says is shown, and is never a path, a pid or a command: it is in the hands of whoever it works with.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from installer.base.assets import RUNTIME
from installer.base.host import Host
from installer.units.syntax import sandbox

BOOTSTRAP = "import json, sys; exec(json.loads(sys.stdin.buffer.raw.readline()))"
LONGEST_MESSAGE = 1 << 20  # characters; of what is longer the rest is another message, and makes no sense
WORDS_KEPT = 8  # lines of what was said besides messages


class Kept:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = deque[str](maxlen=WORDS_KEPT)

    def messages(self) -> Iterator[dict[str, object]]:
        """What it reports, until it ends; whatever else is written there comes from those who should start it."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline(LONGEST_MESSAGE):
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                if line.strip():
                    self.said.append(line.rstrip("\n")[:400])
                continue
            if isinstance(message, dict):
                yield message

    def tell(self, *lines: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it says before it ended tells more
            self.process.stdin.write("".join(f"{json.dumps(line)}\n" for line in lines))
            self.process.stdin.flush()

    def start(self, program: str, task: object) -> None:
        """It was started with BOOTSTRAP: its program, a file of ours, and what it is to do."""
        self.tell((RUNTIME / program).read_text(), task)


def can_confine(host: Host) -> bool:
    return os.geteuid() == 0 and host.exists(Path("/run/systemd/system"))


def unit_words(unit: str, description: str, unit_text: str, more: Sequence[str] = ()) -> list[str]:
    """What a command is run by that is to have the sandbox of this unit."""
    properties = ["DynamicUser=yes", *more, *sandbox(unit_text)]
    return [
        "systemd-run", "--quiet", "--collect", "--pipe", f"--unit={unit}", "--service-type=exec",
        f"--description={description}", *(f"--property={line}" for line in properties),
    ]  # fmt: skip
