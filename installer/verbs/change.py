"""set-context, set, upgrade, rollback, prune: changes to a service that is there already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from installer.base.errors import Refused, UsageError
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import choose
from installer.spec.asked import SET_CONTEXT, assigned, check_typed, load_settings
from installer.spec.settings import FIELDS, Settings, check_service, named, to_text
from installer.spec.values import BUILTIN, version_key
from installer.verbs.options import (
    Percent,
    agree,
    complete_service,
    discard_option,
    dry_run_option,
    flags_of,
    json_option,
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
from installer.verbs.over import OverHosts, show_staged, stage_option, with_offers

if TYPE_CHECKING:
    from installer.acceptance.bench_judge import BenchJudge
    from installer.base.host import Host
    from installer.flow.request import Request

MARGIN = 15.0  # percent; two runs of the same were 10 apart


@click.command("set-context", cls=OverHosts)
@click.argument("tokens", metavar="1024|32k|256K|auto")
@click.option("--dry-run", is_flag=True, help="Only show what fits: contexts, and how many requests of each at once.")
@service_option
@soak_option
@stage_option
@discard_option
@json_option
@quiet_option
def set_context(
    service: str, tokens: str, dry_run: bool, soak: int | None, stage: str | None, discard_edits: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Change the context length; proved, or undone."""

    check_typed("max_model_len", SET_CONTEXT, tokens)
    if dry_run and not stage:
        _show_capacity(service, tokens, as_json)
        return
    if not dry_run:
        _settle(service, "set-context", quiet=quiet or as_json)
    request = _request(service, f"set-context {tokens}", {"max_model_len": tokens}, discard_edits=discard_edits)
    _change(replace(request, soak=soak), as_json, quiet, stage=stage)


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


@click.command("set", cls=OverHosts)
@click.argument(
    "assignments", nargs=-1, metavar="[SERVICE] [NAME=VALUE...] [-- VLLM_FLAGS...]", shell_complete=complete_service
)
@service_option
@setting_options_named(FIELDS)
@soak_option
@stage_option
@dry_run_option
@discard_option
@json_option
@quiet_option
def set_values(
    service: str, assignments: tuple[str, ...], soak: int | None, stage: str | None, dry_run: bool,
    discard_edits: bool, as_json: bool, quiet: bool, **options: object,
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
    _change(replace(request, soak=soak), as_json, quiet, dry_run=dry_run, stage=stage)


@click.command(cls=OverHosts)
@click.option("--vllm-version", metavar="VERSION", help="Version of vLLM [default: the one this tool was tested with]")
@click.option("--revision", metavar="REV", help="Another revision of the model; - for its newest commit.")
@click.option("--model", "revision", hidden=True)  # what it was called at first
@resolve_option
@service_word
@soak_option
@click.option("--bench", is_flag=True, help="Measure before and after, and undo it where it made the service slower.")
@click.option(
    "--margin", type=Percent(), metavar="PERCENT",
    help=f"With --bench: fewer tokens/s at best that are allowed [default: {MARGIN:g}]",
)  # fmt: skip
@click.option("--concurrency", metavar="N,N…", help="With --bench: how many ask at once [default: as bench --quick]")
@stage_option
@dry_run_option
@discard_option
@json_option
@quiet_option
def upgrade(
    service: str, vllm_version: str | None, revision: str | None, resolve: bool, soak: int | None, bench: bool,
    margin: float | None, concurrency: str | None, stage: str | None, dry_run: bool, discard_edits: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Move to another vLLM or model revision; the one before is kept for rollback."""

    judge = _judge(service, margin, concurrency, bench=bench, quiet=quiet or as_json)
    if not dry_run:
        _settle(service, "upgrade", quiet=quiet or as_json)
    now = _request(service, "upgrade", {}).settings
    flags = {}
    if revision is not None:
        _check_has_revisions(now, revision)
    if revision is not None and revision != "-":
        flags["revision"] = revision
    of_engine = vllm_version is not None or revision is None
    if of_engine:
        flags |= _newer(now, vllm_version)
    request = _request(service, "upgrade", flags, discard_edits=discard_edits)
    _warn_of_older(now, request.settings)
    request = replace(request, new_commit=revision is not None, new_packages=of_engine, resolve=resolve, soak=soak)
    _change(request, as_json, quiet, dry_run=dry_run, stage=stage, judge=judge)


def _judge(
    service: str, margin: float | None, concurrency: str | None, *, bench: bool, quiet: bool
) -> BenchJudge | None:
    if not bench:
        if margin is not None or concurrency is not None:
            raise UsageError(tr("--margin and --concurrency are for --bench"), "vllm-install upgrade --bench")
        return None
    from installer.acceptance.bench_judge import BenchJudge
    from installer.acceptance.bench_subject import Wishes
    from installer.base.host import Host
    from installer.verbs.bench import numbers

    wishes = Wishes(is_quick=True, concurrency=numbers(concurrency) if concurrency is not None else ())
    allowed = MARGIN if margin is None else margin
    return BenchJudge(check_service(service), wishes, allowed, Host(), choose(quiet=quiet))


def _newer(now: Settings, vllm_version: str | None) -> dict[str, str]:
    """Without a version nobody asked to go back, whatever this tool was tested with."""
    from installer.families.known import family_of

    family = family_of(now)
    if vllm_version is not None and family.version_setting != "vllm_version":
        raise UsageError(
            tr("it is served by {engine}", engine=family.title),
            f"vllm-install set {named(family.version_setting)}={family.version(now)}",
        )
    newest = max(family.version(Settings()), family.version(now), key=version_key)
    return {family.version_setting: vllm_version or newest}


def _warn_of_older(now: Settings, wanted: Settings) -> None:
    from installer.families.known import family_of

    family = family_of(now)
    before, after = family.version(now), family.version(wanted)
    if version_key(after) < version_key(before):
        text = tr("{engine} is older than {now}, which is set now", engine=f"{family.title} {after}", now=before)
        click.echo(tr("warning: {text}", text=text), err=True)


def _check_has_revisions(settings: Settings, revision: str) -> None:
    if settings.model == BUILTIN or settings.model.startswith("/"):
        raise UsageError(
            tr("{model} has no revisions: it comes from no hub", model=settings.model),
            tr("for another model: vllm-install set MODEL_NAME={model}", model=revision)
            if revision != "-"
            else tr("to serve another model: vllm-install set MODEL_NAME=NAME"),
        )


@click.command(cls=OverHosts)
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


def _change(
    request: Request, as_json: bool, quiet: bool, *, dry_run: bool = False, stage: str | None = None,
    judge: BenchJudge | None = None,
) -> None:  # fmt: skip
    from installer.base.host import Host
    from installer.flow import deploy as flow

    host, report, service = Host(), choose(quiet=quiet or as_json), request.settings.service
    if stage:
        show_staged(request, stage, host, report)
        return
    if dry_run:
        print_changes(service, flow.plan_change(request, host, report), as_json)
        return
    flow.change(request, host, report, show_deployed(service, as_json), judge)
    if judge and judge.was is None:
        click.echo(tr("nothing of what serves was changed, so nothing was measured"), err=True)
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
    from installer.flow.request import Request
    from installer.spec import settings_file

    path = Layout(check_service(service)).settings_file
    values = settings_file.parse(Host().read(path) or "", path)
    return with_offers(Request(verb, load_settings(service, values, {}, flags), discard_edits=discard_edits))
