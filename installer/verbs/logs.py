"""monitor logs: the journal of all services sent on to another host."""

from __future__ import annotations

import click

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.report import choose
from installer.verbs.options import address, json_option, quiet_option
from installer.verbs.output import print_json

SERVERS = ("journal-remote", "elasticsearch", "loki")
EXAMPLE = "vllm-install monitor logs --to loki http://logs.example:3100"


@click.command("logs")
@click.option("--to", type=click.Choice(SERVERS), help="What kind of server that is.")
@click.argument("url", required=False)
@click.option("--auth-file", metavar="FILE", help="File of root's with the value of the Authorization header.")
@click.option("--off", is_flag=True, help="Send them no longer.")
@click.option("--send", is_flag=True, hidden=True)  # what the unit does
@json_option
@quiet_option
def logs(
    to: str | None, url: str | None, auth_file: str | None, off: bool, send: bool, as_json: bool, quiet: bool
) -> None:
    """Send the journal of all services to a server of yours, without keys and without prompts.

    Nothing more has to be installed; what the server does not take waits in the journal. Alone it says where they go.
    """
    from installer.base.host import Host
    from installer.flow.transaction import apply, shared
    from installer.monitor import logs as shipping
    from installer.monitor.ship import Task

    if send:
        _send()
        return
    if off and (to or url):
        raise UsageError(tr("--off ends it: it goes with no --to and no URL"), "vllm-install monitor logs --off")
    if bool(to) != bool(url):
        raise UsageError(tr("--to and a URL go together"), EXAMPLE)
    host, report = Host(), choose(quiet=quiet or as_json)
    if to or off:
        with shared("monitor logs", host, report):
            if to and url:
                header = shipping.authorization(auth_file, host) if auth_file else ""
                apply(list(shipping.beginning(Task(to, address(url, EXAMPLE), header), host)), host, report)
            else:
                apply(list(shipping.ending(host)), host, report)
    known = shipping.known(host)
    if as_json:
        print_json({"to": known.to if known else None, "url": known.url if known else None})
    elif known:
        click.echo(tr("logs go to {url} ({to})", url=known.url, to=known.to))
    else:
        click.echo(tr("logs stay on this host"))


def _send() -> None:
    import json

    from installer.base.host import Host
    from installer.monitor import ship as shipping
    from installer.monitor.logs import CREDENTIAL, CURSOR

    shipping.run(shipping.Task(**json.loads(CREDENTIAL.read_text())), CURSOR, Host())
