"""The figures of `bench` as one picture (SVG): how long one waits against how much is made, one user against all.

One result shows its percentiles; of two, the first is blue and the second orange, each by its median and its p99,
and the points of the second are numbered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from installer.acceptance.bench_advice import goals
from installer.acceptance.measured import Latency, Measured, Step
from installer.acceptance.results import UNPRINTABLE
from installer.base.language import tr
from installer.runtime.vllm_text import one_line

WIDTH, HEIGHT = 1000, 812
LEFT, TOP, ACROSS, DOWN = 72, 160, 392, 232  # of the first plot
STEP_X, STEP_Y = 484, 330  # from one plot to the next
INK, SOFT, LINE, PAGE = "#1f2937", "#6b7280", "#e5e7eb", "#ffffff"
SHARES = (("p50", "#2563eb"), ("p90", "#9333ea"), ("p99", "#e11d48"))  # of one result
RUNS = ("#2563eb", "#ea580c")  # of two
FONT = "system-ui, 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"
LONGEST_NAME = 60
MOST_TICKS = 7
NICE = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Curve:
    name: str
    colour: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From a value to a place between 0 and 1."""

    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        if not self.is_log:
            return (value - low) / (high - low)
        return math.log(max(value, low) / low) / math.log(high / low)


def draw(results: Sequence[Measured]) -> str:
    """Of one result or of two."""
    body = [*_head(results)]
    for number, (title, across, curves) in enumerate(_plots(results)):
        body += [*_frame(number, title, across), *_curves(number, curves)]
    body += _bars(3, results)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    page = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAGE}"/>'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}">', page, *body, "</svg>", ""]
    )


def _head(results: Sequence[Measured]) -> Iterator[str]:
    first = results[0]
    yield _text(36, 44, tr("{model}: how fast it is served", model=_name(first.served.model)), 22, weight=700)
    colours = RUNS if len(results) > 1 else (SOFT,)
    for number, each in enumerate(results):
        yield _text(36, 70 + 20 * number, _conditions(each), 13, colours[number])
    asked = tr(
        "{prompt} tokens asked, {answer} answered; goals: {goals}; the numbers at the points: how many ask at once",
        prompt=first.load.prompt_tokens, answer=first.load.answer_tokens, goals=goals(first),
    )  # fmt: skip
    yield _text(36, 70 + 20 * len(results), asked, 13, SOFT)


def _conditions(measured: Measured) -> str:
    served, machine = measured.served, measured.machine
    where = " + ".join(machine.gpus) or tr("{cpus} processors, {cpu}", cpus=machine.cpus, cpu=machine.cpu)
    day = f"{measured.at[:4]}-{measured.at[4:6]}-{measured.at[6:8]} {measured.at[9:11]}:{measured.at[11:13]} UTC"
    engines = tr(", {count} engines", count=served.engines) if served.engines > 1 else ""
    return f"{served.engine} {served.version} ({served.kind}){engines} · {_name(where)} · {day}"


