"""A dashboard drawn as SVG from what a Prometheus answered: the picture of it in the documentation, light or dark."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

from scripts.figures import shown, ticks

Point = tuple[float, float]
COLUMN, LINE, GAP, HEAD = 50, 30, 8, 64
WIDTH = 24 * COLUMN + GAP
LETTER = 6.3  # of a small label, at 11 pixels


class Theme(NamedTuple):
    page: str
    panel: str
    edge: str
    text: str
    faint: str
    grid: str
    palette: tuple[str, ...]
    named: Mapping[str, str]


DARK = Theme(
    "#111217", "#181b1f", "#2c3035", "#dfe3ea", "#8e96a3", "#262a30",
    ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#37872d"),
    {"green": "#73bf69", "blue": "#5794f2", "orange": "#ff9830", "red": "#f2495c", "yellow": "#f2cc0c"},
)  # fmt: skip
LIGHT = Theme(
    "#f4f5f5", "#ffffff", "#dcdfe4", "#22252b", "#6a7079", "#eceef1",
    ("#3d9a45", "#c49b00", "#2f6fd6", "#e0751a", "#d0324a", "#9247b8", "#5b8fd8", "#1f6b26"),
    {"green": "#2f8a3a", "blue": "#2f6fd6", "orange": "#d9690f", "red": "#c9273f", "yellow": "#b08900"},
)  # fmt: skip
THEMES = {"": LIGHT, "-dark": DARK}


class Box(NamedTuple):
    x: float
    y: float
    w: float
    h: float


class Drawn(NamedTuple):
    """What a panel draws with: its place, its description, its answers, the time that is shown, the colours."""

    box: Box
    panel: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    span: tuple[float, float]
    theme: Theme
    marks: Sequence[float]

    @property
    def defaults(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.panel["fieldConfig"]["defaults"]
        return found

    @property
    def unit(self) -> str:
        return str(self.defaults.get("unit", "short"))


def picture(
    board: Mapping[str, Any],
    answers: Mapping[str, Any],
    span: tuple[float, float],
    theme: Theme,
    marks: Sequence[float],
) -> str:
    """The whole dashboard, as wide as Grafana shows it on a screen."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    height = HEAD + bottom * LINE + GAP
    marks = marks if board["annotations"].get("list") else ()
    parts = [_rect(Box(0, 0, WIDTH, height), theme.page), *_head(board, span, theme)]
    for panel in board["panels"]:
        place = panel["gridPos"]
        box = Box(
            GAP + place["x"] * COLUMN, HEAD + place["y"] * LINE, place["w"] * COLUMN - GAP, place["h"] * LINE - GAP
        )
        if panel["type"] == "row":
            parts.append(_text(box.x + 4, box.y + 16, f"⌄ {panel['title']}", theme.text, 14, bold=True))
        else:
            parts += _panel(Drawn(box, panel, answers[str(panel["id"])], span, theme, marks))
    font = "font-family='Inter,Helvetica,Arial,sans-serif'"
    size = f"viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {font}>\n" + "\n".join(parts) + "\n</svg>\n"


def _head(board: Mapping[str, Any], span: tuple[float, float], theme: Theme) -> Iterator[str]:
    yield _text(GAP + 4, 28, board["title"], theme.text, 19, bold=True)
    yield _text(GAP + 4, 48, board["description"], theme.faint, 12)
    yield _text(WIDTH - GAP - 4, 28, f"{_clock(span[0])} – {_clock(span[1])} UTC", theme.faint, 12, anchor="end")


def _panel(drawn: Drawn) -> Iterator[str]:
    box, theme = drawn.box, drawn.theme
    yield _rect(box, theme.panel, theme.edge)
    yield _text(box.x + 10, box.y + 20, drawn.panel["title"], theme.text, 12.5, bold=True)
    inner = Box(box.x + 10, box.y + 30, box.w - 20, box.h - 38)
    yield from _KINDS[drawn.panel["type"]](drawn._replace(box=inner))


