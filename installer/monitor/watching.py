"""monitor enable, disable and status, from the first check to what is left for the admin to do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import Refused
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import MONITOR
from installer.base.report import Report
from installer.monitor import key, place, scrape, textfile
from installer.monitor.place import Record, Wish
from installer.monitor.scrape import Prometheus
from installer.monitor.targets import TARGETS
from installer.units.monitoring import KEY

LATE = 60.0  # seconds after which figures that are taken every fifteen are none
PACKAGES = "prometheus prometheus-alertmanager prometheus-node-exporter"


@dataclass(frozen=True)
class Watching:
    """What programs may rely on: `monitor status --json`."""

    enabled: bool
    directory: str
    configuration: str | None  # of the Prometheus on this host
    version: tuple[int, int] | None
    scraped: bool
    alerted: bool
    collects: bool
    targets: tuple[str, ...]
    missing: tuple[str, ...]
    lines: str  # what Prometheus's configuration lacks


def enable(wish: Wish, host: Host, report: Report, *, discard_edits: bool, rotate_key: bool) -> None:
    """Twice is harmless; what was asked for last counts, and what was cut off is completed."""
    with place.alone(host, "enable"):
        before = place.recorded(host) or Record()
        place.check(wish, before, host, discard_edits=discard_edits)
        place.write(wish, before, host, report)
        place.start(host)
        key.put_in_force(host, report, anew=rotate_key)


def disable(host: Host, report: Report, *, discard_edits: bool) -> None:
    with place.alone(host, "disable"):
        record = place.recorded(host)
        if record is None:
            raise Refused(tr("this host is not watched"), "sudo vllm-install monitor enable")
        edited = next(place.edited(record, host), None)
        if edited and not discard_edits:
            raise Refused(
                tr("{path} was edited by hand", path=edited),
                tr("keep your edits elsewhere, then run the command again with --discard-edits"),
            )
        try:
            key.revoke(host, report)
        finally:  # a service that cannot be changed now keeps nothing else here
            place.remove(record, host)


def of(host: Host) -> Watching:
    record = place.recorded(host)
    found = scrape.look(host, Path(record.wish.prometheus) if record and record.wish.prometheus else None)
    collected = host.modified(textfile.TEXTFILES / textfile.NAME)
    return Watching(
        enabled=record is not None,
        directory=str(MONITOR),
        configuration=found.configuration,
        version=found.version,
        scraped=found.scrapes,
        alerted=found.has_rules,
        collects=collected is not None and time.time() - collected < LATE,
        targets=tuple(_targets(host)),
        missing=tuple(_missing(record, found, host)) if record else (),
        lines=scrape.missing_lines(found) if record else "",
    )


def _targets(host: Host) -> Iterator[str]:
    for path in host.children(TARGETS):
        for group in json.loads(host.read(path) or "[]"):
            yield from group["targets"]


def _missing(record: Record, found: Prometheus, host: Host) -> Iterator[str]:
    if found.version is None or host.owner(textfile.TEXTFILES) is None:
        command = f"sudo apt-get install {PACKAGES} && sudo vllm-install monitor enable"
        yield tr("Prometheus and node-exporter on this host (about 90 MB of memory): {command}", command=command)
    if found.why:
        yield tr("{path} cannot be read: {reason}", path=found.configuration, reason=found.why)
    if found.version is not None and not key.is_readable(host):
        yield tr("the group {name} cannot read {path}: sudo vllm-install monitor enable", name=key.READER, path=KEY)
    for path in _edited(record, host):
        yield tr("{path} was edited by hand", path=path)


def _edited(record: Record, host: Host) -> Iterator[Path]:
    try:
        yield from place.edited(record, host)
    except (Strange, OSError):
        return
