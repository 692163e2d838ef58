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
from installer.monitor import key, peers, place, scrape, textfile
from installer.monitor.place import Record, Wish
from installer.monitor.scrape import Prometheus
from installer.monitor.targets import TARGETS
from installer.spec.records import services
from installer.units.monitoring import KEY

LATE = 60.0  # seconds after which figures that are taken every fifteen are none
EXPORTER = "prometheus-node-exporter"
PACKAGES = f"prometheus prometheus-alertmanager {EXPORTER}"


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
    hosts: tuple[str, ...]  # others of a service, whose figures are read from here as well
    apart: tuple[str, ...]  # others that are not watched together with this one
    missing: tuple[str, ...]
    lines: str  # what Prometheus's configuration lacks


def enable(wish: Wish, host: Host, report: Report, *, discard_edits: bool, rotate_key: bool) -> None:
    """Twice is harmless; what was asked for last counts, and what was cut off is completed."""
    with place.alone(host, "enable"):
        before = place.recorded(host) or Record()
        place.check(wish, before, host, discard_edits=discard_edits)
        place.write(wish, before, host, report)
        place.start(host)
        old = host.word(KEY)
        key.put_in_force(host, report, anew=rotate_key)
        if together(host) and host.word(KEY) != old:
            report.warn(
                tr(
                    "the other hosts know the old key; to tell them the new one: {command}",
                    command="sudo vllm-install monitor enable --all-hosts",
                )
            )  # fmt: skip


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
    hosts = together(host) if record else ()
    apart = [peer.name for service in services(host) for peer in peers.others(host, service) if peer.name not in hosts]
    return Watching(
        enabled=record is not None,
        directory=str(MONITOR),
        configuration=found.configuration,
        version=found.version,
        scraped=found.scrapes,
        alerted=found.has_rules,
        collects=collected is not None and time.time() - collected < LATE,
        targets=tuple(_targets(host)),
        hosts=hosts,
        apart=tuple(dict.fromkeys(apart)),
        missing=tuple(_missing(record, found, host)) if record else (),
        lines=scrape.missing_lines(found) if record and not _is_read_elsewhere(found, host) else "",
    )


def together(host: Host) -> tuple[str, ...]:
    """The other hosts that are watched together with this one."""
    found = (peer.name for service in services(host) for peer in peers.watched(host, service))
    return tuple(dict.fromkeys(found))


def _is_read_elsewhere(found: Prometheus, host: Host) -> bool:
    """Whether the Prometheus of another host is enough."""
    return found.version is None and bool(together(host))


def _targets(host: Host) -> Iterator[str]:
    for path in host.children(TARGETS):
        for group in json.loads(host.read(path) or "[]"):
            yield from (f"{target}{group['labels'].get('__metrics_path__', '')}" for target in group["targets"])


def _missing(record: Record, found: Prometheus, host: Host) -> Iterator[str]:
    has_exporter = host.owner(textfile.TEXTFILES) is not None
    if _is_read_elsewhere(found, host) and not has_exporter:
        yield tr("node-exporter on this host: {command}", command=f"sudo apt-get install {EXPORTER}")
    elif not has_exporter or (found.version is None and not together(host)):
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
