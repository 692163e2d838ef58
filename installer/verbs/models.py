"""models: the weight cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import choose, console
from installer.base.sizes import GIB
from installer.spec.asked import load_settings
from installer.spec.settings import Settings, check_service, to_text
from installer.verbs.options import json_option, quiet_option, service_option
from installer.verbs.output import print_json

if TYPE_CHECKING:
    from installer.base.host import Host
    from installer.memory.recommend import Fit
    from installer.spec.model import Model

NARROWEST_TABLE = 120
# What the settings file says about the service's own model means nothing for another one.
OF_THE_MODEL = ("MODEL_NAME", "MODEL_PATH", "MODEL_REVISION", "SERVED_MODEL_NAME")


@click.group("models")
def models() -> None:
    """Fetch, check, list and remove weights."""


@models.command("pull")
@click.argument("model", required=False, metavar="[MODEL]")
@service_option
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the model on the hub.")
@click.option("--hf-endpoint", metavar="URL", help="Mirror of the model hub.")
@click.option("--hf-token-file", metavar="FILE", help="File that holds the token for gated models.")
@click.option("--model-sources", metavar="LIST", help="Where to look, in order: hub, modelscope, URLs of mirrors.")
@click.option("--modelscope", "model_sources", flag_value="modelscope", help="The same as --model-sources modelscope.")
@click.option("--offline/--online", "offline", default=None, help="Use only what is here already.")
@click.option("--download-connections", metavar="N", help="Connections to the source, at most [default: 16]")
@click.option("--dry-run", is_flag=True, help="Only show what would be fetched.")
@json_option
@quiet_option
def pull(
    model: str | None, service: str, revision: str | None, hf_endpoint: str | None, hf_token_file: str | None,
    model_sources: str | None, offline: bool | None, download_connections: str | None, dry_run: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Fetch a model into the cache: MODEL, or the one that the service's settings name.

    Interrupted, the same command fetches only what is missing. With --json, progress is a JSON object a line on
    standard error.
    """
    from installer.base.host import Host
    from installer.flow.local import check_local
    from installer.weights import models as weights

    host, report = Host(), choose(quiet=quiet, as_json=as_json)
    chosen = {
        "model": model, "revision": revision, "hf_endpoint": hf_endpoint, "hf_token_file": hf_token_file,
        "model_sources": model_sources, "offline": offline, "download_connections": download_connections,
    }  # fmt: skip
    settings = model_settings(service, host, chosen)
    found = weights.resolve(settings, host, Layout(service), report=report)
    check_local(found, settings, host)
    pending = list(weights.changes(found, host, settings))
    if not dry_run:
        for change in pending:
            report.begin(change)
            change.apply(host, report)
            report.done(change)
    if as_json:
        print_json(_to_json(found) | {"changes": [change.to_json() for change in pending]})
    elif dry_run:
        click.echo(
            "\n".join(change.describe() for change in pending)
            or tr("{model} is in {path}", model=found.id, path=found.path)
        )
    else:
        click.echo(found.path)


@models.command()
@click.option("--gpu", metavar="GPUS", help="Other hardware than this host's: 24GiB, 2x24GiB, 8x141GB.")
@click.option("--context", metavar="TOKENS", help="Context to judge by: 8k, 32k, 128k [default: what suits each model]")
@json_option
def recommend(gpu: str | None, context: str | None, as_json: bool) -> None:
    """List models that fit this host's GPUs, with their context and how many requests fit at once."""
    from installer.base.host import Host
    from installer.checks import facts
    from installer.memory import recommend as advice
    from installer.spec import values

    try:
        tokens = values.context(context) if context else None
    except ValueError as error:
        raise UsageError(
            tr("--context {context!r}: {error}", context=context, error=error), tr("for example --context 32k")
        ) from None
    settings = Settings()
    seen = facts.gather(Host(), settings, Layout(settings.service))
    hardware = advice.parse_hardware(gpu) if gpu else advice.hardware_of(seen, settings)
    if gpu:
        seen = advice.with_gpus(seen, hardware)
    fits = advice.recommend(hardware, seen, tokens)
    said = advice.notes(hardware, seen, fits)
    if as_json:
        print_json({"hardware": hardware.describe(), "notes": said, "models": [fit.to_json() for fit in fits]})
        return
    click.echo(hardware.describe(), err=True)
    _print_fits([fit for fit in fits if fit.runs])
    left = [fit.model.id for fit in fits if not fit.runs]
    for line in (*said, *([tr("do not fit: {models}", models=", ".join(left))] if left else [])):
        click.echo(line, err=True)
    if fits and fits[0].runs:
        click.echo(f"  {fits[0].command()}", err=True)


def _print_fits(fits: list[Fit]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in (tr("model"), tr("format"), tr("images")):
        table.add_column(title, overflow="fold")
    for title in (tr("weights"), tr("GPUs"), tr("context"), tr("at once"), tr("largest context")):
        table.add_column(title, justify="right", overflow="fold")
    for fit in fits:
        sight, weights = tr("yes") if fit.takes_images else "", f"{fit.model.bytes / GIB:.1f} GiB"
        at_once = tr("{requests} (close)", requests=fit.requests) if fit.is_close else str(fit.requests)
        table.add_row(
            fit.model.id, tr(fit.format), sight, weights, str(fit.gpus), str(fit.context), at_once, str(fit.largest)
        )
    # A name that is cut or folded cannot be copied: rather let a narrow terminal wrap the line.
    if fits:
        screen = console()
        screen.width = max(screen.width, NARROWEST_TABLE)
        screen.print(table)


def model_settings(service: str, host: Host, options: Mapping[str, object]) -> Settings:
    """The service's settings; with a model of its own named, those without what is about the service's."""
    from installer.spec import settings_file

    path = Layout(check_service(service)).settings_file
    values = settings_file.parse(host.read(path) or "", path)
    environment = dict(os.environ)
    if options.get("model") is not None:
        for name in OF_THE_MODEL:
            values.pop(name, None)
            environment.pop(name, None)
    flags = {name: to_text(name, value) for name, value in options.items() if value is not None}
    return load_settings(service, values, environment, flags)


def _to_json(model: Model) -> dict[str, object]:
    return {
        "model": model.id,
        "source": model.source,
        "commit": model.commit,
        "path": str(model.path),
        "bytes": model.bytes_total,
        "files": len(model.files),
    }
