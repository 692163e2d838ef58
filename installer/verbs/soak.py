"""soak: how a change does that is watched on after its proof."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING

import click

from installer.base.errors import Exit, Interrupted
from installer.base.language import tr
from installer.base.report import choose
from installer.spec.settings import check_service
from installer.verbs.options import json_option, quiet_option, service_word
from installer.verbs.output import as_plain, print_json

if TYPE_CHECKING:
    from installer.spec.soak import Soak


@click.command()
@service_word
@click.option("--wait", is_flag=True, help="Wait until it is over.")
@click.option("--end", is_flag=True, help="Confirm the change now.")
@click.option("--look", is_flag=True, hidden=True)  # what the timer does
@json_option
@quiet_option
def soak(service: str, wait: bool, end: bool, look: bool, as_json: bool, quiet: bool) -> None:
    """Show how the last change does that was made with --soak; if it turns bad, it goes back by itself.

    Exit status of --wait: 0, the change was confirmed; 6, it was rolled back; 7, it could not be.
    """
    from installer.base.host import Host
    from installer.flow import soak as flow

    host, report = Host(), choose(quiet=quiet or as_json)
    if look:
        flow.look(check_service(service), host, report)
        return
    if end:
        flow.end(check_service(service), host, report)
    found = flow.of(check_service(service), host)
    if wait and found.is_running:
        try:
            report.note(_lines(found)[0])
            found = deque(flow.wait(service, host), maxlen=1).pop()
        except Interrupted as interrupted:
            click.echo(tr("it goes on without this command"), err=True)
            sys.exit(interrupted.exit_code)
    _show(service, found, as_json)
    sys.exit(flow.verdict(found) if wait else Exit.DONE)


def _show(service: str, found: Soak, as_json: bool) -> None:
    from installer.look import soak as looks

    if as_json:
        print_json({"service": service, **as_plain(looks.view(found))})
    else:
        click.echo("\n".join(_lines(found)))


def _lines(found: Soak) -> list[str]:
    from installer.look import soak as looks

    return looks.lines(looks.view(found))
