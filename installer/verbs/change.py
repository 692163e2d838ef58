"""set-apikey, keys, set-context, set, upgrade, rollback, prune: changes to a service that is there already."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import click
from click.shell_completion import CompletionItem

from installer.base.cells import pad
from installer.base.errors import Refused, UsageError
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.base.report import choose
from installer.spec.settings import (
    FIELDS,
    SET_CONTEXT,
    Settings,
    assigned,
    check_service,
    check_typed,
    load_settings,
    named,
    to_text,
)
from installer.spec.values import BUILTIN, version_key
from installer.verbs.options import (
    agree,
    complete_service,
    dry_run_option,
    flags_of,
    json_option,
    known_services,
    meant_service,
    quiet_option,
    resolve_option,
    service_option,
    service_word,
    setting_options_named,
    soak_option,
    yes_option,
)
from installer.verbs.output import print_changes, print_json, show_deployed

if TYPE_CHECKING:
    from installer.base.host import Host
    from installer.flow.resolve import Request
    from installer.flow.rotate import Rotated
    from installer.spec.keys import Key

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
    from installer.base.host import Host
    from installer.flow import rotate
    from installer.spec import keys

    if key is not None and file is not None:
        raise UsageError(
            tr("a key on the command line and one in a file contradict each other"), tr("give one of them")
        )
    text = file.read() if file is not None else sys.stdin.read() if key == "-" else key
    rotation = rotate.Rotation(
        name=keys.check_name(name),
        text=keys.check_plain(text.strip()) if text is not None else None,
        role=role,
        keep_old=keys.duration(keep_old) if keep_old else None,
    )

    def show(done: Rotated) -> None:
        if as_json:
            print_json({"service": service, "name": done.name, "api_key": done.made, "old_until": done.old_until})
        else:
            _print_rotated(service, done)
        sys.stdout.flush()

    rotate.set_key(check_service(service), rotation, Host(), choose(quiet=quiet or as_json), show)


def _print_rotated(service: str, done: Rotated) -> None:
    if done.made:
        click.echo(done.made)
        click.echo(tr("this key is shown only now; keep it"), err=True)
    said = {
        "serves": mark("{service}: the key {name} is in force; nothing was restarted"),
        "starts": mark("{service}: the key {name} is in force as soon as the service answers"),
        "stopped": mark("{service} is not running; the key {name} works from its next start on"),
    }
    if done.service in said:
        click.echo(tr(said[done.service], service=service, name=done.name), err=True)
    if done.old_until:
        click.echo(tr("the old key works until {time}", time=done.old_until), err=True)


class KeysGroup(click.Group):
    """Takes a word that is none of its commands for the service: keys coder."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        of_option = {at + 1 for at, word in enumerate(args) if word == "--service"}
        words = (at for at, word in enumerate(args) if not word.startswith("-") and at not in of_option)
        at = next(words, None)
        if at is not None and args[at] not in self.commands:
            word = args.pop(at)
            rest = super().parse_args(context, args)
            context.params["service"] = meant_service(context, context.params["service"], word)
            return rest
        return super().parse_args(context, args)

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        services = [CompletionItem(name) for name in known_services() if name.startswith(incomplete)]
        return [*super().shell_complete(context, incomplete), *services]

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["[SERVICE]", *super().collect_usage_pieces(context)]


@click.group("keys", cls=KeysGroup, invoke_without_command=True)
@service_option
@json_option
@click.pass_context
def keys(context: click.Context, service: str, as_json: bool) -> None:
    """List the API keys: name, role, start of the digest, expiry."""
    from installer.base.host import Host
    from installer.flow import rotate

    context.obj = check_service(service)
    if context.invoked_subcommand:
        return
    found = rotate.list_keys(service, Host())
    if as_json:
        print_json([_plain(key) for key in found])
    for key in [] if as_json else found:
        click.echo(f"{pad(key.name, 20)} {pad(key.role, 10)} {key.digest[:8]}  {_ending(key)}")


def _plain(key: Key) -> dict[str, object]:
    about: dict[str, object] = {"name": key.name, "role": key.role, "digest": key.digest[:8]}
    return about | {"expiry": key.expiry, "expired": key.is_over}


