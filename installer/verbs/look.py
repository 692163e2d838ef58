"""status, list, logs, completion."""

from __future__ import annotations

import os
import sys

import click

from installer.errors import UsageError
from installer.verbs.options import json_option, service_option
from installer.verbs.output import print_json


@click.command()
@service_option
@json_option
def status(service: str, as_json: bool) -> None:
    """Show one service on one screen."""
    import dataclasses

    from installer import status as view
    from installer.host import Host
    from installer.settings import check_service

    found = view.status(check_service(service), Host())
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        for label, text in view.lines(found):
            click.echo(f"{label:>12}  {text}")


@click.command("list")
@json_option
def list_services(as_json: bool) -> None:
    """List every service this tool manages on the host."""
    import dataclasses

    from installer import status as view
    from installer.host import Host

    found = view.all_services(Host())
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
    elif not found:
        click.echo("no services yet; make one with: sudo vllm-install deploy", err=True)
    for one in [] if as_json else found:
        click.echo(f"{one.service:<20} {one.active:<20} {one.address or '-':<28} {one.model or '-'}")


@click.command(context_settings={"ignore_unknown_options": True})
@service_option
@click.option("-f", "--follow", is_flag=True, help="Keep printing what arrives.")
@click.argument("journalctl_args", nargs=-1, type=click.UNPROCESSED)
def logs(service: str, follow: bool, journalctl_args: tuple[str, ...]) -> None:
    """Show the service's journal; further arguments go to journalctl."""
    from installer.settings import check_service

    argv = [
        "journalctl",
        "--unit",
        f"{check_service(service)}.service",
        *(["--follow"] if follow else []),
        *journalctl_args,
    ]
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606 the terminal and its signals belong to journalctl from here


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    For bash: vllm-install completion bash > /etc/bash_completion.d/vllm-install
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(
        found(click.get_current_context().find_root().command, {}, "vllm-install", "_VLLM_INSTALL_COMPLETE").source()
    )