def _stat(drawn: Drawn) -> Iterator[str]:
    """The last value, in the colour that it has reached, before its own course."""
    points = _numbers(drawn.lines[0]["points"]) if drawn.lines else []
    if not points:
        yield from _nothing(drawn)
        return
    box, colour = drawn.box, _reached(drawn, points[-1][1])
    low, high = min(value for _, value in points), max(value for _, value in points)
    below = Box(box.x - 9, box.y + box.h * 0.45, box.w + 18, box.h * 0.55 + 7)
    if high - low > high / 1000:  # a course, and not only the time between two looks
        yield _area([_at(point, below, drawn.span, (low, high)) for point in points], below.y + below.h, colour, 0.16)
    yield _text(box.x + box.w / 2, box.y + box.h / 2 + 8, shown(points[-1][1], drawn.unit), colour, 28, anchor="middle")


def _timeseries(drawn: Drawn) -> Iterator[str]:
    lines = [{**line, "points": _numbers(line["points"])} for line in drawn.lines]
    if not any(line["points"] for line in lines):
        yield from _nothing(drawn)
        return
    names = [line["name"] for line in lines]
    rows = _legend_rows(names, drawn.box.w)
    custom = drawn.defaults.get("custom", {})
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    courses = _stacked(lines) if is_stacked else [line["points"] for line in lines]
    steps = _scale(drawn, courses)
    left = 14 + LETTER * max(len(shown(step, drawn.unit)) for step in steps)
    plot = Box(drawn.box.x + left, drawn.box.y + 4, drawn.box.w - left, drawn.box.h - 26 - 16 * rows)
    yield from _axes(drawn, plot, steps)
    opacity = custom.get("fillOpacity", 0) / 100
    yield from (
        _rule(x, plot.y, x, plot.y + plot.h, drawn.theme.named["blue"], dashed=True) for x in _marks(drawn, plot)
    )
    for index in reversed(range(len(courses))):
        colour = drawn.theme.palette[index % len(drawn.theme.palette)]
        path = [_at(point, plot, drawn.span, (0, steps[-1])) for point in courses[index]]
        yield from _course(path, plot, colour, opacity, target=names[index] in ("target", "limit", "may take"))
    yield from _legend(drawn, names)


def _marks(drawn: Drawn, plot: Box) -> list[float]:
    start, end = drawn.span
    return [plot.x + plot.w * (at - start) / (end - start) for at in drawn.marks]


def _course(path: Sequence[Point], plot: Box, colour: str, opacity: float, *, target: bool) -> Iterator[str]:
    path = _without_level_points(path)
    if opacity and path:
        yield _area(path, plot.y + plot.h, colour, opacity)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    how = f"stroke='{colour}' stroke-width='1.6' stroke-linejoin='round'"
    dashes = " stroke-dasharray='6 4'" if target else ""
    yield f"<polyline points='{points}' fill='none' {how}{dashes}/>"


def _without_level_points(path: Sequence[Point]) -> list[Point]:
    """A line that stays level needs its ends only."""
    inner = zip(path, path[1:], path[2:], strict=False)
    kept = [here for before, here, after in inner if not before[1] == here[1] == after[1]]
    return [*path[:1], *kept, *path[-1:]]


def _stacked(lines: Sequence[Mapping[str, Any]]) -> list[list[Point]]:
    heights: dict[float, float] = {}
    courses = []
    for line in lines:
        for at, value in line["points"]:
            heights[at] = heights.get(at, 0.0) + value
        courses.append([(at, heights[at]) for at, _ in line["points"]])
    return courses


def _scale(drawn: Drawn, courses: Sequence[Sequence[Point]]) -> list[float]:
    if (top := drawn.defaults.get("max")) is not None:
        return [top * part / 4 for part in range(5)]
    return ticks(max((value for course in courses for _, value in course), default=1.0))


