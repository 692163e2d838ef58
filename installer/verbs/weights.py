"""models verify, list, prune: the weights that are here already."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from installer.base.cells import pad
from installer.base.errors import Exit
from installer.base.language import tr
from installer.base.report import choose, size
from installer.verbs.models import model_settings
from installer.verbs.options import agree, json_option, quiet_option, service_option, yes_option
from installer.verbs.output import print_changes, print_json

if TYPE_CHECKING:
    from installer.weights.inventory import Cached
    from installer.weights.verify import Verified


def _cached_names(context: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    from installer.base.host import Host
    from installer.weights import inventory

    return sorted({one.model for one in inventory.models(Host()) if one.model.startswith(incomplete)})


@click.command("verify")
@click.argument("model", required=False, metavar="[MODEL|PATH]", shell_complete=_cached_names)
@service_option
@click.option("--revision", metavar="REV", help="Only this branch, tag or commit.")
@click.option("--models-dir", metavar="DIR", help="Directory in which a relative MODEL is looked up first.")
@click.option("--hf-endpoint", metavar="URL", help="Mirror of the model hub.")
@click.option("--model-sources", metavar="LIST", help="Where to look, in order: hub, modelscope, URLs of mirrors.")
@click.option("--repair", is_flag=True, help="Fetch what is wrong or missing anew, and only that.")
@json_option
@quiet_option
def verify(
    model: str | None, service: str, revision: str | None, models_dir: str | None, hf_endpoint: str | None,
    model_sources: str | None, repair: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Check weights: every byte in the cache against its checksum, a directory for being complete and readable.

    Without MODEL: what the services use, or else everything in the cache. Exit status 5 if anything is wrong.
    """
    from installer.base.host import Host
    from installer.weights import verify as check

    host, report = Host(), choose(quiet=quiet or as_json)
    chosen = {
        "model": model, "revision": revision, "models_dir": models_dir, "hf_endpoint": hf_endpoint,
        "model_sources": model_sources,
    }  # fmt: skip
    settings = model_settings(service, host, chosen)
    results = []
    for target in check.targets(model, settings, host):
        before = check.verify(target, settings, host, report)
        after = check.repair(before, settings, host, report) if repair else before
        results.append(after)
        if not as_json:
            _print_verified(before, after)
    if as_json:
        print_json([result.to_json() for result in results])
    elif not results:
        click.echo(tr("there are no models here yet"), err=True)
    sys.stdout.flush()
    if not all(result.is_right for result in results):
        sys.exit(Exit.MODEL)


def _print_verified(before: Verified, after: Verified) -> None:
    from installer.model.summary import describe

    name, known = after.model, tr("no checksums known")
    if after.commit:
        name = tr("{model} at {commit}", model=after.model, commit=after.commit[:12])
    if after.checked:
        known = tr("{files} files, {size}", files=after.checked, size=size(after.bytes))
    found = tr("{model} ({source}; {known})", model=name, source=tr(after.source), known=known)
    click.echo(tr("{what}: {why}", what=found, why=tr("right") if after.is_right else tr("NOT right")))
    for line in describe(after.summary):
        click.echo(f"  {line}")
    for word, names in ((tr("wrong bytes"), before.wrong), (tr("missing"), before.missing)):
        for name in names:
            click.echo(
                "  " + tr("{what}: {why}", what=word, why=name) + (tr("; fetched anew") if after.is_right else "")
            )
    for problem in after.problems:
        click.echo(f"  {problem}")
    if before.is_right:
        return
    if not after.is_right:
        hint = f"vllm-install models verify {after.model} --repair"
        if after.source == "local":
            hint = tr("copy it anew from where it came, or serve the model from the hub")
        click.echo(tr("  help: {hint}", hint=hint), err=True)
    for user in after.used_by if after.is_right else ():
        click.echo(
            tr("  {service} may have read the wrong bytes; restart it when it suits you", service=user), err=True
        )


@click.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the models in the cache: size, commit, where they came from, last use, and which services need them."""
    from installer.base.host import Host
    from installer.weights import inventory

    found = inventory.models(Host())
    if as_json:
        print_json([one.to_json() for one in found])
    elif not found:
        click.echo(tr("there are no models here yet; fetch one with: sudo vllm-install models pull MODEL"), err=True)
    for one in [] if as_json else found:
        _print_model(one)


def _print_model(one: Cached) -> None:

    held = size(one.bytes)
    if one.missing:
        held = tr("{done} of {total}", done=held, total=size(one.bytes + one.missing))
    at = f"{(one.commit or '-')[:12]}" + (f" ({', '.join(one.revisions)})" if one.revisions else "")
    users = ", ".join(one.used_by) or tr("no service")
    used = (one.last_used or "-")[:10]
    click.echo(f"{pad(one.model, 44)} {pad(held, -22)}  {pad(at, 22)} {used}  {tr(one.source)}  {users}")


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@yes_option
@json_option
@quiet_option
def prune(dry_run: bool, yes: bool, as_json: bool, quiet: bool) -> None:
    """Remove the weights that no service needs: not now, not for a rollback, not for a change that was cut off.

    Engines that nobody needs go with `vllm-install prune`.
    """
    from installer.base.host import Host
    from installer.weights import inventory

    host = Host()
    changes = inventory.plan_prune(host)
    freed = size(sum(change.bytes for change in changes))
    if not changes or dry_run:
        print_changes("all", list(changes), as_json)
        if changes and not as_json:
            click.echo(tr("{freed} would be freed; nothing was removed", freed=freed), err=True)
        return
    agree(tr("Remove all this and free {freed}?", freed=freed), changes, yes=yes)
    changes = inventory.prune(host, choose(quiet=quiet or as_json))
    if as_json:
        print_changes("all", list(changes), as_json)
    else:
        click.echo(tr("{freed} freed", freed=size(sum(change.bytes for change in changes))))
