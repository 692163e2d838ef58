"""status, list, logs, completion."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import click

from installer.base.cells import pad
from installer.base.errors import Exit, Interrupted, UsageError
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Ours, console
from installer.runtime.vllm_text import harmless
from installer.spec.settings import check_service
from installer.verbs.all_hosts import FLAG, TYPED, OnAllHosts
from installer.verbs.options import complete_service, json_option, meant_service, service_option, service_word
from installer.verbs.output import as_plain, print_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import RenderableType

    from installer.base.host import Host

M = TypeVar("M", bound="DataclassInstance")


@click.command(cls=OnAllHosts)
@service_word
@click.option("--watch", "-w", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
@json_option
def status(service: str, watch: bool, as_json: bool) -> None:
    """Show one service on one screen; --watch adds speed, queue and GPU use, live.

    Exit status 0: it runs; 3: it does not, as systemctl has it.
    """
    from installer.base.host import Host
    from installer.look import screen
    from installer.look import status as view

    check_service(service)
    if watch:
        _watch(service, as_json)
        return
    found = view.status(service, Host())
    if as_json:
        print_json(as_plain(found))
    else:
        for label, text in screen.lines(found):
            click.echo(f"{pad(label, -12)}  {text}")
        for line in _hosts(service, Host()):
            click.echo(line)
    sys.exit(Exit.NOT_RUNNING if found.is_dead else Exit.DONE)


def _hosts(service: str, host: Host) -> Iterator[str]:
    """Of a service on several hosts: which, as far as this one knows; `hosts` asks them."""
    from installer.group.change import group_of

    if group := group_of(host, service):
        names = (tr("{name} (taken out)", name=peer.name) if peer.out else peer.name for peer in group.peers)
        yield f"{pad(tr('hosts'), -12)}  {', '.join(names)}: vllm-install hosts {service}"
        if group.change:
            yield f"{pad('', -12)}  {tr('{what} was cut off', what=group.change.what)}"


def _elsewhere(service: str, host: Host) -> Iterator[str]:
    """Of one model on several hosts each has a part of the journal."""
    from installer.group.change import group_of
    from installer.spec.values import SPAN

    if (group := group_of(host, service)) and group.mode == SPAN:
        names = ", ".join(peer.name for peer in group.peers)
        command = f"ssh {group.peers[-1].name} sudo vllm-install logs {service}"
        yield tr("{service} is one model on {names}, each with a journal of its own: {command}",
                 service=service, names=names, command=command)  # fmt: skip


def _watch(service: str, as_json: bool) -> None:
    """Live on a terminal; elsewhere one line, or one JSON object on a line, for every look."""
    from installer.base.host import Host
    from installer.look import watch

    _show(watch.frames(service, Host()), lambda frame, *_: watch.screen(frame), lambda f: [watch.line(f)], as_json)


def _show(
    moments: Iterator[M],
    screen: Callable[[M, int, int], RenderableType],
    lines: Callable[[M], list[str]],
    as_json: bool,
) -> None:
    """Until Ctrl-C."""
    import json

    try:
        if sys.stdout.isatty() and not as_json:
            from rich.live import Live

            with Live(console=console(), auto_refresh=False, screen=False) as live:
                for moment in moments:
                    live.update(screen(moment, live.console.width, live.console.height), refresh=True)
        for moment in moments:
            for line in [json.dumps(as_plain(moment))] if as_json else lines(moment):
                click.echo(line)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)  # how watching ends


@click.command("list", cls=OnAllHosts)
@click.option("--watch", "-w", is_flag=True, help="Look again every two seconds, until Ctrl-C: GPUs and load, too.")
@json_option
def list_services(watch: bool, as_json: bool) -> None:
    """List every service this tool manages on the host; --watch shows all of them live, with replicas and GPUs."""
    from installer.base.host import Host
    from installer.diagnosis.said import translated
    from installer.look import status as view
    from installer.look import watch_all

    if watch:
        _show(watch_all.overviews(Host()), watch_all.screen, watch_all.lines, as_json)
        return
    found = view.all_services(Host())
    if as_json:
        print_json([as_plain(one) for one in found])
    elif not found:
        click.echo(tr("no services yet; make one with: sudo vllm-install deploy"), err=True)
    for one in [] if as_json else found:
        click.echo(f"{pad(one.service, 20)} {pad(one.active, 20)} {pad(one.address or '-', 28)} {one.model or '-'}")
        if one.group:
            click.echo(f"  {one.group.words}")
        for member in one.members:
            name = f"  {member.unit.removesuffix('.service')}"
            click.echo(
                f"{pad(name, 20)} {pad(member.active, 20)} {pad(member.address, 28)} {translated(member.stage) or '-'}"
            )


def overview() -> None:
    """Where somebody is who typed nothing more than our name, and what they would type next."""
    from installer.base.host import Host
    from installer.look import status as view

    found = view.all_services(Host())
    if not found:
        click.echo(tr("Nothing is deployed on this host yet. What a deploy would do here, and the deploy itself:"))
        steps = ["vllm-install plan", "sudo vllm-install deploy"]
    else:
        for one in found:
            click.echo(f"{pad(one.service, 20)} {pad(one.active, 20)} {pad(one.address or '-', 28)} {one.model or '-'}")
        name = next((one.service for one in found if one.is_dead), found[0].service)
        looks = ("logs", "doctor") if any(one.is_dead for one in found) else ("status", "client-config --format curl")
        click.echo("\n" + tr("Next:"))
        steps = [f"vllm-install {verb} {name}" for verb in looks]
    for step in (*steps, "vllm-install --help"):
        click.echo(f"  {step}")


class Passthrough(OnAllHosts):
    """Takes its own options out from wherever they stand; every other word is journalctl's, such as -1h."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        own: list[str] = []
        rest: list[str] = []
        words = iter(args)
        for word in words:
            if (
                word in ("-f", "--follow", FLAG)
                or word.startswith("--service=")
                or (word in ("-h", "--help") and not rest)
            ):
                own.append(word)
            elif word == "--service":
                own += [word, *([value] if (value := next(words, None)) is not None else [])]
            else:
                rest.append(word)
        named = self._take_service(rest)
        left = super().parse_args(context, [*own, "--", *rest])
        context.meta[TYPED] = args
        context.params["service"] = meant_service(context, context.params["service"], named)
        return left

    @staticmethod
    def _take_service(words: list[str]) -> str | None:
        """journalctl's own words are options, their values, matches such as PRIORITY=3, and paths; ours is none."""
        for at, word in enumerate(words):
            if (at == 0 or not words[at - 1].startswith("-")) and re.fullmatch(r"\w[\w-]*(\.service)?", word):
                return words.pop(at)
        return None

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["[SERVICE]", *super().collect_usage_pieces(context)]


