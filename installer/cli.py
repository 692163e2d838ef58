"""The command line: the verbs, and the edge where signals and errors become exit codes."""

from __future__ import annotations

import io
import itertools
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import click

from installer import __version__
from installer.base.cells import pad
from installer.base.errors import Exit, InstallError, Interrupted, UsageError, explain
from installer.base.language import LANGUAGES, OPTION, mark, speak_everywhere, tr
from installer.base.report import protect_terminal
from installer.verbs import adopt, bench, bundle, change, deploy, logs, look, models, usage, use, weights
from installer.verbs.alarm import alarm
from installer.verbs.doctor import doctor
from installer.verbs.export import export
from installer.verbs.help import Formatter, complete, punctuated
from installer.verbs.hosts import hosts
from installer.verbs.keys import keys, set_apikey
from installer.verbs.monitor import monitor
from installer.verbs.options import the_service
from installer.verbs.output import print_failed
from installer.verbs.sbom import sbom
from installer.verbs.soak import soak

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


click.Context.formatter_class = Formatter


SYSTEMCTLS = ("start", "stop", "restart", "reload", "enable", "disable", "mask", "unmask")


VERBS: dict[str, tuple[click.Command, ...]] = {
    mark("Set up"): (deploy.deploy, deploy.plan, deploy.uninstall, look.completion),
    mark("Change"): (
        change.set_values, change.set_context, set_apikey, keys, change.upgrade, change.rollback, soak, change.prune,
    ),
    mark("Look"): (
        look.status, look.list_services, hosts, look.logs, doctor, usage.usage, alarm, use.chat, use.test,
        bench.bench, use.client_config, sbom, monitor,
    ),
    mark("Weights"): (models.models,),
    mark("Move"): (adopt.adopt, adopt.eject, export, bundle.bundle),
}  # fmt: skip


class Unread(Exception):
    """Who read what we print has gone. No OSError: click would end us by itself, as if we had failed.

    What a verb has to show it shows when all is done; what it says meanwhile goes elsewhere, and is of half a change.
    """


@contextmanager
def _read() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        if _is_unread(1) or _is_unread(2):
            raise Unread from error
        raise


class Grouped(click.Group):
    """Lists the verbs by what they are for."""

    @_read()
    def make_context(self, *args: Any, **more: Any) -> click.Context:
        return super().make_context(*args, **more)

    @_read()
    def invoke(self, context: click.Context) -> Any:
        return super().invoke(context)

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.commands))
        for title, verbs in VERBS.items():
            with formatter.section(tr(title)):
                formatter.write_dl([(pad(verb.name or "", widest), verb.short_help or "") for verb in verbs])

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:1] and args[0] in SYSTEMCTLS:
            names = [word for word in args[1:] if not word.startswith("-")] or [the_service()]
            raise UsageError(
                tr("{verb} is systemctl's: a service of ours is one like any other", verb=args[0]),
                f"sudo systemctl {args[0]} {names[0]}",
            )
        return super().resolve_command(context, args)


@click.group(cls=Grouped, context_settings=CONTEXT, invoke_without_command=True)
@click.option(OPTION, type=click.Choice(LANGUAGES), expose_value=False, help="Language [default: the locale's]")
@click.version_option(__version__, prog_name="vllm-install")
@click.pass_context
def cli(context: click.Context) -> None:
    """Install, prove and run vLLM as a hardened systemd service.

    Alone it says what runs on this host, and what to do next.
    """
    if context.invoked_subcommand is None:
        look.overview()


for verb in itertools.chain(*VERBS.values()):
    cli.add_command(verb)
for verb in (weights.verify, weights.list_models, weights.prune):
    models.models.add_command(verb)


keys.add_command(usage.limit)
monitor.add_command(logs.logs)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    protect_terminal()
    speak_everywhere()
    complete(cli)
    try:
        cli.main(prog_name="vllm-install", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and (flag := _flag_of_vllm(error.option_name)):
            _fail(
                UsageError(
                    tr("{flag} is a flag of vLLM's own", flag=flag),
                    tr("give it after --, as in: -- {flag} …", flag=flag),
                )
            )
        if _json_is_wanted():
            _fail(UsageError(punctuated(error.format_message())))
        said = io.StringIO()
        error.show(said)
        with _perhaps_unread():
            click.echo(punctuated(said.getvalue()), err=True, nl=False)
        sys.exit(Exit.USAGE)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
    except Unread:
        unheard = _is_unread(2)
        _say_no_more()
        sys.exit(Exit.INTERRUPTED if unheard else Exit.DONE)
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        _fail(known)


def _fail(error: InstallError) -> NoReturn:
    with _perhaps_unread():
        _print_error(error)
    sys.exit(error.exit_code)


@contextmanager
def _perhaps_unread() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _say_no_more()


def _say_no_more() -> None:
    """What is left in the buffers would be a fault of ours when the process ends."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.close()


def _is_unread(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _flag_of_vllm(typed: str) -> str:
    from installer.runtime import vllm_flags

    known = vllm_flags.load_table()
    name = known.resolve(typed)
    return name if known.is_known(name) else ""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def _json_is_wanted() -> bool:
    ours = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    return "--json" in ours


def _print_error(error: InstallError) -> None:
    print_failed(None, error, _json_is_wanted())
