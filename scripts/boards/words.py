"""What dashboards are made of: boards, rows, panels, queries, and the expressions that come up in many of them."""

from __future__ import annotations

from dataclasses import dataclass

GREEN, BLUE, YELLOW, ORANGE, RED, GREY = "green", "blue", "yellow", "orange", "red", "text"
ON_HOST = 'host=~"$host"'  # every figure of ours names its host
SERVICE = f'{ON_HOST}, service=~"$service"'
ENGINE = f'job="vllm-install", {SERVICE}'
GPU = f'{ON_HOST}, uuid=~"$gpu"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel; `steps` are the colours of a value from each limit on, `states` the words and colours of a number."""

    title: str
    about: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    steps: tuple[tuple[float | None, str], ...] = ((None, BLUE),)
    states: tuple[tuple[int, str, str], ...] = ()
    top: float | None = None
    stacked: bool = False
    columns: tuple[str, ...] = ()
    height: int = 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What a reader chooses; `many` of them, or one."""

    name: str
    label: str
    query: str
    many: bool = True


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def stat(title: str, about: str, expr: str, unit: str = "short", *steps: tuple[float | None, str]) -> Panel:
    return Panel(title, about, (Query(expr),), "stat", unit, 4, steps or ((None, BLUE),), height=4)


def graph(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    width: int = 8,
    stacked: bool = False,
    height: int = 8,
) -> Panel:
    return Panel(title, about, queries, unit=unit, width=width, stacked=stacked, height=height)


def share(title: str, about: str, *queries: Query, width: int = 8) -> Panel:
    return Panel(title, about, queries, unit="percentunit", width=width, top=1)


def rate(metric: str, by: str, of: str = ENGINE) -> str:
    return f"sum by ({by}) (rate({metric}{{{of}}}{RATE}))"


def percentile(quantile: float, metric: str, by: str = "") -> str:
    labels = ", ".join(("le", by) if by else ("le",))
    return f"histogram_quantile({quantile:g}, {rate(f'{metric}_bucket', labels)})"


def percentiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(percentile(each, metric), f"p{each * 100:.0f}") for each in (0.5, 0.9, 0.99))


def mean(metric: str) -> str:
    sums, counts = (f"sum(rate({metric}_{part}{{{ENGINE}}}{RATE}))" for part in ("sum", "count"))
    return f"{sums} / {counts}"


def total(expr: str) -> str:
    """A number in any case: nothing that is counted is none of it."""
    return f"sum({expr}) or vector(0)"


def count(metric: str, of: str, span: str = "[$__range]") -> str:
    """How often, as a whole number: Prometheus extrapolates to the edges of the time shown."""
    return f"round(sum(increase({metric}{{{of}}}{span}))) or vector(0)"


def biggest(metric: str) -> str:
    return f"topk(10, sum by (service, key) (increase({metric}{{{ENGINE}}}[$__range])))"


BAD_FROM_ONE = ((None, GREEN), (1, RED))
HOSTS = Variable("host", "host", "label_values(vllm_install_gpus_readable, host)")
A_SERVICE = f"label_values(vllm_install_service_info{{{ON_HOST}}}, service)"
ALL_SERVICES = Variable("service", "service", A_SERVICE)
ENGINES = Panel(
    "Engines",
    "Each engine: stopped, starting (systemd waits for its first answer) or ready (it answers).",
    (Query(f"vllm_install_active{{{SERVICE}}} + vllm_install_ready{{{SERVICE}}}", "{{host}} {{service}} {{member}}"),),
    "state-timeline",
    width=12,
    height=6,
    states=((0, "not active", RED), (1, "does not answer", ORANGE), (2, "ready", GREEN)),
)