@click.command(cls=Passthrough)
@service_option
@click.option("-f", "--follow", is_flag=True, help="Keep printing what arrives.")
@click.argument("journalctl_args", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_service)
def logs(service: str, follow: bool, journalctl_args: tuple[str, ...]) -> None:
    """Show the service's journal, its replicas' too; under a line that tells of a failure what it means and what helps.

    Further arguments go to journalctl: -n 50, --since today, -o json, ...; without any, the last 200 lines.
    """
    from installer.base.host import Host
    from installer.diagnosis.finding import Finding
    from installer.look import logs as journal

    words = [*(["--follow"] if follow else []), *journalctl_args]

    def show(line: str) -> None:
        sys.stdout.write(Ours(line))
        if any(word.startswith(("-f", "--follow")) for word in words):
            sys.stdout.flush()

    def explain(finding: Finding) -> None:
        text = f"    = {finding.cause}\n" + "".join(f"    > {command}\n" for command in finding.commands)
        sys.stdout.write(Ours(click.style(harmless(text), fg="yellow")) if colour else text)
        sys.stdout.flush()

    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    try:
        code = journal.stream(check_service(service), words, Host(), terminal=terminal, show=show, explain=explain)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)  # how following ends
    sys.stdout.flush()
    for line in _elsewhere(service, Host()):
        click.echo(line, err=True)
    if held := journal.waiting(service, Host()):
        click.echo(tr("{what}: {why}", what=service, why=held.words), err=True)
    if not Host().exists(Layout(service).state_file):
        click.echo(tr("vllm-install manages no service {service} on this host", service=service), err=True)
    sys.exit(code)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    For bash: vllm-install completion bash > /etc/bash_completion.d/vllm-install
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(tr("no completion for {shell}", shell=shell))
    click.echo(
        found(click.get_current_context().find_root().command, {}, "vllm-install", "_VLLM_INSTALL_COMPLETE").source()
    )