def _axes(drawn: Drawn, plot: Box, steps: Sequence[float]) -> Iterator[str]:
    theme = drawn.theme
    for step in steps:
        y = plot.y + plot.h * (1 - step / steps[-1])
        yield _rule(plot.x, y, plot.x + plot.w, y, theme.grid)
        yield _text(plot.x - 6, y + 4, shown(step, drawn.unit), theme.faint, 11, anchor="end")
    yield from _axis_of_time(drawn, plot)


def _places(names: Sequence[str], width: float) -> Iterator[tuple[int, float, str]]:
    """Row and distance from the left of each name in a legend."""
    row, x = 0, 0.0
    for name in names:
        needed = 24 + LETTER * len(name)
        if x and x + needed > width:
            row, x = row + 1, 0.0
        yield row, x, name
        x += needed


def _legend_rows(names: Sequence[str], width: float) -> int:
    return min(3, 1 + max(row for row, _, _ in _places(names, width)))


def _legend(drawn: Drawn, names: Sequence[str], colours: Sequence[str] = ()) -> Iterator[str]:
    box, colours = drawn.box, colours or drawn.theme.palette
    rows = _legend_rows(names, box.w)
    for index, (row, x, name) in enumerate(_places(names, box.w)):
        if row < rows:
            y = box.y + box.h + 3 - 16 * (rows - 1 - row)
            yield _rect(Box(box.x + x, y - 6, 12, 3), colours[index % len(colours)])
            yield _text(box.x + x + 16, y, name, drawn.theme.faint, 11)


def _timeline(drawn: Drawn) -> Iterator[str]:
    """A bar for each series, in the colour of its state."""
    states = drawn.defaults["mappings"][0]["options"]
    box, theme = drawn.box, drawn.theme
    left = 12 + LETTER * max((len(line["name"]) for line in drawn.lines), default=0)
    plot = Box(box.x + left, box.y, box.w - left, box.h - 40)
    height = plot.h / max(1, len(drawn.lines))
    yield from _axis_of_time(drawn, plot)
    for index, line in enumerate(drawn.lines):
        y = plot.y + index * height
        yield _text(plot.x - 8, y + height / 2 + 4, line["name"], theme.faint, 11, anchor="end")
        for start, end, value in _stretches(_numbers(line["points"]), drawn.span):
            bar = Box(plot.x + plot.w * start, y + height * 0.1, max(1.0, plot.w * (end - start)), height * 0.8)
            yield _rect(bar, theme.named[states[f"{value:g}"]["color"]], opacity=0.85)
    words = [state["text"] for state in states.values()]
    yield from _legend(drawn, words, [theme.named[state["color"]] for state in states.values()])


def _axis_of_time(drawn: Drawn, plot: Box) -> Iterator[str]:
    start, end = drawn.span
    every = 60 * math.ceil((end - start) / 60 / (plot.w / 70))
    for at in range(math.ceil(start / every) * every, int(end) + 1, every):
        x = plot.x + plot.w * (at - start) / (end - start)
        yield _rule(x, plot.y, x, plot.y + plot.h, drawn.theme.grid)
        if plot.x + 12 < x < plot.x + plot.w - 12:
            yield _text(x, plot.y + plot.h + 15, _clock(at)[:5], drawn.theme.faint, 11, anchor="middle")


def _stretches(points: Sequence[Point], span: tuple[float, float]) -> Iterator[tuple[float, float, float]]:
    """From where to where, as shares of the time shown, a series kept a value."""
    begun = 0
    for index in range(1, len(points) + 1):
        if index == len(points) or points[index][1] != points[begun][1]:
            end = points[min(index, len(points) - 1)][0]
            first, last = ((at - span[0]) / (span[1] - span[0]) for at in (points[begun][0], end))
            yield first, last, points[begun][1]
            begun = index


