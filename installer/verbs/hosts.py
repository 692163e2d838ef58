"""hosts: the hosts that serve as one, and those that are taken out and back."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from installer.base.errors import Exit, Interrupted, Refused, UsageError, explain
from installer.base.language import tr
from installer.base.report import choose
from installer.spec.settings import NAMES, check_service
from installer.verbs.options import ServiceGroup, below_service_option, json_option, quiet_option, service_option
from installer.verbs.output import print_json

if TYPE_CHECKING:
    from installer.base.host import Host
    from installer.group.member import Ran, Run
    from installer.spec.group import Group


@click.group("hosts", cls=ServiceGroup, invoke_without_command=True)
@service_option
@click.option("--session", is_flag=True, hidden=True)  # what another host asks this one through
@click.option("--give", is_flag=True, hidden=True)  # weights to it
@click.option("--take", is_flag=True, hidden=True)  # weights from it
@json_option
@click.pass_context
def hosts(context: click.Context, service: str, session: bool, give: bool, take: bool, as_json: bool) -> None:
    """List the hosts that serve as one, and what each says of itself.

    A change of all hosts that was cut off is said here, and completed by the next command that changes something.
    """
    from installer.base.host import Host
    from installer.group import look

    context.obj = check_service(service)
    if context.invoked_subcommand:
        return
    if session:
        _answer(context.find_root().command)
        return
    if give or take:
        from installer.group.session import End

        End(sys.stdin.buffer, sys.stdout.buffer, Host()).serve(End.give if give else End.take)
        return
    host = Host()
    found = look.at(host, _group(host, service), service, choose(quiet=True))
    if as_json:
        print_json(look.to_json(found))
    else:
        for line in look.lines(found):
            click.echo(line)
    sys.exit(Exit.DONE if found.is_whole else Exit.FAULTS_FOUND)


def _group(host: Host, service: str) -> Group:
    from installer.base.layout import Layout
    from installer.group.change import group_of
    from installer.spec.records import managed

    if (group := group_of(host, service)) is None:
        managed(host, Layout(service), to_look=True)
        raise Refused(
            tr("{service} is on this host alone", service=service),
            f"vllm-install deploy --service {service} --hosts gpu1,gpu2",
        )
    return group


def _answer(root: click.Command) -> None:
    from installer.base.host import Host
    from installer.group.session import Session

    def runner(note: Callable[[str], None]) -> Run:
        return lambda words, text, environment: _run(root, words, text, environment, note)

    Session(sys.stdin, sys.stdout, Host(), runner).serve()


def _run(
    root: click.Command, words: Sequence[str], text: str, environment: Mapping[str, str], note: Callable[[str], None]
) -> Ran:
    """A verb in this process: a signal reaches it as it would at a terminal, and it undoes itself."""
    from installer.group.member import Ran

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(_Noted(note)), _given(text, environment):
        try:
            root.main([*words], prog_name="vllm-install", standalone_mode=False)
        except SystemExit as ended:
            return Ran(int(ended.code or 0), out.getvalue())
        except click.ClickException as error:
            return Ran(Exit.USAGE, out.getvalue(), error.format_message())
        except Interrupted:
            raise
        except Exception as error:
            if (known := explain(error)) is None:
                raise
            return Ran(known.exit_code, out.getvalue(), known.message, known.hint)
    return Ran(Exit.DONE, out.getvalue())


@contextmanager
def _given(text: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Standard input, and those variables that are settings."""
    before, came = dict(os.environ), sys.stdin
    try:
        os.environ.update({name: value for name, value in environment.items() if name in NAMES})
        sys.stdin = io.StringIO(text)
        yield
    finally:
        sys.stdin = came
        os.environ.clear()
        os.environ.update(before)


class _Noted(io.TextIOBase):
    """Standard error, of which each line is told."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._rest = note, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._note(line.strip())
        return len(text)

    def isatty(self) -> bool:
        return False


@hosts.command("drain")
@click.argument("name")
@below_service_option
@quiet_option
@click.pass_obj
def drain(chosen: str, name: str, service: str | None, quiet: bool) -> None:
    """Take a host out: its service finishes what it is asked and stops, and changes pass it by."""
    from installer.base.host import Host
    from installer.group import roster

    service, host = check_service(service or chosen), Host()
    roster.drain(_named(_group(host, service), name), name, service, host, choose(quiet=quiet))
    click.echo(tr("{name} is taken out of {service}; back: vllm-install hosts join {name}", name=name, service=service))


@hosts.command("join")
@click.argument("name")
@below_service_option
@quiet_option
@click.pass_obj
def join(chosen: str, name: str, service: str | None, quiet: bool) -> None:
    """Take a host back, or one that was installed anew: it gets what the others have, proved."""
    from installer.base.host import Host
    from installer.group import roster

    service, host = check_service(service or chosen), Host()
    roster.join(_named(_group(host, service), name), name, service, host, choose(quiet=quiet))
    click.echo(tr("{name} serves {service} with the others", name=name, service=service))


@hosts.command("remove")
@click.argument("name")
@below_service_option
@quiet_option
@click.pass_obj
def remove(chosen: str, name: str, service: str | None, quiet: bool) -> None:
    """Let a host go for good: the others know it no more, and what it serves is its own."""
    from installer.base.host import Host
    from installer.group import roster

    service, host = check_service(service or chosen), Host()
    roster.remove(_named(_group(host, service), name), name, service, host, choose(quiet=quiet))
    click.echo(tr("{name} is no host of {service} any more", name=name, service=service))


def _named(group: Group, name: str) -> Group:
    if name not in [peer.name for peer in group.peers]:
        raise UsageError(
            tr("{name} is no host of this group", name=name),
            tr("its hosts: {names}", names=", ".join(peer.name for peer in group.peers)),
        )
    return group
