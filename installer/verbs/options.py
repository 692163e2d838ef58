"""Options that several verbs take, and what becomes of them."""

from __future__ import annotations

import difflib
import functools
import math
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from installer.base.errors import Exit, InstallError, Interrupted, Refused, UsageError
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.base.locks import for_root
from installer.base.report import Report
from installer.spec import values
from installer.spec.asked import field_named, load_settings
from installer.spec.settings import FIELDS, Settings, brief_help, check_service, to_text

if TYPE_CHECKING:
    from installer.airgap.bundle_file import Bundle
    from installer.base.changes import Change
    from installer.base.host import Host
    from installer.flow.request import KeyChoice

SHORTEST_SOAK, LONGEST_SOAK = 10, 14 * 86400
F = TypeVar("F", bound=Callable[..., object])


yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def agree(question: str, changes: Sequence[Change], *, yes: bool) -> None:
    """The one rule for what takes something away: --yes, or a yes on a terminal. Nobody there to ask is a no."""
    if yes:
        return
    again = tr("run the same command with --yes")
    if not sys.stdin.isatty():
        raise Refused(tr("nothing was changed: this needs a yes, and there is no terminal to ask on"), again)
    if os.geteuid() != 0:
        raise for_root()
    for change in changes:
        click.echo(change.describe(), err=True)
    try:
        agreed = click.confirm(question, err=True)
    except (Interrupted, click.Abort):  # nothing has begun, so nothing was cut off
        click.echo(err=True)
        raise InstallError(tr("nothing was changed"), exit_code=Exit.INTERRUPTED) from None
    if not agreed:
        raise Refused(tr("nothing was changed: the answer was no"), again)


def known_services() -> list[str]:
    from installer.base.host import Host
    from installer.spec.records import services

    return services(Host())


def complete_service(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in known_services() if name.startswith(incomplete)]


def the_service() -> str:
    """Whom a verb means that names none: the only service of this host, or else the usual one."""
    found = known_services()
    return found[0] if len(found) == 1 else Settings.service


service_option = click.option(
    "--service", default=the_service, show_default=mark("the only one, else qwen3vl"), metavar="NAME",
    help="Which service.", shell_complete=complete_service,
)  # fmt: skip
# A new one is not meant to take the place of another that happens to be alone.
new_service_option = click.option(
    "--service", default=Settings.service, show_default=True, metavar="NAME", help="Which service.",
    shell_complete=complete_service,
)  # fmt: skip
# Below a verb that has taken the service already.
below_service_option = click.option("--service", metavar="NAME", help="Which service.", shell_complete=complete_service)


def service_word(function: F) -> F:
    """The service by --service or, for verbs that take no other word, simply by its name, as systemctl has it."""

    @functools.wraps(function)
    def named(*args: object, service: str, word: str | None, **options: object) -> object:
        return function(*args, service=meant_service(click.get_current_context(), service, word), **options)

    argument = click.argument("word", required=False, metavar="[SERVICE]", shell_complete=complete_service)
    return service_option(argument(cast(F, named)))


def meant_service(context: click.Context, option: str, word: str | None) -> str:
    """The service that is named, by option or by word; two different ones are a slip that must not go to either."""
    source = context.get_parameter_source("service")
    word = word and word.removesuffix(".service")  # as systemctl names it
    if word is None or word == option:
        return option
    if source is not click.core.ParameterSource.DEFAULT:
        raise UsageError(
            tr("two services are named: {word} and {option}", word=word, option=option),
            tr("name the one that is meant"),
        )
    return word


