"""list --watch: all services of the host, their replicas and the GPUs, looked at again and again, on one screen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.checks.gpus.vendors import MODULES
from installer.diagnosis.said import translated
from installer.look import watch
from installer.look.load import GpuUse, Sample
from installer.look.screen import gpu_line
from installer.look.status import MemberStatus
from installer.look.watch import EVERY, Frame
from installer.spec.records import services

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

OLD = 3 * EVERY  # seconds after which a figure is said to be of before
GPUS = "gpus of the host"  # no service has this name
NARROW = 72  # columns below which figures stand in a line and not under titles
Row = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class GpuShare:
    """A GPU of the host, and the services that were given it."""

    gpu: GpuUse
    services: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """One moment. A service that hangs has the figures of before, with their own time, and keeps up no other."""

    at: float  # seconds since 1970
    services: tuple[Frame, ...]
    unseen: tuple[str, ...]  # services of which nothing is known yet
    gpus: tuple[GpuShare, ...]


@dataclass
class Looker:
    """Looks at one thing for as long as that is there; what it saw last is here for whoever draws the screen."""

    frames: Callable[[], Iterator[object]]
    seen: object = None
    saw: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._look, daemon=True)  # one that hangs keeps nobody from leaving
        self.thread.start()

    def _look(self) -> None:
        try:
            for seen in self.frames():
                self.seen = seen
                self.saw.set()
        except (InstallError, OSError):  # as when it was uninstalled just now
            self.seen = None
            self.saw.set()


def overviews(host: Host) -> Iterator[Overview]:
    """A service that comes is there at the next moment, and one that goes is not."""
    lookers = {GPUS: Looker(lambda: _gpus(host))}
    while True:
        began = time.monotonic()
        names = services(host)
        lookers = {name: _looker(name, lookers.get(name), host) for name in (GPUS, *names)}
        for looker in lookers.values():
            looker.saw.wait(max(0.0, began + EVERY - time.monotonic()))
        yield _overview(names, lookers)
        time.sleep(max(0.0, began + EVERY - time.monotonic()))


def _looker(name: str, before: Looker | None, host: Host) -> Looker:
    if before and before.thread.is_alive():
        return before
    return Looker(lambda: _gpus(host) if name == GPUS else watch.frames(name, host))


def _gpus(host: Host) -> Iterator[tuple[GpuUse, ...]]:
    while True:
        used = [gpu for module in MODULES.values() for gpu in module.use(host)]
        yield tuple(GpuUse(gpu.name, gpu.uuid, gpu.memory_used, gpu.memory_total, gpu.busy) for gpu in used)
        time.sleep(EVERY)


def _overview(names: list[str], lookers: dict[str, Looker]) -> Overview:
    frames = [seen for name in names if isinstance(seen := lookers[name].seen, Frame)]
    seen_gpus = lookers[GPUS].seen
    return Overview(
        at=time.time(),
        services=tuple(frames),
        unseen=tuple(sorted(set(names) - {frame.service for frame in frames})),
        gpus=shares(seen_gpus if isinstance(seen_gpus, tuple) else (), frames),
    )


def shares(gpus: tuple[GpuUse, ...], frames: list[Frame]) -> tuple[GpuShare, ...]:
    """Every GPU of the host; one that a service was given and that is not there is shown as well."""
    known = {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
    given = {gpu.uuid: gpu for frame in frames for gpu in frame.gpus if gpu.uuid}
    nameless = [gpu for gpu in gpus if not gpu.uuid]
    users = {uuid: tuple(f.service for f in frames if any(gpu.uuid == uuid for gpu in f.gpus)) for uuid in given}
    return tuple(GpuShare(gpu, users.get(gpu.uuid, ())) for gpu in (*(given | known).values(), *nameless))


# The screen


def rows(overview: Overview, height: int = 0) -> list[Row]:
    """Of more than the screen has lines for, replicas that serve are counted and not named."""
    all_rows = [row for frame in overview.services for row in _of(frame, overview.at, fold=False)]
    room = height - len(overview.gpus) - len(overview.unseen) - 1  # beside the line of titles
    if height and len(all_rows) > room:
        all_rows = [row for frame in overview.services for row in _of(frame, overview.at, fold=True)]
    unseen = [(name, tr("not seen yet"), "", "", "", "") for name in overview.unseen]
    return [*all_rows, *unseen]


def _of(frame: Frame, now: float, *, fold: bool) -> Iterator[Row]:
    out, into = frame.tokens_per_second, frame.prompt_tokens_per_second
    speed = "" if out is None and into is None else f"{watch.number(out)} / {watch.number(into)}"
    waits = frame.first_token.get("p50")
    first = watch.in_seconds(waits) if waits is not None else ""
    yield (frame.service, _state(frame, now), _requests(frame.running, frame.waiting), speed, first,
           _share(frame.cache_used))  # fmt: skip
    shown = [member for member in frame.members if not (fold and member.ready)]
    if hidden := len(frame.members) - len(shown):
        yield (f"  {tr('{count} replicas', count=hidden)}", translated("serving"), "", "", "", "")
    for member in shown:
        yield _member(member)


def _state(frame: Frame, now: float) -> str:
    active = frame.active.partition(" ")[0]
    said = [tr("{state}, {stage}", state=active, stage=translated(frame.stage)) if frame.stage else active]
    said += [frame.holding.words] if frame.holding else []
    said += [frame.because] if frame.because else []
    said += [tr("as of {seconds} s ago", seconds=round(now - frame.at))] if now - frame.at > OLD else []
    return tr("; ").join(said)


def _member(member: MemberStatus) -> Row:
    load = member.load or Sample(None, None, None, None, None, None, {})
    active = member.active.partition(" ")[0]
    stage = translated(member.stage)
    state = tr("{state}, {stage}", state=active, stage=stage) if stage else active
    if member.gateway not in (None, "UP"):
        state = tr("; ").join((state, tr("gateway: {state}", state=member.gateway)))
    name = f"  {tr('replica {number}', number=member.number)}"
    return name, state, _requests(load.running, load.waiting), "", "", _share(load.cache_used)


def _requests(running: float | None, waiting: float | None) -> str:
    return "" if running is None and waiting is None else f"{watch.number(running)} / {watch.number(waiting)}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def screen(overview: Overview, width: int, height: int) -> Group:
    """Services with their figures, and below them the GPUs. Where that leaves no room words are folded, none lost."""
    from rich.console import Group

    found = rows(overview, height)
    gpus = [(f"GPU {number}", share_line(share)) for number, share in enumerate(overview.gpus)]
    if not found:
        return Group(_pairs([("-", tr("no services yet; make one with: sudo vllm-install deploy"))]), _pairs(gpus))
    if width < NARROW:
        return Group(_pairs([(row[0], _in_a_line(row)) for row in found]), _pairs(gpus))
    return Group(_table(found), _pairs(gpus))


def _titles() -> Row:
    return tr("service"), tr("state"), tr("runs / waits"), tr("tokens/s out / in"), tr("first token"), tr("KV cache")


def _in_a_line(row: Row) -> str:
    figures = [f"{title} {word}" for title, word in zip(_titles()[2:], row[2:], strict=True) if word]
    return tr("; ").join([row[1], *figures])


def _table(found: list[Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for number, title in enumerate(_titles()):
        table.add_column(Text(title), overflow="fold", min_width=8 if number else 12, ratio=1 if number == 1 else None)
    for row in found:
        table.add_row(*map(Text, row))
    return table


def _pairs(found: list[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", overflow="fold", max_width=11)
    table.add_column(overflow="fold")
    for name, text in found:
        table.add_row(Text(name), Text(text))
    return table


def share_line(share: GpuShare) -> str:
    users = tr(", ").join(share.services)
    line = gpu_line(share.gpu)
    return tr("{what}: {why}", what=users, why=line) if users else line


def lines(overview: Overview) -> list[str]:
    """A line for each service, for a pipe or a file."""
    return [f"{watch.line(frame)} service={frame.service}" for frame in overview.services]
