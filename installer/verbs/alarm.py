"""alarm: who is told what becomes of a service, without Prometheus."""

from __future__ import annotations

import shlex

import click

from installer.base.errors import InstallError
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import choose
from installer.spec.settings import check_service
from installer.verbs.options import json_option, quiet_option, service_word
from installer.verbs.output import as_plain, print_json


@click.command()
@service_word
@click.option("--test", is_flag=True, help="Send a message, and say whether it was taken.")
@click.option("--look", is_flag=True, hidden=True)  # what the timer and a failure do
@json_option
@quiet_option
def alarm(service: str, test: bool, look: bool, as_json: bool, quiet: bool) -> None:
    """Show who is told of a service's failures, changes and keys about to expire.

    NOTIFY_COMMAND and NOTIFY_URL say whom to tell: vllm-install set NOTIFY_URL=https://alerts.example/hook
    """
    from installer.base.host import Host
    from installer.flow import alarm as flow

    host, report = Host(), choose(quiet=quiet or as_json)
    if look:
        flow.look(check_service(service), host, report)
        return
    found = flow.of(check_service(service), host)
    if test:
        _test(service)
        return
    if as_json:
        print_json(as_plain(found))
        return
    if found.command:
        click.echo(tr("command: {command}", command=shlex.join(found.command)))
    if found.url:
        click.echo(tr("URL: {url} ({form})", url=found.url, form=found.form))
    click.echo(tr("messages that were not taken: {count}", count=found.failures))
    if found.waits:
        click.echo(tr("too many messages within an hour: the next one waits"))


def _test(service: str) -> None:
    from installer.base.host import Host
    from installer.flow import alarm as flow
    from installer.runtime.vllm_notify import PARTLY, TAKEN
    from installer.units.alarm import sender

    outcome = flow.test(service, Host(), choose(quiet=True))
    if outcome != TAKEN:
        raise InstallError(
            tr("one of two did not take the message") if outcome == PARTLY else tr("nobody took the message"),
            f"sudo journalctl -u {sender(Layout(service))} -n 20",
        )
    click.echo(tr("the message was taken"))
