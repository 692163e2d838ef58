"""monitor: what Prometheus and Grafana need to watch this host."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from installer.base.language import tr
from installer.base.report import choose
from installer.verbs.all_hosts import OnAllHosts
from installer.verbs.options import address, discard_option, json_option, quiet_option
from installer.verbs.output import print_json

if TYPE_CHECKING:
    from installer.monitor.watching import Watching


class _Together(OnAllHosts):
    """On all hosts, which then know whose Prometheus reads them."""

    def afterwards(self) -> None:
        from installer.base.host import Host
        from installer.group.watched import introduce_all

        introduce_all(Host(), choose(quiet=False))


@click.group()
def monitor() -> None:
    """Let Prometheus, Grafana and others watch all services of this host, or of all hosts of a service."""


@monitor.command(cls=_Together)
@click.option("--prometheus", metavar="DIR", help="Where prometheus.yml lies [default: /etc/prometheus]")
@click.option("--grafana", metavar="DIR", help="Grafana's provisioning directory, which is told of our dashboards.")
@click.option("--runbooks", metavar="URL", help="Where docs/alerts.md is read, to which each alert links.")
@click.option("--rotate-key", is_flag=True, help="Make a new key; the old one works 10 minutes longer.")
@discard_option
@json_option
@quiet_option
def enable(
    prometheus: str | None,
    grafana: str | None,
    runbooks: str | None,
    rotate_key: bool,
    discard_edits: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write scrape targets, alert rules and dashboards for all services, and a key for Prometheus alone."""
    from installer.base.host import Host
    from installer.monitor import watching
    from installer.monitor.place import Wish
    from installer.monitor.rules import RUNBOOKS

    host, report = Host(), choose(quiet=quiet or as_json)
    example = "vllm-install monitor enable --runbooks https://wiki.example/alerts"
    wish = Wish(prometheus, grafana, address(runbooks, example) if runbooks else RUNBOOKS)
    watching.enable(wish, host, report, discard_edits=discard_edits, rotate_key=rotate_key)
    _show(watching.of(host), as_json)


@monitor.command(cls=_Together)
@discard_option
@quiet_option
def disable(discard_edits: bool, quiet: bool) -> None:
    """Remove all that enable made, and revoke the key."""
    from installer.base.host import Host
    from installer.monitor import watching

    watching.disable(Host(), choose(quiet=quiet), discard_edits=discard_edits)
    click.echo(tr("nobody is told of this host any more; lines in Prometheus's own configuration are yours to remove"))


@monitor.command(cls=OnAllHosts)
@json_option
def status(as_json: bool) -> None:
    """Show whether this host is watched, and what is missing for it."""
    from installer.base.host import Host
    from installer.monitor import watching

    _show(watching.of(Host()), as_json)


@monitor.command()
@click.option("--print", "only_print", is_flag=True, help="Show them instead.")
def collect(only_print: bool) -> None:
    """Write the figures of this host for node-exporter, as the timer does every 15 seconds."""
    from installer.base.host import Host
    from installer.monitor import collect as collector
    from installer.monitor import targets, textfile

    moment = collector.look(Host())
    if only_print:
        click.echo(collector.text(moment), nl=False)
    else:
        targets.bring_up_to_date(moment)
        textfile.place(collector.text(moment), moment.host)


def _show(found: Watching, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    click.echo(tr("files: {path}", path=found.directory) if found.enabled else tr("this host is not watched"))
    if found.enabled:
        state = tr("in time") if found.collects else tr("not collected")
        click.echo(tr("figures: {state}; engines to scrape: {count}", state=state, count=len(found.targets)))
    if found.hosts:
        click.echo(tr("other hosts that are read from here: {hosts}", hosts=", ".join(found.hosts)))
    if found.enabled and found.apart:
        names, command = ", ".join(found.apart), "sudo vllm-install monitor enable --all-hosts"
        click.echo(tr("not read from here: {hosts}; for that: {command}", hosts=names, command=command))
    for missing in found.missing:
        click.echo(tr("missing: {what}", what=missing))
    if found.lines:
        where = found.configuration or "prometheus.yml"
        click.echo(tr("add to {path}, then reload Prometheus:", path=where))
        click.echo(found.lines, nl=False)
