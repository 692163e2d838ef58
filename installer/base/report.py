"""What the user sees while work goes on: steps and progress on stderr, the result on stdout."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from installer.base.language import tr
from installer.runtime.vllm_text import harmless

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]


class Described(Protocol):
    """What is about to be done, in words."""

    def describe(self) -> str: ...


class Ours(str):
    """Text that may steer the terminal, because we made it."""

    __slots__ = ()


class Screen(io.TextIOWrapper):
    """Standard output or error: whatever is written there, and by whom, the terminal obeys nothing of it."""

    def __init__(self, under: io.TextIOWrapper) -> None:
        # click would go around a stream of which it thinks that it can nothing but ASCII.
        encoding = "utf-8" if under.encoding.lower() in ("ascii", "ansi_x3.4-1968", "us-ascii") else under.encoding
        # A name that the terminal cannot show is no error.
        super().__init__(under.buffer, encoding, "backslashreplace", line_buffering=under.line_buffering)
        self.under = under

    def write(self, text: str) -> int:
        return super().write(text if isinstance(text, Ours) else harmless(text))


def protect_terminal() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, Screen(stream))


def console(*, err: bool = False, highlight: bool = True) -> Console:
    """rich's, which steers the terminal: by what it makes of our styles, not by what a text holds."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Ruled(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(harmless(segment.text), segment.style)

        def on_broken_pipe(self) -> None:
            """It would end the process, in the middle of whatever that does."""
            self.quiet = True
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    stream = sys.stderr if err else sys.stdout
    return Ruled(file=stream.under if isinstance(stream, Screen) else stream, highlight=highlight, markup=False)


class Advance(Protocol):
    """Called with every batch of bytes that arrived, and the number of files that became whole with it."""

    def __call__(self, count: int, files: int = 0, /) -> None: ...


class Report:
    """Silent: for --quiet, and the base of the others."""

    def begin(self, change: Described, line: str | None = None) -> None:
        """A change is about to be applied; `line` is what is said of it, where it is not its own description."""

    def done(self, change: Described) -> None:
        """A change was applied."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def waits(self, holder: str) -> None:
        self.note(tr("waiting for: {holder}", holder=holder))

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        print(harmless(tr("warning: {text}", text=text)), file=sys.stderr)

    @contextmanager
    def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
        """One display for a transfer of so many bytes and, where that says more, files."""
        yield lambda count, files=0: None

    @contextmanager
    def waiting(self, what: str) -> Iterator[Say]:
        """Something takes its time; call the yielded function with the stage that it is in."""
        began = time.monotonic()

        def say(stage: str) -> None:
            took = time.monotonic() - began
            self.note(tr("{what}: {stage} ({seconds:.0f} s)", what=what, stage=stage, seconds=took))

        yield say


class Lines(Report):
    """Plain lines on stderr, for logs and pipes; a transfer says how far it is now and then."""

    EVERY = 5.0

    def begin(self, change: Described, line: str | None = None) -> None:
        if said := change.describe() if line is None else line:
            self.note(said)

    def note(self, text: str) -> None:
        # Beside a live bar rich stands in for the stream, and takes colours from a text.
        print(harmless(f"  {text}"), file=sys.stderr, flush=True)

    @contextmanager
    def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
        pace, last = Pace(total, files), time.monotonic()

        def advance(count: int, files: int = 0) -> None:
            nonlocal last
            pace.add(count, files)
            if time.monotonic() - last >= self.EVERY:
                last = time.monotonic()
                self.note(tr("{what}: {why}", what=label, why=pace))

        yield advance
        self.note(tr("{what}: {why}", what=label, why=pace.ending))


class JsonLines(Report):
    """One JSON object a line on stderr, for programs; the result goes to stdout as ever."""

    EVERY = 1.0

    def note(self, text: str) -> None:
        self._print({"event": "note", "text": text})

    def warn(self, text: str) -> None:
        self._print({"event": "warning", "text": text})

    @contextmanager
    def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
        pace, last = Pace(total, files), time.monotonic()
        self._print({"event": "progress", "what": label, **pace.to_json()})

        def advance(count: int, files: int = 0) -> None:
            nonlocal last
            pace.add(count, files)
            if time.monotonic() - last >= self.EVERY:
                last = time.monotonic()
                self._print({"event": "progress", "what": label, **pace.to_json()})

        yield advance
        self._print({"event": "progress", "what": label, **pace.to_json()})

    @staticmethod
    def _print(event: dict[str, object]) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)


class Pace:
    """How far a transfer is, how fast it goes, and how long it will take."""

    WINDOW = 15.0  # seconds that the rate is taken over: long enough to be calm, short enough to show a change

    def __init__(self, total: int, files: int) -> None:
        self.total = total
        self.files = files
        self.done = self.files_done = 0
        self._began = time.monotonic()
        self._seen = deque([(self._began, 0)])

    def add(self, count: int, files: int) -> None:
        self.done += count
        self.files_done += files
        now = time.monotonic()
        self._seen.append((now, self.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > self.WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second."""
        (since, before), (now, done) = self._seen[0], self._seen[-1]
        return max(done - before, 0) / max(now - since, 0.001)

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        share = 100 * self.done // max(self.total, 1)
        done, total, rate = size(self.done), size(self.total), size(int(self.rate))
        of_files, left = self._of_files, self.seconds_left
        so_far = tr(
            "{done} of {total} ({share} %){of_files}, {rate}/s",
            done=done, total=total, share=share, of_files=of_files, rate=rate,
        )  # fmt: skip
        return so_far + (tr(", {time} left", time=duration(left)) if left is not None else "")

    @property
    def ending(self) -> str:
        took = time.monotonic() - self._began
        return tr(
            "{done}{of_files} in {time} ({rate}/s)",
            done=size(self.done),
            of_files=self._of_files,
            time=duration(took),
            rate=size(int(self.done / max(took, 0.001))),
        )

    @property
    def _of_files(self) -> str:
        return tr(", {done} of {total} files", done=self.files_done, total=self.files) if self.files else ""

    def to_json(self) -> dict[str, object]:
        left = self.seconds_left
        return {
            "bytes": self.done, "bytes_total": self.total, "files": self.files_done, "files_total": self.files,
            "bytes_per_second": int(self.rate), "seconds_left": None if left is None else round(left, 1),
        }  # fmt: skip


class Bars(Lines):
    """A terminal: the same lines, and a live bar for transfers."""

    @contextmanager
    def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )  # fmt: skip

        of_files = (TextColumn(tr("{task.fields[files_done]}/{task.fields[files]} files")),) if files else ()
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            *of_files,
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        pace = Pace(total, files)
        with Progress(*columns, console=console(err=True), transient=True) as progress:
            task = progress.add_task(label, total=total, files=files, files_done=0)

            def advance(count: int, files: int = 0) -> None:
                pace.add(count, files)
                progress.update(task, advance=count, files_done=pace.files_done)

            yield advance
        self.note(tr("{what}: {why}", what=label, why=pace.ending))

    @contextmanager
    def waiting(self, what: str) -> Iterator[Say]:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn(" "),
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console(err=True), transient=True) as progress:
            task = progress.add_task(what)
            yield lambda stage: progress.update(task, description=tr("{what}: {why}", what=what, why=stage))


def size(count: int) -> str:
    """Bytes for people: 1.5 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Time for people: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def choose(*, quiet: bool, as_json: bool = False) -> Report:
    if quiet:
        return Report()
    if as_json:
        return JsonLines()
    return Bars() if sys.stderr.isatty() else Lines()
