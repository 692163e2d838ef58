"""set-apikey, keys, set-context, set, upgrade, rollback, prune: changes to a service that is there already."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import click

from installer.errors import UsageError
from installer.language import tr
from installer.verbs.options import agree, json_option, quiet_option, resolve_option, service_option, yes_option
from installer.verbs.output import print_changes, print_json, show_deployed

if TYPE_CHECKING:
    from installer.apikey import Rotated
    from installer.resolve import Request

discard_option = click.option("--discard-edits", is_flag=True, help="Overwrite files of ours that were edited by hand.")


@click.command("set-apikey")
@click.argument("key", required=False, metavar="[KEY|-]")
@service_option
@click.option("--name", default="default", show_default=True, help="Which key to set.")
@click.option("--role", type=click.Choice(["metrics", "inference", "admin"]), default="inference", show_default=True)
@click.option("--keep-old", metavar="DURATION", help="Let the old key work this long too: 90s, 10m, 36h, 7d.")
@click.option("--file", "file", type=click.File(), help="Read the key from a file.")
@json_option
@quiet_option
def set_apikey(
    service: str, key: str | None, name: str, role: str, keep_old: str | None, file: TextIO | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Rotate an API key without restarting vLLM; - reads it from standard input, no KEY makes one."""
    from installer import apikey, keys
    from installer.host import Host
    from installer.report import choose
    from installer.settings import check_service

    if key is not None and file is not None:
        raise UsageError(
            tr("a key on the command line and one in a file contradict each other"), tr("give one of them")
        )
    text = file.read() if file is not None else sys.stdin.read() if key == "-" else key
    rotation = apikey.Rotation(
        name=keys.check_name(name),
        text=keys.check(text.strip()) if text is not None else None,
        role=role,
        keep_old=keys.duration(keep_old) if keep_old else None,
    )

    def show(done: Rotated) -> None:
        if as_json:
            print_json({"service": service, "name": done.name, "api_key": done.made, "old_until": done.old_until})
        else:
            _print_rotated(service, done)
        sys.stdout.flush()

    apikey.set_key(check_service(service), rotation, Host(), choose(quiet=quiet or as_json), show)


def _print_rotated(service: str, done: Rotated) -> None:
    if done.made:
        click.echo(done.made)
        click.echo(tr("this key is shown only now; keep it"), err=True)
    if done.live:
        click.echo(
            tr("{service}: the key {name} is in force; nothing was restarted", service=service, name=done.name),
            err=True,
        )
    else:
        click.echo(
            tr(
                "{service} is not running; the key {name} works from its next start on", service=service, name=done.name
            ),
            err=True,
        )
    if done.old_until:
        click.echo(tr("the old key works until {time}", time=done.old_until), err=True)


@click.group("keys", invoke_without_command=True)
@service_option
@json_option
@click.pass_context
def keys(context: click.Context, service: str, as_json: bool) -> None:
    """List the API keys: name, role, start of the digest, expiry."""
    from installer import apikey
    from installer.host import Host
    from installer.settings import check_service

    context.obj = check_service(service)
    if context.invoked_subcommand:
        return
    found = apikey.list_keys(service, Host())
    if as_json:
        print_json([{"name": k.name, "role": k.role, "digest": k.digest[:8], "expiry": k.expiry} for k in found])
        return
    for key in found:
        click.echo(f"{key.name:<20} {key.role:<10} {key.digest[:8]}  {key.expiry or tr('no expiry')}")


@keys.command("revoke")
@click.argument("name")
@click.option("--service", metavar="NAME", help="Which service.")
@quiet_option
@click.pass_obj
def revoke(chosen: str, name: str, service: str | None, quiet: bool) -> None:
    """Take a key out of force at once."""
    from installer import apikey
    from installer.host import Host
    from installer.report import choose
    from installer.settings import check_service

    service = check_service(service or chosen)
    apikey.revoke_key(service, name, Host(), choose(quiet=quiet))
    click.echo(tr("{service}: the key {name} is revoked", service=service, name=name))


