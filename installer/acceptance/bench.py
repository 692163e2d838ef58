"""How fast a service is: its engine's own `vllm bench serve`, through gateway and guard, with ever more at once.

The load comes from a process of its own, which is nobody: it has the sandbox of the service and a user that exists no
longer than it (runtime/vllm_bench.py). What it says are numbers.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from installer.acceptance.bench_subject import Bench, Wishes, begin
from installer.acceptance.kept import BOOTSTRAP, Kept, can_confine, unit_words
from installer.acceptance.measured import PERCENTILES, Load, Measured, Step, save, step_of
from installer.acceptance.replies import Failed
from installer.base.errors import Exit, InstallError, Interrupted
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.forms.venv import python_of
from installer.look import load
from installer.runtime.vllm_text import one_line
from installer.units.api import Api, Body, NoAnswer

EVERY = 0.5  # seconds between two looks at what the engine says of itself
GROWS = 1.05  # what more at once must bring, or it is no more
TOO_LONG = 5  # times what a step is to take
FEWEST = 3  # requests of a step
ROUNDS = 2  # that each of those who ask at once asks at least
LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUICK_LADDER = (1, 4, 16, 64, 256)
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--")


def run(bench: Bench, wishes: Wishes, host: Host, report: Report, *, is_whole: bool = False) -> Measured:
    """Kept after every step, so that what was measured outlives whatever ends us.

    `is_whole`: a part of the ladder is of no use to who asks, and an interruption ends what he is at.
    """
    measured = begin(bench, wishes, host, report)
    layout = Layout(bench.target.settings.service)
    try:
        for each in climb(bench, measured, wishes, host, report):
            measured = each
            if measured.steps:
                path = save(measured, layout, host)
    except Interrupted:
        if not measured.steps:
            raise
        measured = replace(measured, ended="interrupted")
        path = save(measured, layout, host)
        if is_whole:
            raise
    if not measured.steps:
        raise InstallError(measured.why_ended, bench.subject.look, Exit.NOT_PROVED)
    report.note(tr("kept as {path}", path=path))
    return measured


def climb(bench: Bench, measured: Measured, wishes: Wishes, host: Host, report: Report) -> Iterator[Measured]:
    """What was measured so far, after each step; the last says why there are no more."""
    rate = 1 / _first_answer(bench, measured.load)
    before = 1
    with _loader(bench, measured, host, report) as kept:
        for concurrency in wishes.concurrency or (QUICK_LADDER if wishes.is_quick else LADDER):
            if not wishes.concurrency and (ended := enough(measured, concurrency, rate)):
                yield replace(measured, ended=ended)
                return
            count = prompts(concurrency, before, rate, measured.load.seconds)
            found = _step(bench, kept, (concurrency, count, measured.load.seed + concurrency), report)
            if isinstance(found, str):
                yield replace(measured, ended="failed", failed_at=concurrency, error=found)
                return
            measured = replace(measured, steps=(*measured.steps, found))
            if found.failed:
                yield replace(measured, ended="failed", failed_at=concurrency, error=found.error)
                return
            yield measured
            rate, before = found.requests, concurrency
    yield replace(measured, ended="done")


def prompts(concurrency: int, before: int, rate: float, seconds: float) -> int:
    """For a step of so many seconds, if it is between as fast as the one before and faster by all who are more."""
    return max(ROUNDS * concurrency, int(rate * (concurrency / before) ** 0.5 * seconds), FEWEST)


def enough(measured: Measured, concurrency: int, rate: float) -> str:
    """Why the ladder ends here; "" where it goes on."""
    *earlier, last, latest = [0.0, 0.0, *(step.tokens for step in measured.steps)]
    if len(measured.steps) > 2 and max(last, latest) < GROWS * max(earlier):
        return "full"
    if measured.steps and ROUNDS * concurrency / rate > TOO_LONG * measured.load.seconds:
        return "slow"
    return ""


def _first_answer(bench: Bench, asked: Load) -> float:
    """Seconds of one answer alone; it says in its own words why there would be none."""
    body: Body = {
        "model": bench.subject.model, "prompt": "Hello", "max_tokens": asked.answer_tokens, "ignore_eos": True,
    }  # fmt: skip
    began = time.monotonic()
    try:
        answer = bench.subject.api.ask("POST", "/v1/completions", body)
    except NoAnswer as error:
        raise InstallError(str(error), bench.subject.look, Exit.NOT_RUNNING) from None
    if answer.status != 200:
        said = f"{answer.status} {answer.words}"
        limited = tr("the key is limited, or the service takes no more at once: vllm-install keys")
        raise InstallError(
            tr("a first question was not answered: {said}", said=said),
            limited if answer.status in (429, 503) else bench.subject.look,
            Exit.NOT_PROVED,
        )
    return max(time.monotonic() - began, 0.001)


def _step(bench: Bench, kept: Kept, what: tuple[int, int, int], report: Report) -> Step | str:
    """The figures, or why there are none."""
    concurrency, count, seed = what
    if bench.subject.is_ours:
        try:
            bench.subject.is_ours()
        except Failed as failed:
            return failed.text
    told = tr("{count} at once, {prompts} requests", count=concurrency, prompts=count)
    with report.waiting(told) as say, _peaks(bench.engines) as peaks:
        words = ["--max-concurrency", concurrency, "--num-prompts", count, "--seed", seed]
        kept.tell([str(word) for word in words])
        result = _answer(kept)
        if isinstance(result, str):
            return result
        found = step_of(concurrency, count, result)
        if not found.completed:
            return found.error or tr("no request was answered")
        say(
            tr(
                "{tokens:.0f} tokens/s, first token after {wait:.0f} ms",
                tokens=found.tokens, wait=found.ttft.p50,
            )
        )  # fmt: skip
    seen = peaks()
    return found if seen is None else replace(found, running=seen[0], waiting=seen[1], cache_used=seen[2])


def _answer(kept: Kept) -> dict[str, object] | str:
    for message in kept.messages():
        if isinstance(message.get("error"), str):
            return one_line(str(message["error"]))
        if isinstance(result := message.get("result"), dict):
            return {**result, "error": one_line(str(result.get("error") or ""))}
        if message.get("ready"):
            return {}
    return one_line(" ".join(kept.said)) or tr("it ended without a word")


@contextlib.contextmanager
def _peaks(engines: tuple[Api, ...]) -> Iterator[Callable[[], tuple[float, float, float | None] | None]]:
    """The most that ran, waited and lay in the cache while this lasts; None where the engines tell nothing."""
    seen, over = list[load.Sample](), threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            if sample := load.together(map(load.sample, engines)):
                seen.append(sample)

    def most() -> tuple[float, float, float | None] | None:
        shares = [sample.cache_used for sample in seen if sample.cache_used is not None]
        running, waiting = (
            max((getattr(s, name) or 0.0 for s in seen), default=0.0) for name in ("running", "waiting")
        )
        return (running, waiting, max(shares, default=None)) if seen else None

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


# The process that asks


@contextlib.contextmanager
def _loader(bench: Bench, measured: Measured, host: Host, report: Report) -> Iterator[Kept]:
    layout = Layout(bench.target.settings.service)
    unit = f"vllm-install-bench-{os.getpid()}.service"
    wrapper = unit_words(unit, "load for vLLM", bench.unit_text) if can_confine(host) else NOBODY
    python = python_of(layout.engines / bench.target.engine.id)
    api = bench.subject.api
    task = {"key": api.key, "certificate": api.certificate, "words": _words(bench, measured.load)}
    with host.keep(*wrapper, python, "-I", "-c", BOOTSTRAP) as process:
        kept = Kept(process)
        with report.waiting(tr("starting the engine's own bench")):
            kept.start("vllm_bench.py", task)
            ready = _answer(kept)
        if isinstance(ready, str):
            raise InstallError(tr("the engine's own bench did not start: {said}", said=ready), exit_code=Exit.ENGINE)
        yield kept


def _words(bench: Bench, asked: Load) -> list[str]:
    flags = bench.flags
    chosen = [word for name in ("--tokenizer-mode",) if name in flags for word in (name, flags[name])]
    trust = ["--trust-remote-code"] if "--trust-remote-code" in flags else []
    return [
        "--backend", "openai", "--endpoint", "/v1/completions", "--base-url", bench.subject.api.url,
        "--model", bench.subject.model, "--tokenizer", flags.get("--tokenizer", str(bench.target.model.path)),
        *chosen, *trust,
        "--dataset-name", "random", "--temperature", "0", "--random-input-len", str(asked.prompt_tokens),
        "--random-output-len", str(asked.answer_tokens),
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", ",".join(map(str, PERCENTILES)),
        "--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-detailed",
        "--goodput", *(f"{name}:{value:g}" for name, value in asked.goals.items()),
    ]  # fmt: skip
