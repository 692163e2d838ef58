"""usage, keys limit: what each key has used, and what it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from installer.base.errors import Refused, UsageError
from installer.base.language import tr
from installer.base.report import choose
from installer.runtime.vllm_limits import PRIORITIES
from installer.spec.settings import check_service
from installer.verbs.all_hosts import all_hosts_option, heard
from installer.verbs.options import below_service_option, json_option, quiet_option, service_word
from installer.verbs.output import as_plain, print_json
from installer.verbs.over import OverHosts

if TYPE_CHECKING:
    from installer.look.usage import Usage


@click.command()
@service_word
@all_hosts_option
@click.option("--since", metavar="TIME", default="30d", show_default=True, help="How far back: 7d, 36h; 1d is today.")
@click.option("--key", metavar="NAME", help="This key alone, day by day.")
@json_option
def usage(service: str, all_hosts: bool, since: str, key: str | None, as_json: bool) -> None:
    """Show what each API key has used: requests, tokens, errors. Days are those of UTC."""
    from installer.base.host import Host
    from installer.look import usage as view
    from installer.spec import keys

    check_service(service)
    seconds = keys.in_seconds(since)
    found = _of_all(service, since, key) if all_hosts else view.usage(service, Host(), seconds, key)
    if as_json:
        print_json(as_plain(found))
        return
    for line in view.lines(found, by_day=key is not None) if found.keys else ():
        click.echo(line)
    if not found.keys:
        click.echo(tr("no key of {service} was used in that time", service=service))
    if not found.tokens_are_counted:
        click.echo(tr("tokens are not known: this vLLM is not one in which they can be counted"), err=True)


def _of_all(service: str, since: str, key: str | None) -> Usage:
    """A sum: a request is counted on the host that answered it."""
    import json

    from installer.look import usage as view
    from installer.spec.record import UNREADABLE, read_as

    words = ["usage", "--service", service, "--since", since, "--json", *(["--key", key] if key else [])]
    found = heard(service, words)
    try:
        return view.together(read_as(view.Usage, json.loads(ran.out)) for ran in found.ran.values())
    except UNREADABLE:
        raise Refused(tr("a host says what nobody understands")) from None


@click.command("limit", cls=OverHosts)
@click.argument("name")
@click.option("--concurrent", metavar="N", help="Requests at once, or none.")
@click.option("--requests", metavar="N/min", help="Requests in any minute, or none.")
@click.option("--tokens", metavar="N/min", help="Tokens in any minute, prompts and answers, as 100k/min; or none.")
@click.option("--budget", metavar="N/month", help="Tokens in a calendar month of UTC, as 5M/month; or none.")
@click.option("--priority", type=click.Choice([*PRIORITIES]), help="Whose requests come first (SCHEDULING=priority).")
@click.option("--none", "lift", is_flag=True, help="Lift every limit of the key.")
@below_service_option
@json_option
@quiet_option
@click.pass_obj
def limit(
    chosen: str, /, name: str, lift: bool, service: str | None, as_json: bool, quiet: bool, **options: str | None
) -> None:
    """Limit what a key may use; in force within a second, nothing is restarted. k, M and G are powers of 1000."""
    from installer.base.host import Host
    from installer.flow import limit as flow
    from installer.spec import limits

    given = {option: value for option, value in options.items() if value is not None}
    if bool(given) == lift:
        raise UsageError(
            tr("--none lifts every limit, and goes with no other") if lift else tr("no limit is given"),
            tr("for example: {example}", example=f"vllm-install keys limit {name} --requests 600/min --concurrent 8"),
        )
    service = check_service(service or chosen)
    now = flow.change(service, name, None if lift else given, Host(), choose(quiet=quiet or as_json))
    if as_json:
        print_json({"service": service, "name": name, "limit": limits.to_json(now)})
    elif said := limits.in_words(now):
        click.echo(tr("{service}: the key {name} is limited: {limits}", service=service, name=name, limits=said))
    else:
        click.echo(tr("{service}: the key {name} has no limits", service=service, name=name))
