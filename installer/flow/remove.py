"""Taking away what was made: all of one service, or the programs that nothing needs any more."""

from __future__ import annotations

from installer.base.changes import Change
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import steps
from installer.flow.transaction import ANY, apply, changing
from installer.spec.records import check_records, managed, services
from installer.units import keyring


def plan_uninstall(service: str, host: Host, *, purge: bool) -> list[Change]:
    layout = Layout(service)
    state = managed(host, layout, to_look=True)
    return list(steps.removal(layout, state, host, weights=purge, engine=True))


def uninstall(service: str, host: Host, report: Report, *, purge: bool) -> list[Change]:
    """Remove what we made for one service; interrupted, it is simply run again."""
    layout = Layout(service)
    with changing(layout, "uninstall", host):
        with keyring.alone(host, layout, report, "uninstall"):
            changes = plan_uninstall(service, host, purge=purge)
            apply(changes, host, report)
        return changes


def plan_prune(host: Host) -> list[Change]:
    check_records(host)
    return list(steps.unused_programs(ANY, [Layout(name) for name in services(host)], host))


def prune(host: Host, report: Report) -> list[Change]:
    """Remove engines and runtimes that nothing on this host can come back to."""
    changes = plan_prune(host)
    apply(changes, host, report)
    return changes
