"""chat, test, client-config: a service as its clients meet it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from installer.base.errors import Exit, Interrupted, UsageError
from installer.base.language import tr
from installer.base.report import Report, choose
from installer.spec.asked import check_typed
from installer.spec.settings import check_service, to_text
from installer.verbs.options import (
    complete_service,
    json_option,
    meant_service,
    quiet_option,
    service_option,
    service_word,
)
from installer.verbs.output import as_plain, print_json, write_out

if TYPE_CHECKING:
    from installer.acceptance.apitest import Outcome, Subject
    from installer.acceptance.chat import Talk
    from installer.base.host import Host

# A test holds them together with installer.look.formats'.
FORMATS = (
    "env", "spring", "python", "curl", "litellm", "claude-code", "opencode", "vscode", "jetbrains", "open-webui",
)  # fmt: skip


# For a throwaway server: option, setting and help. Named as in the tool that this one replaces.
TRIAL_OPTIONS = (
    ("--port", "port", "PORT", "With --model: the port of its server [default: a free one]"),
    ("--gpus", "tensor_parallel_size", "N", "With --model: number of GPUs that share it [default: 1]"),
    ("--max-len", "max_model_len", "TOKENS", "With --model: context, 1024, 32k, 256K or auto [default: 1024]"),
    ("--gpu-util", "gpu_memory_utilization", "SHARE", "With --model: share of the GPU's memory [default: 0.95]"),
    ("--engine", "engine", "KIND", "With --model: build of vLLM, auto, cuda, cpu or rocm [default: auto]"),
    ("--tool-call-parser", "tool_call_parser", "NAME", "With --model: auto, none or a name [default: auto]"),
)


def trial_options(function: click.decorators.FC) -> click.decorators.FC:
    for flag, name, metavar, help in reversed(TRIAL_OPTIONS):
        function = click.option(flag, name, metavar=metavar, help=help)(function)
    return function


@click.command()
@service_option
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="Show it a picture with the question.")
@click.option("--system", metavar="TEXT", default="", help="Tell the model first how to answer.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="End an answer after so many tokens.")
@click.option("--key-file", type=click.File(), help="Ask with the key in this file.")
@click.option("--member", type=click.IntRange(1, 64), metavar="K", help="Ask this replica directly, not the gateway.")
@click.option(
    "--timeout", type=click.FloatRange(1, 3600), default=120, show_default=True, help="Seconds without a word."
)
@json_option
@click.argument("text", required=False, metavar="[TEXT|-]")
def chat(
    service: str, image: Path | None, system: str, max_tokens: int | None, key_file: TextIO | None,
    member: int | None, timeout: float, as_json: bool, text: str | None,
) -> None:  # fmt: skip
    """Ask the running model: TEXT, what comes on standard input, or one question after the other.

    The answer comes on standard output, as it is made; how fast that was, and what the model only thinks, on
    standard error.
    """
    from installer.acceptance import subject
    from installer.acceptance.chat import Talk, Wishes
    from installer.acceptance.replies import Failed
    from installer.base.errors import InstallError
    from installer.base.host import Host

    key = subject.check_key(key_file.read()) if key_file else None
    found = subject.of_service(check_service(service), key, Host(), choose(quiet=as_json), timeout, member or 0)
    try:
        if found.is_ours:
            found.is_ours()
    except Failed as failed:
        raise InstallError(failed.text, failed.hint or found.look, Exit.NOT_RUNNING) from None
    talk = Talk(found, Wishes(system, max_tokens), _show_nothing if as_json else _show_piece)
    if text is None and sys.stdin.isatty():
        _talk_on(talk, image)
        return
    question = sys.stdin.read() if text in (None, "-") else text
    if not question or not question.strip():
        raise UsageError(tr("there is no question"), 'vllm-install chat "…"')
    reply = talk.ask(question, image)
    if as_json:
        print_json({"service": service, "model": found.model, **as_plain(reply)})
    else:
        click.echo()
        click.echo(str(reply), err=True)


def _talk_on(talk: Talk, image: Path | None) -> None:
    """Until the end of the input; Ctrl-C breaks off an answer, and between two answers ends it all."""
    click.echo(tr("{model}; end with Ctrl-D", model=talk.subject.model), err=True)
    while True:
        try:
            question = input("> ")
        except (EOFError, Interrupted):
            click.echo(err=True)
            return
        if not question.strip():
            continue
        try:
            reply = talk.ask(question, image)
        except Interrupted:
            click.echo()
            continue
        image = None
        click.echo()
        click.echo(str(reply), err=True)


def _show_piece(piece: str, is_thought: bool) -> None:
    click.echo(piece, nl=False, err=is_thought)


def _show_nothing(piece: str, is_thought: bool) -> None:
    pass


@click.command("test")
@service_option
@click.option("--model", metavar="NAME", help="Test this model on a throwaway server of its own, not a service.")
@trial_options
@click.argument("vllm_args", nargs=-1, metavar="[SERVICE] [-- VLLM_FLAGS...]", shell_complete=complete_service)
@click.option("--tools/--no-tools", default=None, help="Test calling tools [default: where a parser is set]")
@click.option("--image/--no-image", default=None, help="Test a picture [default: where the model takes one]")
@click.option("--key-file", type=click.File(), help="Ask with the key in this file; - reads standard input.")
@click.option(
    "--timeout", type=click.FloatRange(1, 3600), default=120, show_default=True, help="Seconds an answer may take."
)
@click.option("--member", type=click.IntRange(1, 64), metavar="K", help="Ask this replica directly, not the gateway.")
@click.option("--junit", type=click.Path(), metavar="FILE", help="Write the results for CI, too; - is standard output.")
@json_option
@quiet_option
@click.pass_context
def test(
    context: click.Context, /, service: str, model: str | None, tools: bool | None, image: bool | None,
    key_file: TextIO | None, timeout: float, member: int | None, junit: str | None, as_json: bool, quiet: bool,
    vllm_args: tuple[str, ...], **options: str | None,
) -> None:  # fmt: skip
    """Ask a service all that its clients will ask of it; exit status 6 unless every test that applies passes.

    With --model the same on a throwaway server, of which nothing is left afterwards, however it ends.
    """
    from installer.acceptance import results, subject
    from installer.base.host import Host

    host, report = Host(), choose(quiet=quiet or as_json)
    given = {name: value for name, value in options.items() if value is not None}
    for flag, setting, *_ in TRIAL_OPTIONS:
        if setting in given:
            check_typed(setting, flag, given[setting])
    if vllm_args and model is None and not vllm_args[0].startswith("-"):
        service, vllm_args = meant_service(context, service, vllm_args[0]), vllm_args[1:]
    if vllm_args:
        given["vllm_args"] = to_text("vllm_args", vllm_args)
    if model is None:
        if given:
            raise UsageError(
                tr("these options are for a throwaway server"), tr("name its model: vllm-install test --model NAME")
            )
        key = subject.check_key(key_file.read()) if key_file else None
        found = subject.of_service(check_service(service), key, host, report, timeout, member or 0)
        outcomes = _run(found, tools, image, report)
    else:
        if key_file or member or context.get_parameter_source("service") is not click.core.ParameterSource.DEFAULT:
            raise UsageError(
                tr("a throwaway server has a key and a name of its own"),
                tr("leave out --service, --key-file and --member"),
            )
        found, outcomes = _run_trial({**given, "model": model}, tools, image, timeout, host, report)
    name = service if model is None else None
    if as_json:
        print_json(results.to_json(name, found, outcomes))
    else:
        results.show(name, found, outcomes)
    if junit:
        write_out(results.to_junit(name, found, outcomes), junit, host)
    sys.exit(Exit.DONE if results.all_passed(outcomes) else Exit.NOT_PROVED)


def _run(subject: Subject, tools: bool | None, image: bool | None, report: Report) -> list[Outcome]:
    from dataclasses import replace

    from installer.acceptance import apitest

    if tools is not None:
        subject = replace(subject, no_tools="" if tools else tr("not asked for (--no-tools)"))
    if image is not None:
        subject = replace(subject, no_image="" if image else tr("not asked for (--no-image)"))
    return apitest.run(subject, report)


def _run_trial(
    flags: dict[str, str], tools: bool | None, image: bool | None, timeout: float, host: Host, report: Report
) -> tuple[Subject, list[Outcome]]:
    from installer.acceptance import results, subject, trial

    with trial.server(trial.settings_of(flags), host, report) as server:
        found = subject.of_trial(server, timeout)
        outcomes = _run(found, tools, image, report)
        ended = None if results.all_passed(outcomes) else server.why_ended()
        if ended:
            report.warn(ended.message)
    return found, outcomes


@click.command("client-config")
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What the client reads.")
@service_word
@click.option("--for", "far", metavar="HOST", help="Where the client runs [default: on this host]")
@click.option("--show-key", is_flag=True, help="Put the key in, where the unit holds it verbatim (root only).")
@json_option
def client_config(form: str, service: str, far: str | None, show_key: bool, as_json: bool) -> None:
    """Print what a client needs, ready to paste: address, model and where the key goes."""
    from installer.base.host import Host
    from installer.look import client as view
    from installer.look.formats import FORMATS as AS_TEXT
    from installer.look.formats import TRUST_ELSEWHERE

    client = view.client_of(check_service(service), Host(), choose(quiet=False), far=far, show_key=show_key)
    text = AS_TEXT[form](client)
    if as_json:
        print_json(
            {
                "service": service, "format": form, "base_url": client.base_url, "model": client.model,
                "api_key": client.key, "text": text,
            }
        )  # fmt: skip
        return
    click.echo(text, nl=False)
    if client.authority and form in TRUST_ELSEWHERE:
        said = tr("{path} belongs among the certificates that the client trusts", path=client.authority)
        click.echo(said, err=True)
    if client.key is None:
        click.echo(
            tr(
                "the key was shown once, when it was made; a new one: sudo vllm-install set-apikey --service {service}",
                service=service,
            ),
            err=True,
        )
