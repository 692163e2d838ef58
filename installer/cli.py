"""The command line: build Settings, call one function, render the result. Heavy imports wait for their verb."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import click

from installer import __version__
from installer.errors import Exit, InstallError, Interrupted, UsageError, explain

if TYPE_CHECKING:
    from installer.changes import Change
    from installer.deploy import Deployed, KeyChoice
    from installer.settings import Settings

F = TypeVar("F", bound=Callable[..., object])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

service_option = click.option(
    "--service", default="qwen3vl", show_default=True, metavar="NAME", help="Which service.",
    shell_complete=lambda ctx, param, incomplete: [s for s in _known_services() if s.startswith(incomplete)],
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress, only warnings and the result.")

# One option for every setting; a value is checked by the setting's own parser, so all sources share one rule.
SETTING_OPTIONS = (
    ("--model", "model", "NAME", "Hub id, directory, or builtin:tiny [default: Qwen/Qwen3-VL-8B-Instruct]"),
    ("--revision", "revision", "REV", "Branch, tag or commit of the model on the hub."),
    ("--models-dir", "models_dir", "DIR", "Directory in which a relative --model is looked up first."),
    (
        "--served-model-name",
        "served_model_name",
        "NAME",
        "Model id that clients use [default: the model's own]",
    ),
    ("--context", "max_model_len", "TOKENS", "Context length: 1024, 32k, 256K or auto [default: 1024]"),
    (
        "--gpu-memory-utilization",
        "gpu_memory_utilization",
        "SHARE",
        "Share of the GPU's memory [default: 0.95]",
    ),
    (
        "--tensor-parallel-size",
        "tensor_parallel_size",
        "N",
        "Number of GPUs that share the model [default: 1]",
    ),
    ("--host", "host", "ADDRESS", "Address to listen on [default: 0.0.0.0]"),
    ("--port", "port", "PORT", "Port to listen on [default: 8000]"),
    ("--drain", "drain", "SECONDS", "Time that running requests get to finish at a stop [default: 30]"),
    (
        "--allowed-media-domains",
        "allowed_media_domains",
        "NAMES",
        "Domains that images may come from [default: none]",
    ),
    ("--engine", "engine", "KIND", "Build of vLLM: auto, cuda, cpu or rocm [default: auto]"),
    ("--vllm-version", "vllm_version", "VERSION", "Version of vLLM [default: 0.32.0]"),
    ("--python", "python", "PATH", "Interpreter for the engine [default: found on the host]"),
    ("--index-url", "index_url", "URL", "Package index instead of PyPI."),
    ("--find-links", "find_links", "PLACE", "Directory or page with further wheels."),
    ("--hf-endpoint", "hf_endpoint", "URL", "Mirror of the model hub."),
)


def setting_options(function: F) -> F:
    for flag, name, metavar, help in reversed(SETTING_OPTIONS):
        function = click.option(flag, name, metavar=metavar, help=help)(function)
    function = click.option("--max-model-len", "max_model_len", metavar="TOKENS", hidden=True)(function)
    function = click.option("--offline/--online", "offline", default=None, help="Use only what is here already.")(
        function
    )
    function = click.option(
        "--api-key-file", metavar="FILE", help="Take the API key from a file, or from - for standard input."
    )(function)
    function = click.option(
        "--plain-api-key",
        is_flag=True,
        help="Write the key itself into the unit: every local user can read it.",
    )(function)
    function = click.option("--discard-edits", is_flag=True, help="Overwrite files of ours that were edited by hand.")(
        function
    )
    return click.argument("vllm_args", nargs=-1, metavar="[-- VLLM_FLAGS...]")(function)


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="vllm-install")
def cli() -> None:
    """Install, prove and run vLLM as a hardened systemd service."""


@cli.command()
@service_option
@setting_options
@json_option
@quiet_option
def deploy(service: str, as_json: bool, quiet: bool, **options: object) -> None:
    """Converge the host to the settings asked for.

    Settings come from the defaults, /etc/vllm-install/NAME.env, the environment and the options, the last one
    wins; they are kept in that file. Run twice, the second run changes nothing.
    """
    from installer import deploy as flow
    from installer.host import Host
    from installer.report import choose

    host, report = Host(), choose(quiet=quiet or as_json)
    settings = _settings(service, host, options)

    def show(done: Deployed) -> None:
        if as_json:
            changes = [change.to_json() for change in done.changes]
            _print_json({"service": service, "changes": changes, "api_key": done.new_key})
        else:
            _print_deployed(done)
        sys.stdout.flush()

    flow.deploy(settings, host, report, _key_choice(options), discard_edits=bool(options["discard_edits"]), show=show)


@cli.command()
@service_option
@setting_options
@json_option
def plan(service: str, as_json: bool, **options: object) -> None:
    """Show every change that deploy would make, and make none."""
    from installer import deploy as flow
    from installer.host import Host
    from installer.report import choose

    host = Host()
    settings = _settings(service, host, options)
    changes = flow.plan(
        settings,
        host,
        choose(quiet=as_json),
        _key_choice(options),
        discard_edits=bool(options["discard_edits"]),
    )
    _print_changes(service, changes, as_json)


@cli.command()
@service_option
@click.option("--purge", is_flag=True, help="Remove the weights too.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@quiet_option
def uninstall(service: str, purge: bool, dry_run: bool, yes: bool, as_json: bool, quiet: bool) -> None:
    """Remove exactly what was made for a service; its weights stay unless --purge."""
    from installer import deploy as flow
    from installer.host import Host
    from installer.report import choose

    host = Host()
    changes = flow.plan_uninstall(_service(service), host, purge=purge)
    if not dry_run:
        if not yes and sys.stdin.isatty() and not as_json:
            _print_changes(service, changes, as_json)
            click.confirm("Remove all this?", abort=True)
        changes = flow.uninstall(service, host, choose(quiet=quiet or as_json), purge=purge)
    if as_json or dry_run:
        _print_changes(service, changes, as_json)
    else:
        click.echo(f"{service} is removed" + ("" if purge else "; the weights stay (--purge removes them)"))


@cli.command()
@service_option
@json_option
def status(service: str, as_json: bool) -> None:
    """Show one service on one screen."""
    import dataclasses

    from installer import status as view
    from installer.host import Host

    found = view.status(_service(service), Host())
    if as_json:
        _print_json(dataclasses.asdict(found))
    else:
        for label, text in view.lines(found):
            click.echo(f"{label:>12}  {text}")


@cli.command("list")
@json_option
def list_services(as_json: bool) -> None:
    """List every service this tool manages on the host."""
    import dataclasses

    from installer import status as view
    from installer.host import Host

    found = view.all_services(Host())
    if as_json:
        _print_json([dataclasses.asdict(one) for one in found])
    elif not found:
        click.echo("no services yet; make one with: sudo vllm-install deploy", err=True)
    for one in [] if as_json else found:
        click.echo(f"{one.service:<20} {one.active:<20} {one.address or '-':<28} {one.model or '-'}")


@cli.command(context_settings={"ignore_unknown_options": True})
@service_option
@click.option("-f", "--follow", is_flag=True, help="Keep printing what arrives.")
@click.argument("journalctl_args", nargs=-1, type=click.UNPROCESSED)
def logs(service: str, follow: bool, journalctl_args: tuple[str, ...]) -> None:
    """Show the service's journal; further arguments go to journalctl."""
    argv = [
        "journalctl",
        "--unit",
        f"{_service(service)}.service",
        *(["--follow"] if follow else []),
        *journalctl_args,
    ]
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606 the terminal and its signals belong to journalctl from here


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    For bash: vllm-install completion bash > /etc/bash_completion.d/vllm-install
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(found(cli, {}, "vllm-install", "_VLLM_INSTALL_COMPLETE").source())


