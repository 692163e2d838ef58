"""What the user sees while work goes on: steps and progress on stderr, the result on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from installer.changes import Change

Advance = Callable[[int], None]


class Report:
    """Silent: for --quiet, and the base of the others."""

    def begin(self, change: Change) -> None:
        """A change is about to be applied."""

    def done(self, change: Change) -> None:
        """A change was applied."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        print(f"warning: {text}", file=sys.stderr)

    @contextmanager
    def bytes(self, label: str, total: int) -> Iterator[Advance]:
        """One display for a transfer; call the yielded function with every batch of bytes that arrived."""
        yield lambda count: None


class Lines(Report):
    """Plain lines on stderr, for logs and pipes; a transfer says how far it is now and then."""

    EVERY = 5.0

    def begin(self, change: Change) -> None:
        self.note(change.describe())

    def note(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def bytes(self, label: str, total: int) -> Iterator[Advance]:
        done, last = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            if time.monotonic() - last >= self.EVERY:
                last = time.monotonic()
                self.note(f"{label}: {size(done)} of {size(total)} ({100 * done // max(total, 1)} %)")

        yield advance
        self.note(f"{label}: {size(done)} done")


class Bars(Lines):
    """A terminal: the same lines, and a live bar for transfers."""

    @contextmanager
    def bytes(self, label: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )  # fmt: skip

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.update(task, advance=count)


def size(count: int) -> str:
    """Bytes for people: 1.5 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def choose(*, quiet: bool) -> Report:
    if quiet:
        return Report()
    return Bars() if sys.stderr.isatty() else Lines()
