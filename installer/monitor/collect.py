"""One look at the host for node-exporter: what hangs or fails costs its own figures alone, and is said."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from installer import __version__
from installer.base.host import Host
from installer.diagnosis import scene
from installer.monitor import figures, goals, gpus, peers, telling, textfile
from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row
from installer.runtime.vllm_text import one_line
from installer.spec.records import services

WITHIN = 10.0  # seconds, of the fifteen between two looks

SOURCES: tuple[Source, ...] = (figures.SERVICES, figures.HOST, gpus.SOURCE, goals.TARGETS, telling.SOURCE, peers.SOURCE)

FAMILIES = (
    Family("vllm_install_collected_timestamp_seconds", "When these figures were collected."),
    Family("vllm_install_build_info", "Which vllm-install collects them."),
    Family("vllm_install_source_failed", "1 where figures of this kind could not be had in time."),
)


@dataclass
class _Job:
    """A source at work in a thread of its own, which is left behind if it takes too long."""

    source: Source
    moment: Moment
    found: list[Row] = field(default_factory=list)
    why: str = "it has not answered in time"

    def run(self) -> None:
        try:
            for row in self.source.rows(self.moment):
                self.found.append(row)
            self.why = ""
        except Exception as error:
            self.why = one_line(f"{type(error).__name__}: {error}")

    @property
    def labels(self) -> dict[str, str]:
        return {
            "source": self.source.name,
            **({"service": self.moment.services[0].service} if self.source.each else {}),
        }


def look(host: Host) -> Moment:
    return Moment(host, tuple(scene.look(name, host) for name in services(host)))


def text(moment: Moment, sources: tuple[Source, ...] | None = None, within: float = WITHIN) -> str:
    """What node-exporter is to say of this host now; each row says of which, as one Prometheus may read several."""
    sources = SOURCES if sources is None else sources
    name = peers.called(moment.host)
    found = [*_head(moment), *_gathered(moment, sources, within)]
    rows = [replace(row, labels={"host": name, **row.labels}) for row in found]
    return textfile.text((*FAMILIES, *(family for source in sources for family in source.families)), rows)


def _head(moment: Moment) -> Iterator[Row]:
    yield Row("vllm_install_collected_timestamp_seconds", {}, moment.now)
    yield Row("vllm_install_build_info", {"version": __version__}, 1)


def _gathered(moment: Moment, sources: tuple[Source, ...], within: float) -> Iterator[Row]:
    """All at once, so that the slowest is waited for and no sum of them."""
    jobs = [_Job(source, part) for source in sources for part in _parts(source, moment)]
    threads = [threading.Thread(target=job.run, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    end = time.monotonic() + within
    for job, thread in zip(jobs, threads, strict=True):
        thread.join(max(0.0, end - time.monotonic()))
        why = job.why  # before its rows: what comes from now on is too late
        yield from list(job.found)
        if why:
            print(f"no figures of {job.labels}: {why}", file=sys.stderr)
            yield Row("vllm_install_source_failed", job.labels, 1, note=why)


def _parts(source: Source, moment: Moment) -> Iterator[Moment]:
    if not source.each:
        yield moment
        return
    for service in moment.services:
        yield replace(moment, services=(service,))
