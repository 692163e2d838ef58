"""How results look: text for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer.base.language import tr

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from installer.base.changes import Change
    from installer.base.errors import InstallError
    from installer.base.host import Host
    from installer.flow.deploy import Deployed, Show
    from installer.spec.target import Placed


def as_plain(value: DataclassInstance) -> dict[str, object]:
    """A result as JSON can hold it: infinity, a histogram's last bound, is no number there."""

    def plain(item: object) -> object:
        if isinstance(item, dict):
            return {("+Inf" if key == float("inf") else str(key)): plain(each) for key, each in item.items()}
        return [plain(each) for each in item] if isinstance(item, (list, tuple)) else item

    return {name: plain(item) for name, item in dataclasses.asdict(value).items()}


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def write_out(text: str, file: str, host: Host) -> None:
    """Where the user says, over a file that is there; - is standard output."""
    if file == "-":
        click.echo(text, nl=False)
    else:
        host.write_out(Path(file).absolute(), text, force=True)


def print_changes(service: str, changes: list[Change], as_json: bool, gpus: Sequence[Placed] | None = None) -> None:
    """`gpus` are those that the service is to have, where changes make one."""
    from installer.base.changes import told

    if as_json:
        on = {} if gpus is None else {"gpus": [dataclasses.asdict(gpu) for gpu in gpus]}
        print_json({"service": service, "changes": [change.to_json() for change in changes], **on})
    elif not changes:
        click.echo(tr("nothing to change"))
    else:
        for said in filter(None, told(changes)):
            click.echo(said.describe())


def print_deployed(done: Deployed) -> None:
    """After the first deploy all that a user needs next; later, what a change came to."""
    from installer.look.client import Client, base_url
    from installer.look.formats import curl
    from installer.units.api import local_address

    target, service = done.want.target, done.want.layout.service
    url = base_url(target.settings, local_address(target.settings.host))
    if not done.changes:
        click.echo(tr("{service} is up to date and answers; nothing was changed", service=service))
        return
    if not target.has_api:
        head = target.settings.group_hosts[0]
        said = tr(
            "{service} serves its part of {model}; the API is on {head}, which has answered",
            service=service,
            model=target.model.id,
            head=head,
        )
        click.echo(said)
        return
    click.echo(
        tr(
            "{service} serves {model} at {url}, proved by a real answer",
            service=service,
            model=target.model.id,
            url=url,
        )
    )
    if done.new_key:
        click.echo(tr("\n  API key  {key}   (shown only now; keep it)", key=done.new_key))
    if not done.first:
        return
    commands = curl(Client(url, target.model.id, done.new_key))
    click.echo(textwrap.indent(f"\n{commands}journalctl -u {service} -f\nsystemctl restart {service}", "  "))


def print_failed(service: str | None, error: InstallError, as_json: bool) -> None:
    """One of several services that did not get there, or the command itself."""
    if as_json:
        said = {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}
        print_json({"service": service, "error": said} if service else {"error": said})
        return
    click.echo(tr("error: {message}", message=error.message), err=True)
    if error.hint:
        click.echo(tr("  help: {hint}", hint=error.hint), err=True)


def show_deployed(service: str, as_json: bool) -> Show:
    def show(done: Deployed) -> None:
        if as_json:
            changes = [change.to_json() for change in done.changes]
            key = done.new_key if done.want.target.has_api else None  # nobody asks the others
            print_json({"service": service, "changes": changes, "api_key": key})
        else:
            print_deployed(done)
        sys.stdout.flush()

    return show