# From options to Settings


def _settings(service: str, host: object, options: Mapping[str, object]) -> Settings:
    from installer import settings_file
    from installer.host import Host
    from installer.layout import Layout
    from installer.settings import check_service, load, to_text

    assert isinstance(host, Host)
    path = Layout(check_service(service)).settings_file
    values = settings_file.parse(host.read(path) or "", path)
    for warning in settings_file.unknown(values):
        click.echo(f"warning: {path}: {warning}", err=True)
    names = {name for _, name, _, _ in SETTING_OPTIONS} | {"offline"}
    flags = {name: to_text(name, value) for name, value in options.items() if name in names and value is not None}
    if options["vllm_args"]:
        words = options["vllm_args"]
        assert isinstance(words, tuple)
        flags["vllm_args"] = to_text("vllm_args", words)
    return load(service, values, os.environ, flags)


def _service(name: str) -> str:
    from installer.settings import check_service

    return check_service(name)


def _key_choice(options: Mapping[str, object]) -> KeyChoice:
    from installer import keys
    from installer.deploy import KeyChoice

    source = options["api_key_file"]
    given = None
    if source is not None:
        try:
            text = sys.stdin.read() if source == "-" else Path(str(source)).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the API key cannot be read from {source}: {error}") from None
        given = keys.check(text.strip())
    if options["plain_api_key"]:
        click.echo(
            "warning: the key will be readable by every local user (systemctl cat, systemctl show, ps)",
            err=True,
        )
    return KeyChoice(given, bool(options["plain_api_key"]))


def _known_services() -> list[str]:
    from installer.host import Host
    from installer.state import services

    return services(Host())


# Printing results


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_changes(service: str, changes: list[Change], as_json: bool) -> None:
    if as_json:
        _print_json({"service": service, "changes": [change.to_json() for change in changes]})
    elif not changes:
        click.echo("nothing to change")
    else:
        for change in changes:
            click.echo(change.describe())


def _print_deployed(done: Deployed) -> None:
    from installer.prove import local_address

    target = done.want.target
    address = local_address(target.settings.host)
    url = f"http://{f'[{address}]' if ':' in address else address}:{target.settings.port}/v1"
    service = done.want.layout.service
    if not done.changes:
        click.echo(f"{service} is up to date and answers; nothing was changed")
        return
    click.echo(f"{service} serves, proved by a real answer.\n")
    click.echo(f"  URL      {url}")
    click.echo(f"  model    {target.model.id}")
    if done.new_key:
        click.echo(f"  API key  {done.new_key}   (shown only now; keep it)")
    key = done.new_key or "$API_KEY"
    body = shlex.quote(json.dumps({"model": target.model.id, "messages": [{"role": "user", "content": "Hello"}]}))
    click.echo(f"""
  curl {url}/chat/completions -H 'Authorization: Bearer {key}' \\
    -H 'Content-Type: application/json' -d {body}
  journalctl -u {service} -f
  systemctl restart {service}""")


# The edge: signals, errors, exit codes


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        cli.main(prog_name="vllm-install", standalone_mode=False)
    except click.ClickException as error:
        if _json_is_wanted():
            _print_error(UsageError(error.format_message()))
        else:
            error.show()
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def _json_is_wanted() -> bool:
    ours = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    return "--json" in ours


def _print_error(error: InstallError) -> None:
    if _json_is_wanted():
        _print_json({"error": {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}})
        return
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  help: {error.hint}", err=True)
