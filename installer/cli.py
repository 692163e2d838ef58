"""The command line: the verbs, and the edge where signals and errors become exit codes."""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType

import click

from installer import __version__
from installer.base.errors import Exit, InstallError, Interrupted, UsageError, explain
from installer.base.language import LANGUAGES, OPTION, speak_everywhere, tr
from installer.base.report import protect_terminal
from installer.verbs import adopt, bundle, change, deploy, look, models, use, weights
from installer.verbs.doctor import doctor
from installer.verbs.help import Formatter, punctuated, translate
from installer.verbs.output import print_json
from installer.verbs.soak import soak

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


click.Context.formatter_class = Formatter


SYSTEMCTLS = ("start", "stop", "restart", "reload", "enable", "disable", "mask", "unmask")


class InOrder(click.Group):
    """Lists the verbs as a user meets them, not by the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:1] and args[0] in SYSTEMCTLS:
            names = [word for word in args[1:] if not word.startswith("-")] or ["qwen3vl"]
            raise UsageError(
                tr("{verb} is systemctl's: a service of ours is one like any other", verb=args[0]),
                f"sudo systemctl {args[0]} {names[0]}",
            )
        return super().resolve_command(context, args)


@click.group(cls=InOrder, context_settings=CONTEXT)
@click.option(OPTION, type=click.Choice(LANGUAGES), expose_value=False, help="Language [default: the locale's]")
@click.version_option(__version__, prog_name="vllm-install")
def cli() -> None:
    """Install, prove and run vLLM as a hardened systemd service."""


for verb in (
    deploy.deploy, deploy.plan, change.set_apikey, change.keys, change.set_context, change.set_values,
    change.upgrade, change.rollback, soak, look.status, doctor, look.list_services, look.logs, use.test,
    use.client_config, models.models, bundle.bundle, change.prune, adopt.adopt, adopt.eject,
    deploy.uninstall, look.completion,
):  # fmt: skip
    cli.add_command(verb)
for verb in (weights.verify, weights.list_models, weights.prune):
    models.models.add_command(verb)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    protect_terminal()
    speak_everywhere()
    translate(cli)
    try:
        cli.main(prog_name="vllm-install", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and (flag := _flag_of_vllm(error.option_name)):
            _print_error(
                UsageError(
                    tr("{flag} is a flag of vLLM's own", flag=flag),
                    tr("give it after --, as in: -- {flag} …", flag=flag),
                )
            )
            sys.exit(Exit.USAGE)
        if _json_is_wanted():
            _print_error(UsageError(punctuated(error.format_message())))
        else:
            said = io.StringIO()
            error.show(said)
            click.echo(punctuated(said.getvalue()), err=True, nl=False)
        sys.exit(Exit.USAGE)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(Exit.DONE)
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        _print_error(known)
        sys.exit(known.exit_code)


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
    if _json_is_wanted():
        print_json({"error": {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}})
        return
    click.echo(tr("error: {message}", message=error.message), err=True)
    if error.hint:
        click.echo(tr("  help: {hint}", hint=error.hint), err=True)