def _ending(key: Key) -> str:
    if key.expiry is None:
        return tr("no expiry")
    return tr("expired at {time}", time=key.expiry) if key.is_over else key.expiry


@keys.command("revoke")
@click.argument("name")
@click.option("--service", metavar="NAME", help="Which service.")
@quiet_option
@click.pass_obj
def revoke(chosen: str, name: str, service: str | None, quiet: bool) -> None:
    """Take a key out of force at once."""
    from installer.base.host import Host
    from installer.flow import rotate

    service = check_service(service or chosen)
    rotate.revoke_key(service, name, Host(), choose(quiet=quiet))
    click.echo(tr("{service}: the key {name} is revoked", service=service, name=name))


@click.command("set-context")
@click.argument("tokens", metavar="1024|32k|256K|auto")
@click.option("--dry-run", is_flag=True, help="Only show what fits: contexts, and how many requests of each at once.")
@service_option
@soak_option
@discard_option
@json_option
@quiet_option
def set_context(
    service: str, tokens: str, dry_run: bool, soak: int | None, discard_edits: bool, as_json: bool, quiet: bool
) -> None:
    """Change the context length; proved, or undone."""

    check_typed("max_model_len", SET_CONTEXT, tokens)
    if dry_run:
        _show_capacity(service, tokens, as_json)
        return
    _settle(service, "set-context", quiet=quiet or as_json)
    request = _request(service, f"set-context {tokens}", {"max_model_len": tokens}, discard_edits=discard_edits)
    _change(replace(request, soak=soak), as_json, quiet)


def _show_capacity(service: str, tokens: str, as_json: bool) -> None:
    from installer.base.host import Host
    from installer.flow import deploy as flow
    from installer.memory import capacity

    request = _request(service, "set-context", {"max_model_len": tokens})
    found = flow.capacity_of(request, Host(), choose(quiet=True))
    if found is None:
        raise Refused(tr("what fits cannot be told: the model or the size of the GPU's memory is unknown here"))
    if as_json:
        print_json(found.to_json())
    else:
        click.echo("\n".join(capacity.describe(found)))


@click.command("set")
@click.argument(
    "assignments", nargs=-1, metavar="[SERVICE] [NAME=VALUE...] [-- VLLM_FLAGS...]", shell_complete=complete_service
)
@service_option
@setting_options_named(FIELDS)
@soak_option
@dry_run_option
@discard_option
@json_option
@quiet_option
def set_values(
    service: str, assignments: tuple[str, ...], soak: int | None, dry_run: bool, discard_edits: bool, as_json: bool,
    quiet: bool, **options: object,
) -> None:  # fmt: skip
    """Change any setting, by its name in the settings file or its option; proved, or undone."""

    words = list(assignments)
    if words and "=" not in words[0] and not words[0].startswith("-"):
        service = meant_service(click.get_current_context(), service, words.pop(0))
    ours = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    given, flags = assigned(words[:ours]), flags_of(options)
    if words[ours:]:
        flags["vllm_args"] = to_text("vllm_args", tuple(words[ours:]))
    if twice := given.keys() & flags.keys():
        raise UsageError(tr("{name} is given twice", name=named(min(twice))), tr("give it once"))
    if not (values := given | flags):
        raise UsageError(tr("nothing is to be set"), tr("for example: vllm-install set PORT=8001, or set --port 8001"))
    done = " ".join(f"{named(name)}={value}" for name, value in values.items())
    if not dry_run:
        _settle(service, "set", quiet=quiet or as_json)
    request = _request(service, f"set {done}", values, discard_edits=discard_edits)
    _change(replace(request, soak=soak), as_json, quiet, dry_run=dry_run)