def _name(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


# What is drawn


def _plots(results: Sequence[Measured]) -> Iterator[tuple[str, str, list[Curve]]]:
    made = tr("tokens/s in all")
    yield tr("Until the first token (TTFT), ms"), made, _latencies(results, lambda step: step.ttft)
    yield tr("Between two tokens (ITL), ms"), made, _latencies(results, lambda step: step.itl)
    users = [
        Curve(
            "",
            RUNS[number],
            tuple((step.tokens_for_one, step.tokens) for step in each.steps),
            _numbers(each) if each is results[-1] else (),
        )
        for number, each in enumerate(results)
    ]
    yield tr("One user against all: tokens/s in all"), tr("tokens/s for one user"), users


def _numbers(measured: Measured) -> tuple[str, ...]:
    return tuple(str(step.concurrency) for step in measured.steps)


def _latencies(results: Sequence[Measured], of: Callable[[Step], Latency]) -> list[Curve]:
    """By the concurrency's order, so that a curve turns back where more at once bring less."""
    found = []
    for number, each in enumerate(results):
        shares = SHARES if len(results) == 1 else (("p50", RUNS[number]), ("p99", RUNS[number]))
        for share, colour in shares:
            points = tuple((step.tokens, getattr(of(step), share)) for step in each.steps)
            labels = _numbers(each) if share == "p50" and each is results[-1] else ()
            name = share if each is results[-1] else ""
            found.append(Curve(name, colour, points, labels, dashed=len(results) > 1 and share == "p99"))
    return found


# One plot


def _corner(number: int) -> tuple[float, float]:
    return LEFT + number % 2 * STEP_X, TOP + number // 2 * STEP_Y


def _frame(number: int, title: str, across: str) -> Iterator[str]:
    x, y = _corner(number)
    yield _text(x - 36, y - 14, title, 14, weight=600)
    yield _text(x + ACROSS, y + DOWN + 36, across, 12, SOFT, "end")


def _curves(number: int, curves: Sequence[Curve]) -> Iterator[str]:
    x, y = _corner(number)
    points = [point for curve in curves for point in curve.points]
    across = Axis(linear([value for value, _ in points]))
    up = Axis(linear([value for _, value in points])) if number == 2 else Axis(decades([v for _, v in points]), True)
    yield from _grid(x, y, across, up)
    for curve in curves:
        placed = [(x + ACROSS * across.place(a), y + DOWN * (1 - up.place(b))) for a, b in curve.points]
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        yield f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="2"{dash}/>'
        for a, b in placed:
            yield f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{curve.colour}" stroke="{PAGE}"/>'
        for (a, b), label in zip(placed, curve.labels, strict=False):
            yield _text(a, b + 17 if number != 2 else b - 9, label, 11, curve.colour, "middle")
    yield from _legend(x + ACROSS, y - 14, [(curve.name, curve.colour, curve.dashed) for curve in curves if curve.name])


def _grid(x: float, y: float, across: Axis | None, up: Axis) -> Iterator[str]:
    for tick in up.ticks:
        at = y + DOWN * (1 - up.place(tick))
        yield f'<line x1="{x}" y1="{at:.1f}" x2="{x + ACROSS}" y2="{at:.1f}" stroke="{LINE}"/>'
        yield _text(x - 8, at + 4, short(tick), 11, SOFT, "end")
    for tick in across.ticks if across else ():
        yield _text(x + ACROSS * across.place(tick) if across else 0, y + DOWN + 18, short(tick), 11, SOFT, "middle")


def _bars(number: int, results: Sequence[Measured]) -> Iterator[str]:
    """All requests pale, those that kept the goals full."""
    x, y = _corner(number)
    counts = sorted({step.concurrency for each in results for step in each.steps})
    up = Axis(linear([step.requests for each in results for step in each.steps]))
    yield from _frame(number, tr("Requests/s: pale all, full those that kept the goals"), tr("how many ask at once"))
    yield from _grid(x, y, None, up)
    slot = ACROSS / max(1, len(counts))
    wide = min(44.0, slot * 0.7 / len(results))
    for run, each in enumerate(results):
        for step in each.steps:
            middle = x + slot * (counts.index(step.concurrency) + 0.5) + wide * (run - (len(results) - 1) / 2)
            for value, opacity in ((step.requests, 0.25), (step.good_requests, 1)):
                tall = DOWN * up.place(value)
                yield (
                    f'<rect x="{middle - wide / 2:.1f}" y="{y + DOWN - tall:.1f}" width="{wide:.1f}" '
                    f'height="{tall:.1f}" fill="{RUNS[run]}" fill-opacity="{opacity}"/>'
                )
    for place, count in enumerate(counts):
        yield _text(x + slot * (place + 0.5), y + DOWN + 18, str(count), 11, SOFT, "middle")


def _legend(right: float, y: float, names: Sequence[tuple[str, str, bool]]) -> Iterator[str]:
    for name, colour, dashed in reversed(names):
        yield _text(right, y, name, 11, INK, "end")
        right -= 7 * len(name) + 8
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        ends = f'x1="{right - 16}" y1="{y - 4}" x2="{right}" y2="{y - 4}"'
        yield f'<line {ends} stroke="{colour}" stroke-width="2"{dash}/>'
        right -= 28


def _text(x: float, y: float, text: str, size: int, fill: str = INK, anchor: str = "start", weight: int = 400) -> str:
    said = escape(UNPRINTABLE.sub("\ufffd", text))
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{said}</text>"


# Axes


def linear(values: Sequence[float]) -> tuple[float, ...]:
    """From 0 to beyond all of them, in few even steps."""
    top = max(values, default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(power * nice for nice in NICE if power * nice * 5 >= top)
    return tuple(step * count for count in range(math.ceil(top / step) + 1))


def decades(values: Sequence[float]) -> tuple[float, ...]:
    """1, 2, 5, 10, … around all of them; 1, 10, 100, … where they are far apart."""
    good = [value for value in values if value > 0] or [1.0]
    low, high = 0.8 * min(good), max(good)
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)]
    fine = _around([power * nice for power in powers for nice in NICE[:3]], low, high)
    return fine if len(fine) <= MOST_TICKS else _around(powers, low, high)


def _around(ticks: Sequence[float], low: float, high: float) -> tuple[float, ...]:
    first = max(number for number, tick in enumerate(ticks) if tick <= low)
    last = next(number for number, tick in enumerate(ticks) if tick >= high)
    return tuple(ticks[first : last + 1])


def short(value: float) -> str:
    """1500 as 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
