"""monitor enable and disable: what lies on the host for those who watch it; all of it is recorded, and goes again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from installer import __version__
from installer.base.assets import DATA
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import LOCKS, MONITOR, UNITS
from installer.base.report import Report
from installer.base.templates import template
from installer.base.trust import of_others
from installer.monitor import rules, scrape, textfile
from installer.monitor.targets import TARGETS
from installer.spec.state import text_digest
from installer.units.monitoring import KEY
from installer.units.soaking import check_tool, environment_of_tool
from installer.units.syntax import FILTERS

LOCK = LOCKS / "monitor"
RECORD = MONITOR / "settings"
DASHBOARDS = MONITOR / "dashboards"
SERVICE, TIMER = UNITS / "vllm-install-figures.service", UNITS / "vllm-install-figures.timer"
PROVIDER = Path("dashboards") / "vllm-install.yaml"  # below Grafana's directory for provisioning


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    prometheus: str | None = None  # the directory of its configuration
    grafana: str | None = None  # its directory for provisioning
    runbooks: str = rules.RUNBOOKS  # where whoever gets an alert finds what it means


@dataclass(frozen=True)
class Record:
    wish: Wish = Wish()
    written: dict[str, str] = field(default_factory=dict)  # path -> digest of what we wrote there


def alone(host: Host, verb: str) -> AbstractContextManager[None]:
    return host.lock(LOCK, f"vllm-install monitor {verb}")


def recorded(host: Host) -> Record | None:
    """None while nothing was enabled."""
    text = host.read(RECORD)
    if text is None:
        return None
    try:
        told = json.loads(text)
        return Record(Wish(**told["wish"]), {str(path): str(digest) for path, digest in told["written"].items()})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refused(
            tr("{path} cannot be read: {reason}", path=RECORD, reason=tr("it is no record of ours")),
            tr("move it away and run the command again: mv {path} /root/", path=RECORD),
        ) from None


def texts(wish: Wish) -> dict[Path, str]:
    """Every file but the key, the record and the targets, which change by themselves."""
    words = {"version": __version__, "directory": MONITOR, "textfiles": textfile.TEXTFILES}
    command = [sys.executable, "-m", "installer", "monitor", "collect"]
    unit = template("monitor/figures.service.j2", FILTERS)
    return {
        scrape.SCRAPE: scrape.scrape_text(),
        scrape.RULES: rules.rules(runbooks=wish.runbooks),
        **{DASHBOARDS / path.name: path.read_text() for path in sorted((DATA / "dashboards").glob("*.json"))},
        **_provider(wish),
        SERVICE: unit.render(**words, command=command, environment=environment_of_tool()),
        TIMER: template("monitor/figures.timer.j2").render(**words),
    }


def _provider(wish: Wish) -> dict[Path, str]:
    if wish.grafana is None:
        return {}
    return {Path(wish.grafana) / PROVIDER: template("monitor/provider.yaml.j2").render(
        version=__version__, dashboards=DASHBOARDS
    )}  # fmt: skip


def check(wish: Wish, before: Record, host: Host, *, discard_edits: bool) -> None:
    """Refuse what is not ours to overwrite, and directories that others could change below us."""
    check_tool()
    if wish.prometheus:
        scrape.look(host, Path(wish.prometheus))
    if wish.grafana:
        _check_roots_own(host, Path(wish.grafana))
    for path in texts(wish):
        _check_ours(path, before, host, discard_edits=discard_edits)


def _check_roots_own(host: Host, directory: Path) -> None:
    """Whoever can change a directory decides what root writes there."""
    for part in (directory / PROVIDER.parent, directory, *directory.parents):
        if not host.at(part).is_dir() or host.at(part).is_symlink():
            raise Refused(tr("{path} is no directory", path=part), tr("name Grafana's provisioning directory"))
    if found := of_others(host, directory / PROVIDER.parent):
        raise Refused(
            tr("{path} can be changed by others than root", path=found),
            tr("without --grafana, point Grafana at {path} yourself", path=DASHBOARDS),
        )


def _check_ours(path: Path, before: Record, host: Host, *, discard_edits: bool) -> None:
    now = host.read(path)
    known = before.written.get(str(path))
    if now is None or text_digest(now) == known:
        return
    if known is None:
        raise Refused(
            tr("{path} is there already, and not made by vllm-install", path=path),
            tr("move it away: mv {where} {where}.before", where=path),
        )
    if not discard_edits:
        raise Refused(
            tr("{path} was edited by hand", path=path),
            tr("keep your edits elsewhere, then run the command again with --discard-edits"),
        )


def write(wish: Wish, before: Record, host: Host, report: Report) -> None:
    """The record first, with what was there before and what is to be: so a cut leaves nothing unknown."""
    wanted = texts(wish)
    digests = {str(path): text_digest(text) for path, text in wanted.items()}
    gone = [Path(path) for path in before.written if path not in digests]
    _record(Record(wish, digests), host)
    for path in gone:
        host.remove(path)
    host.make_dir(TARGETS)
    for path, text in wanted.items():
        if host.read(path) != text:
            report.note(tr("write {path}", path=path))
            host.write(path, text)


def _record(record: Record, host: Host) -> None:
    host.write(RECORD, json.dumps(asdict(record), indent=1) + "\n")


def start(host: Host) -> None:
    host.systemctl("daemon-reload")
    host.systemctl("enable", TIMER.name)
    host.systemctl("start", TIMER.name)


def edited(record: Record, host: Host) -> Iterator[Path]:
    for path, digest in record.written.items():
        now = host.read(Path(path))
        if now is not None and text_digest(now) != digest:
            yield Path(path)


def remove(record: Record, host: Host) -> None:
    """The timer first, so that nothing comes back; the record last, so that a cut can be gone on with."""
    if host.exists(TIMER):
        host.systemctl("disable", "--now", TIMER.name, check=False)
        host.systemctl("stop", SERVICE.name, check=False)
    for path in record.written:
        host.remove(Path(path))
    host.systemctl("daemon-reload")
    textfile.take_away(host)
    for target in host.children(TARGETS):
        if target.suffix in (".json", ".yml"):
            host.remove(target)
    host.remove(KEY)
    host.remove(RECORD)
    for directory in (TARGETS, DASHBOARDS, MONITOR, MONITOR.parent):
        host.remove_empty_dir(directory)