class ServiceGroup(click.Group):
    """Takes a word that is none of its commands for the service: keys coder."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        takers = {name for each in self.params for name in each.opts if not getattr(each, "is_flag", False)}
        of_option = {at + 1 for at, word in enumerate(args) if word in takers}
        words = (at for at, word in enumerate(args) if not word.startswith("-") and at not in of_option)
        at = next(words, None)
        if at is not None and args[at] not in self.commands and not self._is_slip(args[at]):
            word = args.pop(at)
            rest = super().parse_args(context, args)
            context.params["service"] = meant_service(context, context.params["service"], word)
            return rest
        return super().parse_args(context, args)

    def _is_slip(self, word: str) -> bool:
        """Whether it is one of the commands, mistyped."""
        near = difflib.get_close_matches(word, self.commands)
        return bool(near) and word.removesuffix(".service") not in known_services()

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        services = [CompletionItem(name) for name in known_services() if name.startswith(incomplete)]
        return [*super().shell_complete(context, incomplete), *services]

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["[SERVICE]", *super().collect_usage_pieces(context)]


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be changed.")
discard_option = click.option("--discard-edits", is_flag=True, help="Overwrite files of ours that were edited by hand.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress, only warnings and the result.")


def _parsers(context: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    from installer.families.known import family_of

    known = family_of(Settings()).abilities()
    names = known.tool_parsers if option.name == "tool_call_parser" else known.reasoning_parsers
    return [name for name in ("auto", "none", *names) if name.startswith(incomplete)]


def setting_options(function: F) -> F:
    function = setting_options_named(FIELDS)(function)
    function = click.option("--max-model-len", "max_model_len", metavar="TOKENS", hidden=True)(function)
    function = click.option(
        "--api-key-file", metavar="FILE", help="Take the API key from a file, or from - for standard input."
    )(function)
    function = click.option(
        "--plain-api-key",
        is_flag=True,
        help="Write the key itself into the unit: every local user can read it.",
    )(function)
    function = click.option("--held-key", "held_keys", multiple=True, hidden=True)(function)  # as other hosts have it
    function = discard_option(function)
    return click.argument("vllm_args", nargs=-1, metavar="[-- VLLM_FLAGS...]")(function)


def setting_options_named(names: Collection[str]) -> Callable[[F], F]:
    """The options of some settings, and those about where models come from.

    A value is checked by the setting's own parser, so all sources share one rule.
    """

    def decorate(function: F) -> F:
        for name in reversed([name for name in FIELDS if name in names and FIELDS[name].metavar]):
            about, complete = FIELDS[name], _parsers if name.endswith("_parser") else None
            option = functools.partial(click.option, about.option, name, shell_complete=complete)
            function = option(metavar=about.metavar, help=brief_help(name))(function)
        function = click.option(
            "--modelscope", "model_sources", flag_value="modelscope", help="The same as --model-sources modelscope."
        )(function)
        for name in [name for name in FIELDS if name in (*names, "offline") and FIELDS[name].is_switch]:
            function = click.option(FIELDS[name].option, name, default=None, help=brief_help(name))(function)
        return function

    return decorate


class Percent(click.FloatRange):
    """With the sign or without."""

    def __init__(self) -> None:
        super().__init__(0, 100)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        try:
            number = float(str(value).removesuffix("%"))
        except ValueError:
            number = math.nan
        if not 0 <= number <= 100:
            raise UsageError(
                tr("{text!r} is no share from 0 to 100 percent", text=str(value)), tr("for example: --margin 5%")
            )
        return number


soak_option = click.option(
    "--soak",
    metavar="DURATION",
    callback=lambda _, __, text: None if text is None else _soak_seconds(text),
    help="Watch it on for this long (30m, 2h), and go back by itself if it turns bad.",
)


def _soak_seconds(text: str) -> int:
    from installer.spec.keys import in_seconds

    seconds = in_seconds(text)
    if not SHORTEST_SOAK <= seconds <= LONGEST_SOAK:
        raise UsageError(
            tr("{text} is no time to watch a change for", text=text),
            tr("take between 10 seconds and 14 days, such as 30m"),
        )
    return seconds


resolve_option = click.option(
    "--resolve", is_flag=True, help="Take the newest packages that are offered, not those that were tested."
)


def bundle_options(function: F) -> F:
    """Where the engine and the weights come from instead of the network."""
    help = "Take engine and model from a bundle, or the directory it was unpacked into."
    return click.option("--bundle", type=click.Path(), metavar="FILE", help=help)(trust_options(function))


def trust_options(function: F) -> F:
    digest = click.option("--bundle-sha256", metavar="DIGEST", help="Refuse any bundle but the one with this digest.")
    signers = click.option(
        "--verify-with", type=click.Path(), metavar="FILE", help="Refuse a bundle that none of these signers made."
    )
    return digest(signers(function))


def bundle_from(options: Mapping[str, object], host: Host, report: Report) -> Bundle | None:
    """The bundle that is named, if it is the one that is meant."""
    if options["bundle"] and options["resolve"]:
        raise UsageError(
            tr("--resolve asks for other packages than --bundle, which holds them"), tr("leave one of them out")
        )
    if options["bundle"] is None:
        if options["bundle_sha256"] or options["verify_with"]:
            raise UsageError(tr("--bundle-sha256 and --verify-with are about a bundle"), tr("name it: --bundle FILE"))
        return None
    bundle, signer = authentic(Path(str(options["bundle"])), options, host)
    if signer:
        report.note(tr("{path} was signed by {signer}", path=bundle.path, signer=signer))
    elif not options["bundle_sha256"]:
        report.warn(tr("nothing says who made {path}; --bundle-sha256 or --verify-with would", path=bundle.path))
    return bundle


def address(url: str, example: str) -> str:
    """As somebody typed it, for all to read."""
    try:
        found = values.endpoint(url)
    except ValueError:
        found = None
    if found is None:
        raise UsageError(tr("{url} is no http or https URL without a key in it", url=repr(url)), example)
    return found


def authentic(path: Path, options: Mapping[str, object], host: Host) -> tuple[Bundle, str | None]:
    """A bundle, and who signed it where that was asked for; another than is meant is refused."""
    from installer.airgap import bundle_signature
    from installer.airgap.bundle_file import open_bundle

    digest, signers = options["bundle_sha256"], options["verify_with"]
    bundle = open_bundle(path)
    found = bundle_signature.check_signature(
        bundle, str(digest) if digest else None, Path(str(signers)) if signers else None, host
    )
    return bundle, found


def settings_from(
    service: str,
    host: Host,
    options: Mapping[str, object],
    environment: Mapping[str, str],
    bundle: Bundle | None = None,
) -> Settings:
    from installer.spec import settings_file

    path = Layout(check_service(service)).settings_file
    values = settings_file.parse(host.read(path) or "", path)
    for warning in settings_file.unknown(values):
        click.echo(tr("warning: {text}", text=tr("{what}: {why}", what=path, why=warning)), err=True)
    flags = flags_of(options)
    if words := options.get("vllm_args"):
        assert isinstance(words, tuple)
        check_flags_only(words)
        flags["vllm_args"] = to_text("vllm_args", words)
    if bundle:
        from installer.airgap.bundled import fixed

        flags = fixed(bundle, flags)
    return load_settings(service, values, environment, flags)


def flags_of(options: Mapping[str, object]) -> dict[str, str]:
    """The settings among the options of a verb, by field."""
    names = FIELDS.keys() - {"vllm_args"}  # which are no option, but words
    return {name: to_text(name, value) for name, value in options.items() if name in names and value is not None}


def check_flags_only(words: Sequence[str]) -> None:
    """A word that stands where vLLM's flags do is perhaps a service, and a new one is made by no slip."""
    if not words[0].startswith("-"):
        hint = tr("a service is named with --service {word}; vLLM's own flags stand after --", word=words[0])
        raise UsageError(
            tr("expected a vLLM flag, found {word!r}", word=words[0]), _as_option(words[0]) if "=" in words[0] else hint
        )


def _as_option(assignment: str) -> str:
    name, _, value = assignment.partition("=")
    attribute = field_named(name)
    about = FIELDS[attribute]
    typed = f"{about.typed} {value if attribute == 'vllm_args' else shlex.quote(value)}"
    return tr("a setting is given by its option: {option}", option=about.option if about.is_switch else typed)


def key_choice(options: Mapping[str, object]) -> KeyChoice:
    from installer.flow.request import KeyChoice
    from installer.spec import keys

    source = options["api_key_file"]
    given = None
    if source is not None:
        try:
            text = sys.stdin.read() if source == "-" else Path(str(source)).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                tr("the API key cannot be read from {source}: {error}", source=source, error=error)
            ) from None
        given = keys.check_plain(text.strip())
    if options["plain_api_key"]:
        click.echo(
            tr(
                "warning: {text}",
                text=tr("the key will be readable by every local user (systemctl cat, systemctl show, ps)"),
            ),
            err=True,
        )
    held = options["held_keys"]
    assert isinstance(held, tuple)
    return KeyChoice(given, bool(options["plain_api_key"]), held=tuple(map(keys.parse, held)))