def _bargauge(drawn: Drawn) -> Iterator[str]:
    lasts = [(line["name"], points[-1][1]) for line in drawn.lines if (points := _numbers(line["points"]))]
    if not lasts:
        yield from _nothing(drawn)
        return
    box, theme = drawn.box, drawn.theme
    top = drawn.defaults.get("max") or max(value for _, value in lasts) or 1
    lasts = sorted(lasts, key=lambda last: -last[1])[:10]
    height = min(44.0, box.h / len(lasts))
    right = 16 + 7.2 * max(len(shown(value, drawn.unit)) for _, value in lasts)
    for index, (name, value) in enumerate(lasts):
        y, colour = box.y + index * height, _reached(drawn, value)
        yield _text(box.x, y + 10, name, theme.faint, 11)
        bar = Box(box.x, y + 15, box.w - right, height - 22)
        yield _rect(bar, theme.grid)
        yield _rect(bar._replace(w=max(2.0, bar.w * min(1, value / top))), colour, opacity=0.85)
        yield _text(box.x + box.w, bar.y + bar.h / 2 + 5, shown(value, drawn.unit), colour, 13, anchor="end")


def _table(drawn: Drawn) -> Iterator[str]:
    box, theme = drawn.box, drawn.theme
    names = drawn.panel["transformations"][0]["options"]["include"]["names"]
    rows = [[line["labels"].get(name, "") for name in names] for line in drawn.lines]
    needs = [max(map(len, column)) + 3 for column in zip(names, *rows, strict=True)]
    height = min(22.0, (box.h - 4) / (len(rows) + 1))
    for number, row in enumerate([names, *rows]):
        x, y = box.x, box.y + height * number
        for need, word in zip(needs, row, strict=True):
            yield _text(x, y + height - 7, word, theme.faint if number == 0 else theme.text, 11.5, bold=number == 0)
            x += need * box.w / sum(needs)
        yield _rule(box.x, y + height - 1, box.x + box.w, y + height - 1, theme.grid)


def _nothing(drawn: Drawn) -> Iterator[str]:
    box = drawn.box
    yield _text(box.x + box.w / 2, box.y + box.h / 2, "No data", drawn.theme.faint, 13, anchor="middle")


def _reached(drawn: Drawn, value: float) -> str:
    steps = drawn.defaults["thresholds"]["steps"]
    name = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
    return drawn.theme.named[name]


def _numbers(points: Sequence[Point]) -> list[Point]:
    return [(at, value) for at, value in points if math.isfinite(value)]


def _at(point: Point, box: Box, span: tuple[float, float], scale: tuple[float, float]) -> Point:
    along = (point[0] - span[0]) / (span[1] - span[0])
    up = (point[1] - scale[0]) / ((scale[1] - scale[0]) or 1)
    return box.x + box.w * along, box.y + box.h * (1 - min(1.0, up))


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))


def _area(path: Sequence[Point], bottom: float, colour: str, opacity: float) -> str:
    corners = [(path[0][0], bottom), *path, (path[-1][0], bottom)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f"<polygon points='{points}' fill='{colour}' fill-opacity='{opacity:g}'/>"


def _rect(box: Box, fill: str, edge: str = "none", opacity: float = 1) -> str:
    place = f"x='{box.x:.1f}' y='{box.y:.1f}' width='{box.w:.1f}' height='{box.h:.1f}'"
    return f"<rect {place} rx='3' fill='{fill}' stroke='{edge}' fill-opacity='{opacity:g}'/>"


def _rule(x: float, y: float, to_x: float, to_y: float, colour: str, *, dashed: bool = False) -> str:
    dashes = " stroke-dasharray='3 3'" if dashed else ""
    return f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{to_x:.1f}' y2='{to_y:.1f}' stroke='{colour}'{dashes}/>"


def _text(
    x: float,
    y: float,
    said: str,
    fill: str,
    size: float,
    *,
    anchor: Literal["start", "middle", "end"] = "start",
    bold: bool = False,
) -> str:
    """`anchor` is the part of it that stands at x."""
    place = "" if anchor == "start" else f" text-anchor='{anchor}'"
    weight = " font-weight='600'" if bold else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' fill='{fill}' font-size='{size:g}'{place}{weight}>{escape(said)}</text>"


_KINDS = {
    "stat": _stat, "timeseries": _timeseries, "state-timeline": _timeline, "bargauge": _bargauge, "table": _table,
}  # fmt: skip
