"""status --watch: the same service looked at again and again, as a live screen, as lines, or as data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import size
from installer.diagnosis import scene
from installer.look import load, status
from installer.look.load import GpuUse, Sample
from installer.look.screen import gpu_line, member_lines, stage_line
from installer.look.status import MemberStatus
from installer.units.holding import Holding

if TYPE_CHECKING:
    from rich.table import Table

EVERY = 2.0  # seconds
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Frame:
    """One moment. Rates and percentiles are those of the time since the frame before."""

    at: float  # seconds since 1970
    service: str
    active: str
    stage: str
    holding: Holding | None
    model: str | None
    because: str | None
    running: float | None
    waiting: float | None
    cache_used: float | None
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    first_token: dict[str, float | None]  # p50, p90, p99 in seconds
    gpus: tuple[GpuUse, ...]
    has_metrics: bool
    members: tuple[MemberStatus, ...] = ()  # the replicas behind a gateway


def frames(service: str, host: Host) -> Iterator[Frame]:
    before: status.Status | None = None
    at = 0.0
    while True:
        began = time.monotonic()
        now = status.of(scene.look(service, host))
        # The sum of other replicas than before says nothing of the time between.
        same = before is not None and _sampled(before) == _sampled(now)
        yield frame(now, before.load if before and same else None, began - at)
        before, at = now, began
        time.sleep(max(0.0, began + EVERY - time.monotonic()))


def _sampled(found: status.Status) -> list[int]:
    return [member.number for member in found.members if member.load]


def frame(now: status.Status, before: Sample | None, seconds: float) -> Frame:
    new = now.load
    waits = load.since(before.first_token, new.first_token) if new and before else dict(new.first_token) if new else {}
    return Frame(
        at=time.time(),
        service=now.service,
        active=now.active,
        stage=now.stage,
        holding=now.holding,
        model=now.model,
        because=now.problem.cause if now.problem else None,
        running=new.running if new else None,
        waiting=new.waiting if new else None,
        cache_used=new.cache_used if new else None,
        tokens_per_second=_rate(before, new, seconds, "generated"),
        prompt_tokens_per_second=_rate(before, new, seconds, "prompted"),
        first_token={f"p{100 * share:g}": load.quantile(waits, share) for share in SHARES},
        gpus=now.gpus,
        has_metrics=new is not None,
        members=now.members,
    )


def _rate(before: Sample | None, after: Sample | None, seconds: float, name: str) -> float | None:
    """None where it cannot be told: the first frame, no metrics, or counters that began anew."""
    old, new = (getattr(sample, name, None) for sample in (before, after))
    if old is None or new is None or new < old or seconds <= 0:
        return None
    return float((new - old) / seconds)


def rows(frame: Frame) -> list[tuple[str, str]]:
    speeds = [f"{name} {in_seconds(value)}" for name, value in frame.first_token.items() if value is not None]
    running, waiting = number(frame.running), number(frame.waiting)
    out, into = number(frame.tokens_per_second), number(frame.prompt_tokens_per_second)
    return [
        (tr("service"), stage_line(frame.service, frame.active, frame.stage)),
        *member_lines(frame.members, frame.gpus),
        *([(tr("callers"), frame.holding.words)] if frame.holding else []),
        *([(tr("because"), frame.because)] if frame.because else []),
        (tr("model"), frame.model or "-"),
        (tr("requests"), tr("{running} running, {waiting} waiting", running=running, waiting=waiting)),
        (tr("tokens/s"), tr("{out} out, {into} in", out=out, into=into)),
        (tr("first token"), tr(", ").join(speeds) or "-"),
        (tr("KV cache"), tr("{share:.1%} full", share=frame.cache_used) if frame.cache_used is not None else "-"),
        *((f"GPU {number}", gpu_line(gpu)) for number, gpu in enumerate(frame.gpus)),
    ]


def line(frame: Frame) -> str:
    """One moment on one line, for a pipe or a file."""
    words = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(frame.at)), frame.active.partition(" ")[0]]
    held = {"held": float(frame.holding.waiting)} if frame.holding else {}
    ready = {"replicas": float(sum(member.ready for member in frame.members))} if frame.members else {}
    figures = {
        **ready,
        **held,
        "running": frame.running,
        "waiting": frame.waiting,
        "cache": frame.cache_used,
        "tokens/s": frame.tokens_per_second,
        **{f"ttft-{name}": value for name, value in frame.first_token.items()},
    }
    words += [f"{name}={number(value)}" for name, value in figures.items()]
    words += [f"gpu{n}={size(g.memory_used).replace(' ', '')},{g.busy}%" for n, g in enumerate(frame.gpus)]
    return " ".join(words)


def screen(frame: Frame) -> Table:
    """Label beside text; where that leaves no room, words are folded, none are lost."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(justify="left", style="bold", overflow="fold", max_width=11)
    table.add_column(overflow="fold")
    for label, text in rows(frame):
        table.add_row(Text(label), Text(text))
    if not frame.has_metrics:
        table.add_row("", Text(tr("no figures: /metrics needs root, and a service that serves"), style="dim"))
    return table


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def in_seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