@click.command()
@click.option("--vllm-version", metavar="VERSION", help="Version of vLLM [default: the one this tool was tested with]")
@click.option("--revision", metavar="REV", help="Another revision of the model; - for its newest commit.")
@click.option("--model", "revision", hidden=True)  # what it was called at first
@resolve_option
@service_word
@soak_option
@dry_run_option
@discard_option
@json_option
@quiet_option
def upgrade(
    service: str, vllm_version: str | None, revision: str | None, resolve: bool, soak: int | None, dry_run: bool,
    discard_edits: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Move to another vLLM or model revision; the one before is kept for rollback."""

    if not dry_run:
        _settle(service, "upgrade", quiet=quiet or as_json)
    now = _request(service, "upgrade", {}).settings
    flags = {}
    if revision is not None:
        _check_has_revisions(now, revision)
    if revision is not None and revision != "-":
        flags["revision"] = revision
    of_vllm = vllm_version is not None or revision is None
    if of_vllm:
        # Without a version nobody asked to go back, whatever this tool was tested with.
        flags["vllm_version"] = vllm_version or max(Settings.vllm_version, now.vllm_version, key=version_key)
    request = _request(service, "upgrade", flags, discard_edits=discard_edits)
    wanted = request.settings.vllm_version
    if version_key(wanted) < version_key(now.vllm_version):
        click.echo(
            tr(
                "warning: {text}",
                text=tr("vLLM {version} is older than {now}, which is set now", version=wanted, now=now.vllm_version),
            ),
            err=True,
        )
    request = replace(request, new_commit=revision is not None, new_packages=of_vllm, resolve=resolve, soak=soak)
    _change(request, as_json, quiet, dry_run=dry_run)


def _check_has_revisions(settings: Settings, revision: str) -> None:
    if settings.model == BUILTIN or settings.model.startswith("/"):
        raise UsageError(
            tr("{model} has no revisions: it comes from no hub", model=settings.model),
            tr("for another model: vllm-install set MODEL_NAME={model}", model=revision)
            if revision != "-"
            else tr("to serve another model: vllm-install set MODEL_NAME=NAME"),
        )


@click.command()
@service_word
@dry_run_option
@json_option
@quiet_option
def rollback(service: str, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Return to the generation before the last change, in one step; keys stay as they are."""
    from installer.base.host import Host
    from installer.flow import deploy as flow

    host, report = Host(), choose(quiet=quiet or as_json)
    if dry_run:
        print_changes(service, flow.plan_rollback(check_service(service), host), as_json)
        return
    flow.rollback(check_service(service), host, report, show_deployed(service, as_json))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@yes_option
@json_option
@quiet_option
def prune(dry_run: bool, yes: bool, as_json: bool, quiet: bool) -> None:
    """Remove engines and runtimes that no service refers to, and that none could roll back to."""
    from installer.base.host import Host
    from installer.flow import remove as flow

    host = Host()
    changes = flow.plan_prune(host)
    if changes and not dry_run:
        agree(tr("Remove all this?"), changes, yes=yes)
        changes = flow.prune(host, choose(quiet=quiet or as_json))
    print_changes("all", changes, as_json)


def _change(request: Request, as_json: bool, quiet: bool, *, dry_run: bool = False) -> None:
    from installer.base.host import Host
    from installer.flow import deploy as flow

    host, report, service = Host(), choose(quiet=quiet or as_json), request.settings.service
    if dry_run:
        print_changes(service, flow.plan_change(request, host, report), as_json)
        return
    flow.change(request, host, report, show_deployed(service, as_json))
    if request.soak:
        click.echo(_watched(host, service), err=True)


def _watched(host: Host, service: str) -> str:
    from installer.spec.records import managed

    soak = managed(host, Layout(service)).soak
    if soak is None or not soak.is_running:
        return tr("nothing of what serves was changed, so nothing is watched")
    return tr(
        "it is watched for {seconds} s more; how that ends: vllm-install soak {service} --wait",
        seconds=soak.seconds, service=service,
    )  # fmt: skip


def _settle(service: str, verb: str, *, quiet: bool) -> None:
    """What was cut off goes back before its settings are read: nobody asked for them again."""
    from installer.base.host import Host
    from installer.flow import deploy as flow

    flow.settle(check_service(service), verb, Host(), choose(quiet=quiet))


def _request(service: str, verb: str, flags: dict[str, str], *, discard_edits: bool = False) -> Request:
    from installer.base.host import Host
    from installer.flow.resolve import Request
    from installer.spec import settings_file

    path = Layout(check_service(service)).settings_file
    values = settings_file.parse(Host().read(path) or "", path)
    return Request(verb, load_settings(service, values, {}, flags), discard_edits=discard_edits)
