"""adopt, eject: a service comes from somebody's own hands, and goes back there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from installer.base.errors import Exit
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import choose
from installer.spec.asked import assigned
from installer.spec.settings import check_service
from installer.verbs.options import (
    agree,
    dry_run_option,
    json_option,
    new_service_option,
    quiet_option,
    service_word,
    yes_option,
)
from installer.verbs.output import print_changes, print_deployed, print_json

if TYPE_CHECKING:
    from installer.base.changes import Change
    from installer.flow.adopt import Proposal
    from installer.flow.deploy import Deployed


@click.command()
@click.argument("source")
@click.argument("assignments", nargs=-1, metavar="[NAME=VALUE...]")
@new_service_option
@click.option("--compose-service", metavar="NAME", help="Which service of a compose file.")
@click.option("--new-key", is_flag=True, help="Make a new API key instead of taking over the old one.")
@click.option("--yes", "-y", is_flag=True, help="Take it over without asking.")
@json_option
@quiet_option
@click.pass_context
def adopt(
    context: click.Context, source: str, assignments: tuple[str, ...], service: str, compose_service: str | None,
    new_key: bool, yes: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Take over a vLLM set up by hand: a systemd unit, quadlet, script, compose file or manifest, or - for a line.

    Shows what it becomes and what clients will notice; takes its place when you agree, proved or undone.
    NAME=VALUE chooses a setting yourself.
    """
    from installer.base.changes import told
    from installer.base.host import Host
    from installer.flow import adopt as view
    from installer.flow import deploy as flow
    from installer.spec import settings_file
    from installer.spec.records import check_unmanaged

    host, report = Host(), choose(quiet=quiet or as_json)
    if context.get_parameter_source("service") is click.core.ParameterSource.DEFAULT:
        service = view.service_of(source, host) or service
    path = Layout(check_service(service)).settings_file
    wishes = assigned(assignments)
    flow.make_way(service, host, report)
    file = settings_file.parse(host.read(path) or "", path)
    old = view.find(source, host, compose_service)
    check_unmanaged(host, Layout(service))
    proposal = view.propose(old, service, file, wishes, host, new_key=new_key)
    if not as_json:
        _print_proposal(proposal)
    changes = flow.plan(proposal.request, host, report).changes
    if not as_json:
        click.echo(f"\n{proposal.difference(changes)}\n")
        for said in () if yes else filter(None, told(changes)):
            click.echo(said.describe())
    elif not yes:
        print_json({**_as_data(proposal, changes), "taken_over": False, "api_key": None})
        sys.exit(Exit.REFUSED)  # where a program reads, nobody is asked
    agree(tr("Take it over?"), (), yes=yes)

    def show(done: Deployed) -> None:
        if as_json:
            print_json({**_as_data(proposal, list(done.changes)), "taken_over": True, "api_key": done.new_key})
        else:
            print_deployed(done)
        sys.stdout.flush()

    flow.adopt(proposal.request, host, report, show)


def _print_proposal(proposal: Proposal) -> None:
    for name, value in proposal.settings.items():
        click.echo(f"{name}={value}")
    for name, value in proposal.adoption.environment:
        click.echo(tr("{name}={value}  (a variable of the service, in a drop-in)", name=name, value=value))
    for title, lines in (
        (tr("For clients"), proposal.adoption.clients),
        (tr("Not carried over"), proposal.adoption.notes),
    ):
        if lines:
            click.echo("\n" + tr("{title}:", title=title))
        for line in lines:
            click.echo(f"  - {line}")


def _as_data(proposal: Proposal, changes: list[Change]) -> dict[str, object]:
    adoption = proposal.adoption
    return {
        "service": adoption.settings.service,
        "unit": proposal.old.unit,
        "settings": proposal.settings,
        "environment": dict(adoption.environment),
        "clients": list(adoption.clients),
        "notes": list(adoption.notes),
        "difference": proposal.difference(changes),
        "changes": [change.to_json() for change in changes],
    }


@click.command()
@service_word
@dry_run_option
@yes_option
@json_option
@quiet_option
def eject(service: str, dry_run: bool, yes: bool, as_json: bool, quiet: bool) -> None:
    """Let a service go: it serves on, its unit is yours, and vllm-install forgets it."""
    from installer.base.host import Host
    from installer.flow import eject as flow

    host = Host()
    changes = flow.plan(check_service(service), host)
    if not dry_run:
        agree(tr("Let it go?"), changes, yes=yes)
        changes = flow.eject(service, host, choose(quiet=quiet or as_json))
    if as_json or dry_run:
        print_changes(service, changes, as_json)
    else:
        click.echo(tr("{service} serves on, and its unit is yours: systemctl cat {service}", service=service))
