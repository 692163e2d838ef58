"""The figures of `bench` on a terminal: one result, two side by side, and all that there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from installer.acceptance.bench_advice import Advice, goals
from installer.acceptance.compared import change, differences, pairs
from installer.acceptance.measured import Measured, Step
from installer.base.cells import pad, width
from installer.base.language import tr
from installer.runtime.vllm_text import one_line

COMMIT = 8  # characters that tell one commit from another


def lines(measured: Measured, advice: Sequence[Advice]) -> Iterator[str]:
    yield _title(measured)
    yield tr(
        "{prompt} tokens asked, {answer} answered, goals: {goals}",
        prompt=measured.load.prompt_tokens, answer=measured.load.answer_tokens, goals=goals(measured),
    )  # fmt: skip
    yield ""
    head = (
        tr("at once"), tr("tokens/s"), tr("for one"), tr("TTFT p50"), "p99", tr("ITL p50"), "p99", tr("requests/s"),
        tr("good"), tr("ran"), tr("waited"), tr("cache"),
    )  # fmt: skip
    yield from table([head, *(_row(step) for step in measured.steps)])
    yield ""
    yield tr("it ended there: {why}", why=measured.why_ended)
    for each in advice:
        yield ""
        yield f"{each.about}: {each.text}"
        yield tr("  because {evidence}", evidence=each.evidence)
        if each.command:
            yield f"  {each.command}"


def compared(before: Measured, after: Measured) -> Iterator[str]:
    for name, each in (("A", before), ("B", after)):
        yield f"{name}: {each.at}  {_title(each)}"
    for name, was, now in differences(before, after):
        yield tr("  unlike: {what}: {was} → {now}", what=name, was=one_line(was), now=one_line(now))
    yield ""
    head = (
        tr("at once"), tr("tokens/s A"), "B", "", tr("TTFT p50 A"), "B", "", tr("ITL p99 A"), "B", "",
        tr("good requests/s A"), "B", "",
    )  # fmt: skip
    rows = []
    for pair in pairs(before, after):
        a, b = pair.before, pair.after
        figures = ((a.tokens, b.tokens), (a.ttft.p50, b.ttft.p50), (a.itl.p99, b.itl.p99))
        good = (a.good_requests, b.good_requests)
        rows.append((str(a.concurrency), *_changes([*figures, good])))
    yield from table([head, *rows])


def history(found: Sequence[Measured]) -> Iterator[str]:
    head = (tr("name"), tr("engine"), tr("model"), tr("at best"), tr("at once"), tr("good requests/s"), tr("ended"))
    rows = []
    for each in found:
        engine = f"{each.served.engine} {each.served.version}"
        best = each.best if each.steps else None
        figures = (f"{best.tokens:.0f} tokens/s", str(best.concurrency)) if best else ("-", "-")
        good = f"{each.best_good.good_requests:.2f}" if best and each.best_good else "-"
        rows.append((each.at, engine, one_line(each.served.model), *figures, good, each.why_ended))
    yield from table([head, *rows], left=3)


def _title(measured: Measured) -> str:
    served, machine = measured.served, measured.machine
    where = ", ".join(machine.gpus) or tr("{cpus} processors, {cpu}", cpus=machine.cpus, cpu=machine.cpu)
    commit = f" ({served.commit[:COMMIT]})" if served.commit else ""
    name = served.service or tr("throwaway server")
    return one_line(f"{name}: {served.model}{commit}, {served.engine} {served.version} {served.kind}, {where}")


def _row(step: Step) -> tuple[str, ...]:
    def known(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        str(step.concurrency), f"{step.tokens:.1f}", f"{step.tokens_for_one:.1f}", _ms(step.ttft.p50),
        _ms(step.ttft.p99), _ms(step.itl.p50), _ms(step.itl.p99), f"{step.requests:.2f}", f"{step.good_requests:.2f}",
        known(step.running, ".0f"), known(step.waiting, ".0f"), known(step.cache_used, ".0%"),
    )  # fmt: skip


def _changes(figures: Sequence[tuple[float, float]]) -> Iterator[str]:
    for was, now in figures:
        yield f"{was:.4g}"
        yield f"{now:.4g}"
        yield f"{change(was, now):+.0%}" if was else ""


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def table(rows: Sequence[Sequence[str]], left: int = 0) -> Iterator[str]:
    """In columns: the first `left` begin at one place, the others end there."""
    widths = [max(width(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = (
            pad(text, wide if at < left else -wide) for at, (text, wide) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
