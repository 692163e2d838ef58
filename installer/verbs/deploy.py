"""deploy, plan, uninstall."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from installer.base.errors import Exit, Interrupted, Refused, UsageError, explain
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import choose
from installer.spec import values
from installer.spec.settings import Settings, check_service, named
from installer.verbs.options import (
    agree,
    bundle_from,
    bundle_options,
    dry_run_option,
    json_option,
    key_choice,
    new_service_option,
    quiet_option,
    resolve_option,
    service_word,
    setting_options,
    settings_from,
    yes_option,
)
from installer.verbs.output import print_changes, print_failed, show_deployed
from installer.verbs.over import OverHosts, show_staged, stage_option, with_offers

FOR_ALL = ("every", "resolve", "discard_edits", "dry_run", "as_json", "quiet")

if TYPE_CHECKING:
    from installer.airgap.bundle_file import Bundle
    from installer.base.host import Host
    from installer.base.report import Report
    from installer.flow.request import Request


def _network(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    try:
        return None if text is None else values.network(text)
    except ValueError as error:
        raise UsageError(
            tr("--peer-network: {why}", why=error), "vllm-install deploy --peer-network 10.0.0.0/24"
        ) from None


def _host_names(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    try:
        return () if text is None else values.host_names(text)
    except ValueError as error:
        raise UsageError(tr("--hosts: {why}", why=error), "vllm-install deploy --hosts gpu1,gpu2") from None


@click.command(cls=OverHosts)
@new_service_option
@click.option(
    "--hosts",
    metavar="NAMES",
    callback=_host_names,
    help="Deploy to these hosts over ssh, commas between; changes are then made on all of them, or on none.",
)
@click.option(
    "--mode", type=click.Choice([values.REPLICAS, values.SPAN]), help="Each host serves by itself, or all one model."
)
@click.option("--peer-network", metavar="NET", callback=_network, help="By which the hosts reach each other.")
@setting_options
@bundle_options
@resolve_option
@click.option("--all", "every", is_flag=True, help="Every service of this host, each by its own settings file.")
@stage_option
@dry_run_option
@json_option
@quiet_option
def deploy(
    service: str, hosts: tuple[str, ...], mode: str | None, peer_network: str | None, every: bool, stage: str | None,
    dry_run: bool, as_json: bool, quiet: bool, **options: object,
) -> None:  # fmt: skip
    """Converge the host to the settings asked for.

    Settings come from the defaults, /etc/vllm-install/NAME.env, the environment and the options, the last one
    wins; they are kept in that file. Run twice, the second run changes nothing.
    """
    from installer.base.host import Host

    host, report = Host(), choose(quiet=quiet or as_json)
    if every:
        _check_for_all(click.get_current_context())
        sys.exit(_deploy_all(options, host, report, dry_run=dry_run, as_json=as_json))
    if mode or peer_network:
        raise UsageError(tr("--mode and --peer-network are for several hosts"), "vllm-install deploy --hosts gpu1,gpu2")
    bundle = bundle_from(options, host, report)
    settings = settings_from(service, host, options, os.environ, bundle)
    request = with_offers(_request("deploy", settings, options, bundle))
    if stage:
        show_staged(request, stage, host, report)
    else:
        _deploy(request, host, report, dry_run=dry_run, as_json=as_json)


def _deploy(request: Request, host: Host, report: Report, *, dry_run: bool, as_json: bool) -> None:
    from installer.flow import deploy as flow

    service = request.settings.service
    if dry_run:
        planned = flow.plan(request, host, report)
        print_changes(service, planned.changes, as_json, planned.want.target.gpus)
    else:
        flow.deploy(request, host, report, show_deployed(service, as_json))


def _check_for_all(context: click.Context) -> None:
    """What is one service's to say, each of them says in its own file; the environment would say it to all."""
    given = click.core.ParameterSource.COMMANDLINE
    for option in context.command.params:
        if context.get_parameter_source(option.name or "") is given and option.name not in FOR_ALL:
            raise UsageError(
                tr("{option} is for one service, and --all is about every one", option=_typed(option)),
                tr("change one of them first: vllm-install set NAME=VALUE --service SERVICE"),
            )


def _typed(option: click.Parameter) -> str:
    return option.opts[0] if isinstance(option, click.Option) else named(str(option.name))


def _deploy_all(options: Mapping[str, object], host: Host, report: Report, *, dry_run: bool, as_json: bool) -> int:
    """One after the other, and none suffers from another's fault. The worst of their exit codes."""
    from installer.group.change import group_of
    from installer.spec.records import services

    names, worst = services(host), Exit.DONE
    if not names:
        click.echo(tr("no services yet; make one with: sudo vllm-install deploy"), err=True)
    for service in names:
        if not as_json:
            click.echo(tr("{title}:", title=service))
        try:
            if group_of(host, service):
                raise Refused(
                    tr("{service} is of a group of hosts, which change together", service=service),
                    f"sudo vllm-install deploy --service {service}",
                )
            request = _request("deploy", settings_from(service, host, options, {}), options, None)
            _deploy(request, host, report, dry_run=dry_run, as_json=as_json)
        except Exception as error:
            known = None if isinstance(error, Interrupted) else explain(error)
            if known is None:
                raise
            print_failed(service, known, as_json)
            worst = max(worst, known.exit_code)
        sys.stdout.flush()
    return worst


@click.command()
@new_service_option
@setting_options
@bundle_options
@resolve_option
@json_option
def plan(service: str, as_json: bool, **options: object) -> None:
    """Show every change that deploy would make, and make none."""
    from installer.base.host import Host
    from installer.flow import deploy as flow

    host, report = Host(), choose(quiet=as_json)
    bundle = bundle_from(options, host, report)
    settings = settings_from(service, host, options, os.environ, bundle)
    request = _request("plan", settings, options, bundle)
    planned = flow.plan(request, host, report)
    print_changes(service, planned.changes, as_json, planned.want.target.gpus)


def _request(verb: str, settings: Settings, options: Mapping[str, object], bundle: Bundle | None) -> Request:
    from installer.flow.request import Request

    return Request(
        verb,
        settings,
        key_choice(options),
        discard_edits=bool(options["discard_edits"]),
        resolve=bool(options["resolve"]),
        bundle=bundle,
    )


@click.command(cls=OverHosts)
@service_word
@click.option("--purge", is_flag=True, help="Remove the weights too.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@yes_option
@json_option
@quiet_option
def uninstall(service: str, purge: bool, dry_run: bool, yes: bool, as_json: bool, quiet: bool) -> None:
    """Remove exactly what was made for a service; its weights stay unless --purge."""
    from installer.base.host import Host
    from installer.flow import remove as flow
    from installer.spec.records import managed

    host = Host()
    changes = flow.plan_uninstall(check_service(service), host, purge=purge)
    if not dry_run:
        agree(tr("Remove all this?"), changes, yes=yes)
        former = managed(host, Layout(service), to_look=True).former
        changes = flow.uninstall(service, host, choose(quiet=quiet or as_json), purge=purge)
    if as_json or dry_run:
        print_changes(service, changes, as_json)
    else:
        click.echo(
            tr("{service} is removed", service=service)
            if purge
            else tr(
                "{service} is removed; the weights stay: vllm-install models prune removes those that no service needs",
                service=service,
            )
        )
        if former:
            unit = former.unit
            click.echo(
                tr("{unit} is as it was before adopt, and stopped: sudo systemctl enable --now {unit}", unit=unit)
            )
