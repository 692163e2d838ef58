"""The one key with which Prometheus reads every service: put into force in each, and known to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import MONITOR, Layout
from installer.base.report import Report
from installer.flow import rotate
from installer.spec import keys
from installer.spec.records import services
from installer.units.keyring import unit_keys
from installer.units.monitoring import KEY, NAME, ROLE, is_own

NEXT = MONITOR / ".key.next"  # a new one, until every service knows it
READER = "prometheus"  # the group of Debian's
OVERLAP = timedelta(minutes=10)  # for which the old key works beside a new one


def put_in_force(host: Host, report: Report, *, anew: bool) -> None:
    """Services first, the file last where one is replaced: with what stands there Prometheus always gets in."""
    old = host.word(KEY)
    if not old:
        old = keys.generate(NAME)
        _write(KEY, old, host)
    _write(KEY, old, host)  # for whom it is readable may have changed
    text = old
    if anew:
        text = host.word(NEXT) or keys.generate(NAME)
        host.write(NEXT, text + "\n", 0o600)
    failed = _for_each(host, report, lambda service: _give(service, text, host, report))
    if anew:
        _write(KEY, text, host)
        host.remove(NEXT)
    if failed:
        raise failed


def _give(service: str, text: str, host: Host, report: Report) -> None:
    digest = keys.digest(text)
    held = unit_keys(host, Layout(service))
    if not any(key.name == NAME and key.digest == digest and not key.is_over for key in held):
        wanted = rotate.Rotation(NAME, text, ROLE, OVERLAP)
        rotate.set_key(service, wanted, host, report, lambda _: None)


def revoke(host: Host, report: Report) -> None:
    """The file goes first with all that is removed; a service that says nothing has lost it all the same."""
    failed = _for_each(host, report, lambda service: _take(service, host, report))
    if failed:
        raise failed


def _take(service: str, host: Host, report: Report) -> None:
    for key in unit_keys(host, Layout(service)):
        if is_own(key):
            rotate.revoke_key(service, key.name, host, report)


def _for_each(host: Host, report: Report, do: Callable[[str], None]) -> InstallError | None:
    """One that cannot take a key keeps it from no other; the first that could not is what the command ends with."""
    first: InstallError | None = None
    for service in services(host):
        try:
            do(service)
        except InstallError as error:
            report.warn(tr("{what}: {why}", what=service, why=error.message))
            first = first or error
    return first


def reader(host: Host) -> int | None:
    """The group that Prometheus runs as; None where there is none, and the key is root's alone."""
    for line in (host.read(Path("/etc/group")) or "").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split(":")[1:2]
        if name == READER and number and number[0].isdecimal():
            return int(number[0])
    return None


def _write(path: Path, text: str, host: Host) -> None:
    group = reader(host)
    if group is None:
        host.write(path, text + "\n", 0o600)
    else:
        host.write(path, text + "\n", 0o640, group)


def is_readable(host: Host) -> bool:
    """By the group of Prometheus, and by nobody else."""
    return host.group(KEY) == reader(host) and host.mode(KEY) == 0o640
