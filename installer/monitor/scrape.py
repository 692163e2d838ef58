"""How Prometheus learns of us: what it is to read, and the lines of its own configuration that lead there."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from installer import __version__
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import MONITOR
from installer.base.templates import template

SCRAPE, RULES = MONITOR / "scrape.yml", MONITOR / "rules.yml"
DEBIAN = Path("/etc/prometheus")
CONFIGURATION = "prometheus.yml"
SCRAPE_FILES_SINCE = (2, 43)  # below it a job stands in the configuration itself
JOBS = ("vllm-install", "vllm-install-hosts")


@dataclass(frozen=True)
class Prometheus:
    """The one on this host, as far as it can be seen from outside."""

    configuration: str | None = None  # the path of its configuration
    version: tuple[int, int] | None = None
    lacks: tuple[str, ...] = JOBS  # jobs of ours to which its configuration does not lead
    has_rules: bool = False
    why: str = ""  # it cannot be told what stands there

    @property
    def scrapes(self) -> bool:
        return not self.lacks

    @property
    def takes_scrape_files(self) -> bool:
        return self.version is None or self.version >= SCRAPE_FILES_SINCE


def scrape_text() -> str:
    return template("monitor/scrape.yml.j2").render(version=__version__, directory=MONITOR, jobs=JOBS)


def missing_lines(found: Prometheus) -> str:
    """What its configuration lacks, as YAML to be added there."""
    job = template("monitor/job.yml.j2").render(directory=MONITOR, jobs=found.lacks)
    reading = f"scrape_config_files: [{SCRAPE}]\n" if found.takes_scrape_files else f"scrape_configs:\n{job}"
    rules = "" if found.has_rules else f"rule_files: [{RULES}]\n"
    return rules + ("" if found.scrapes else reading)


def look(host: Host, directory: Path | None) -> Prometheus:
    """A directory that somebody names has to hold a configuration; without one, Debian's place is looked at."""
    path = (directory or DEBIAN) / CONFIGURATION
    if not host.exists(path):
        if directory:
            raise Refused(
                tr("no Prometheus has its configuration in {path}", path=directory),
                tr("name the directory of its {name}: --prometheus DIR", name=CONFIGURATION),
            )
        return Prometheus(version=_version(host))
    return _read(host, path, _version(host))


def _read(host: Host, path: Path, version: tuple[int, int] | None) -> Prometheus:
    try:
        found = yaml.safe_load(host.read(path) or "")
    except (yaml.YAMLError, OSError, Refused, RecursionError) as error:
        return Prometheus(str(path), version, why=str(error).splitlines()[0])
    told = found if isinstance(found, dict) else {}
    has_rules = _leads_to(told.get("rule_files"), RULES, path.parent)
    return Prometheus(str(path), version, _lacks(told, path.parent), has_rules)


def _lacks(told: dict[str, object], base: Path) -> tuple[str, ...]:
    jobs = told.get("scrape_configs")
    named = [job.get("job_name") for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []
    leads = _leads_to(told.get("scrape_config_files"), SCRAPE, base)
    return () if leads else tuple(job for job in JOBS if job not in named)


def _leads_to(patterns: object, wanted: Path, base: Path) -> bool:
    found = patterns if isinstance(patterns, list) else []
    return any(fnmatch.fnmatchcase(str(wanted), str(base / str(pattern))) for pattern in found)


def _version(host: Host) -> tuple[int, int] | None:
    match = re.search(r"version (\d+)\.(\d+)", host.output("prometheus", "--version"))
    return (int(match[1]), int(match[2])) if match else None