@click.command("set-context")
@click.argument("tokens", metavar="1024|32k|256K|auto")
@click.option("--dry-run", is_flag=True, help="Only show what fits: contexts, and how many requests of each at once.")
@service_option
@discard_option
@json_option
@quiet_option
def set_context(service: str, tokens: str, dry_run: bool, discard_edits: bool, as_json: bool, quiet: bool) -> None:
    """Change the context length; proved, or undone."""
    if dry_run:
        _show_capacity(service, tokens, as_json)
        return
    request = _request(service, f"set-context {tokens}", {"max_model_len": tokens}, discard_edits=discard_edits)
    _change(request, as_json, quiet)


def _show_capacity(service: str, tokens: str, as_json: bool) -> None:
    from installer import deploy as flow
    from installer.errors import Refused
    from installer.host import Host
    from installer.memory import capacity
    from installer.report import choose

    request = _request(service, "set-context", {"max_model_len": tokens})
    found = flow.capacity_of(request, Host(), choose(quiet=True))
    if found is None:
        raise Refused(tr("what fits cannot be told: the model or the size of the GPU's memory is unknown here"))
    if as_json:
        print_json(found.to_json())
    else:
        click.echo("\n".join(capacity.describe(found)))


@click.command("set")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE...")
@service_option
@discard_option
@json_option
@quiet_option
def set_values(service: str, assignments: tuple[str, ...], discard_edits: bool, as_json: bool, quiet: bool) -> None:
    """Change any setting, by its name in the settings file or its option; proved, or undone."""
    from installer.settings import assigned

    flags = assigned(assignments)
    request = _request(service, f"set {' '.join(assignments)}", flags, discard_edits=discard_edits)
    _change(request, as_json, quiet)


@click.command()
@click.option("--vllm-version", metavar="VERSION", help="Version of vLLM [default: the one this tool was tested with]")
@click.option("--model", "revision", metavar="REV", help="Another revision of the model; - for its newest commit.")
@resolve_option
@service_option
@discard_option
@json_option
@quiet_option
def upgrade(
    service: str, vllm_version: str | None, revision: str | None, resolve: bool, discard_edits: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Move to another vLLM or model revision; the one before is kept for rollback."""
    from installer.settings import Settings

    flags = {}
    if revision is not None and revision != "-":
        flags["revision"] = revision
    of_vllm = vllm_version is not None or revision is None
    if of_vllm:
        flags["vllm_version"] = vllm_version or Settings.vllm_version
    request = _request(service, "upgrade", flags, discard_edits=discard_edits)
    _change(replace(request, new_commit=revision is not None, new_packages=of_vllm, resolve=resolve), as_json, quiet)


@click.command()
@service_option
@json_option
@quiet_option
def rollback(service: str, as_json: bool, quiet: bool) -> None:
    """Return to the generation before the last change, in one restart; keys stay as they are."""
    from installer import deploy as flow
    from installer.host import Host
    from installer.report import choose
    from installer.settings import check_service

    flow.rollback(check_service(service), Host(), choose(quiet=quiet or as_json), show_deployed(service, as_json))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@yes_option
@json_option
@quiet_option
def prune(dry_run: bool, yes: bool, as_json: bool, quiet: bool) -> None:
    """Remove engines and runtimes that no service refers to, and that none could roll back to."""
    from installer import deploy as flow
    from installer.host import Host
    from installer.report import choose

    host = Host()
    changes = flow.plan_prune(host)
    if changes and not dry_run:
        agree(tr("Remove all this?"), changes, yes=yes)
        changes = flow.prune(host, choose(quiet=quiet or as_json))
    print_changes("all", changes, as_json)


def _change(request: Request, as_json: bool, quiet: bool) -> None:
    from installer import deploy as flow
    from installer.host import Host
    from installer.report import choose

    flow.change(request, Host(), choose(quiet=quiet or as_json), show_deployed(request.settings.service, as_json))


def _request(service: str, verb: str, flags: dict[str, str], *, discard_edits: bool = False) -> Request:
    from installer import settings_file
    from installer.host import Host
    from installer.layout import Layout
    from installer.resolve import Request
    from installer.settings import check_service, load

    path = Layout(check_service(service)).settings_file
    values = settings_file.parse(Host().read(path) or "", path)
    return Request(verb, load(service, values, {}, flags), discard_edits=discard_edits)
