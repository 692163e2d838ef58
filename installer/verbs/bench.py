"""bench: how fast a service is, what that speaks for, and what became of it since."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

from installer.base.errors import Exit, Refused, UsageError
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report, choose
from installer.spec.asked import check_typed
from installer.spec.settings import check_service
from installer.verbs.options import (
    Percent,
    ServiceGroup,
    below_service_option,
    json_option,
    quiet_option,
    service_option,
)
from installer.verbs.output import as_plain, print_json, write_out
from installer.verbs.use import TRIAL_OPTIONS, trial_options

if TYPE_CHECKING:
    from installer.acceptance.bench_subject import Wishes
    from installer.acceptance.measured import Measured
    from installer.base.host import Host

GOALS = ("ttft", "tpot", "e2el")
MOST = 4096  # at once, or in a step of the ladder
svg_option = click.option("--svg", type=click.Path(), metavar="FILE", help="Draw it, too; - is standard output.")
throwaway_option = click.option(
    "--throwaway", is_flag=True, help="Of throwaway servers (bench --model), not a service."
)


@click.group("bench", cls=ServiceGroup, invoke_without_command=True)
@service_option
@click.option("--model", metavar="NAME", help="Measure this model on a throwaway server of its own, not a service.")
@trial_options
@click.option("--quick", is_flag=True, help="A coarser ladder and shorter steps: some two minutes.")
@click.option("--concurrency", metavar="N,N…", help="How many ask at once, step by step [default: 1 to 512]")
@click.option("--input-len", type=click.IntRange(1), metavar="TOKENS", help="Of a prompt [default: 512]")
@click.option("--output-len", type=click.IntRange(1), metavar="TOKENS", help="Of an answer [default: 128]")
@click.option(
    "--goodput", metavar="NAME:MS,…",
    help="What a good answer keeps, of ttft, tpot, e2el [default: TARGET_TTFT, TARGET_ITL; else ttft:1000,tpot:50]",
)  # fmt: skip
@click.option("--key-file", type=click.File(), help="Ask with the key in this file; - reads standard input.")
@svg_option
@json_option
@quiet_option
@click.pass_context
def bench(
    context: click.Context, /, service: str, model: str | None, quick: bool, concurrency: str | None,
    input_len: int | None, output_len: int | None, goodput: str | None, key_file: TextIO | None, svg: str | None,
    as_json: bool, quiet: bool, **options: str | None,
) -> None:  # fmt: skip
    """Measure how fast a service is, with ever more who ask at once, and say what that speaks for.

    The load is the engine's own `vllm bench serve`. What was measured is kept, also after Ctrl-C.
    """
    context.obj = check_service(service)
    if context.invoked_subcommand:
        return
    from installer.acceptance.bench_subject import Wishes
    from installer.base.host import Host

    host, report = Host(), choose(quiet=quiet or as_json)
    wishes = Wishes(
        quick,
        numbers(concurrency) if concurrency is not None else (),
        input_len,
        output_len,
        _goals(goodput) if goodput is not None else None,
    )
    given = {name: value for name, value in options.items() if value is not None}
    for flag, setting, *_ in TRIAL_OPTIONS:
        if setting in given:
            check_typed(setting, flag, given[setting])
    _check_root()
    if model is None:
        if given:
            raise UsageError(
                tr("these options are for a throwaway server"), tr("name its model: vllm-install bench --model NAME")
            )
        measured = _of_service(service, key_file, wishes, host, report)
    else:
        if key_file or context.get_parameter_source("service") is not click.core.ParameterSource.DEFAULT:
            raise UsageError(
                tr("a throwaway server has a key and a name of its own"), tr("leave out --service and --key-file")
            )
        measured = _of_trial({**given, "model": model}, wishes, host, report)
    _show(measured, svg, host, as_json=as_json)
    if measured.ended == "interrupted":
        sys.exit(Exit.INTERRUPTED)
    if measured.ended == "failed":
        sys.exit(Exit.NOT_PROVED)


def _of_service(service: str, key_file: TextIO | None, wishes: Wishes, host: Host, report: Report) -> Measured:
    from installer.acceptance import bench as running
    from installer.acceptance import bench_subject, subject

    key = subject.check_key(key_file.read()) if key_file else None
    return running.run(bench_subject.of_service(service, key, host, report), wishes, host, report)


def _of_trial(flags: dict[str, str], wishes: Wishes, host: Host, report: Report) -> Measured:
    from installer.acceptance import bench as running
    from installer.acceptance import bench_subject, trial

    settings = trial.settings_of(flags)
    bench_subject.check_family(settings)
    with trial.server(settings, host, report) as server:
        return running.run(bench_subject.of_trial(server), wishes, host, report)


def _check_root() -> None:
    if os.geteuid() != 0:
        raise Refused(
            tr("bench keeps its results where root alone writes, and lends its load to a user of its own"),
            tr("run the command as root (sudo)"),
        )


def numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and 0 < int(word) <= MOST for word in words):
        raise UsageError(
            tr("{text!r} is no list of how many ask at once", text=text), tr("for example: --concurrency 1,8,64")
        )
    return tuple(sorted({int(word) for word in words}))


def _goals(text: str) -> dict[str, float]:
    found = {}
    for word in text.split(","):
        name, _, value = word.partition(":")
        if name not in GOALS or not value.replace(".", "", 1).isdecimal():
            raise UsageError(
                tr("{word!r} is no goal: a name of {names} and milliseconds", word=word, names=", ".join(GOALS)),
                tr("for example: --goodput ttft:500,tpot:50"),
            )
        found[name] = float(value)
    return found


def _show(measured: Measured, svg: str | None, host: Host, *, as_json: bool) -> None:
    from installer.acceptance import bench_advice, bench_shown
    from installer.acceptance.bench_picture import draw

    advice = bench_advice.advice(measured)
    if svg:
        write_out(draw([measured]), svg, host)
    if as_json:
        print_json({**as_plain(measured), "advice": [as_plain(each) for each in advice]})
        return
    for line in bench_shown.lines(measured, advice):
        click.echo(line)


# What is kept


@bench.command("show")
@click.argument("name", required=False)
@below_service_option
@throwaway_option
@svg_option
@json_option
@click.pass_obj
def show(
    chosen: str, /, name: str | None, service: str | None, throwaway: bool, svg: str | None, as_json: bool
) -> None:
    """Show a result again, the newest where none is named; NAME is one of `bench history`, or a file."""
    from installer.acceptance import measured
    from installer.base.host import Host

    host = Host()
    layout = _layout(service or chosen, host, *filter(None, (name,)), throwaway=throwaway)
    _show(measured.load(name, layout, host) if name else measured.latest(layout, host), svg, host, as_json=as_json)


@bench.command("history")
@below_service_option
@throwaway_option
@json_option
@click.pass_obj
def history(chosen: str, /, service: str | None, throwaway: bool, as_json: bool) -> None:
    """List what was measured: with which engine, how fast at best, how it ended."""
    from installer.acceptance import bench_shown, measured
    from installer.base.host import Host

    host = Host()
    layout = _layout(service or chosen, host, throwaway=throwaway)
    found = measured.history(layout, host)
    if as_json:
        print_json([as_plain(each) for each in found])
        return
    if not found:
        click.echo(tr("nothing of {service} was measured yet", service=layout.service))
    for line in bench_shown.history(found) if found else ():
        click.echo(line)


@bench.command("compare")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@below_service_option
@throwaway_option
@click.option(
    "--margin", type=Percent(), metavar="PERCENT",
    help="Exit with status 6 where B makes so much fewer tokens/s at best.",
)  # fmt: skip
@svg_option
@json_option
@click.pass_obj
def compare(
    chosen: str, /, before: str, after: str, service: str | None, throwaway: bool, margin: float | None,
    svg: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Lay result B beside result A: names of `bench history`, or files."""
    from installer.acceptance import bench_shown, compared, measured
    from installer.acceptance.bench_picture import draw
    from installer.base.host import Host

    host = Host()
    layout = _layout(service or chosen, host, before, after, throwaway=throwaway)
    a, b = (measured.load(word, layout, host) for word in (before, after))
    if not compared.pairs(a, b):
        raise UsageError(
            tr("they have no step in common: nothing can be compared"), tr("measure both with the same --concurrency")
        )
    if svg:
        write_out(draw([a, b]), svg, host)
    slower = compared.slower(a, b)
    if as_json:
        unlike = [{"what": what, "a": was, "b": now} for what, was, now in compared.differences(a, b)]
        print_json({"a": as_plain(a), "b": as_plain(b), "unlike": unlike, "slower": slower})
    else:
        for line in bench_shown.compared(a, b):
            click.echo(line)
    if margin is not None and 100 * slower > margin:
        click.echo(tr("B is {percent:.1f} % slower than A", percent=100 * slower), err=True)
        sys.exit(Exit.NOT_PROVED)


def _layout(service: str, host: Host, *words: str, throwaway: bool) -> Layout:
    """Whose results are meant; a file may be another host's."""
    from installer.acceptance import measured, trial
    from installer.spec.records import managed

    if throwaway:
        return Layout(trial.SERVICE)
    layout = Layout(check_service(service))
    if not words or not all(map(measured.is_file, words)):
        managed(host, layout, to_look=True)
    return layout
