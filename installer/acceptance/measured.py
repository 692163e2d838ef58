"""How fast a service was, as data: what `bench` measured, under which conditions, and how it is kept as JSON.

Kept below the directory of the service's record, where root alone writes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from installer.base.errors import Refused, UsageError
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.spec.record import UNREADABLE, read_as

FORMAT = 1
BEYOND = 1e15  # what no figure reaches
PERCENTILES = (50, 90, 95, 99)
ENDED = {
    "done": mark("the whole ladder was measured"),
    "full": mark("more at once bring no more tokens"),
    "slow": mark("the next step would have taken too long"),
    "failed": mark("with {count} at once: {error}"),
    "interrupted": mark("it was interrupted"),
    "": mark("it was cut off"),
}
NAME = re.compile(r"\d{8}T\d{6}Z")


@dataclass(frozen=True)
class Latency:
    """Percentiles, in milliseconds."""

    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Step:
    """So many requests at once, until so many were answered."""

    concurrency: int
    prompts: int
    completed: int
    failed: int
    seconds: float
    requests: float  # a second, as the next three
    good_requests: float  # those that kept the goals
    tokens: float  # of answers
    tokens_in_all: float  # of prompts and answers
    ttft: Latency  # until the first token
    tpot: Latency  # for each token after it, as a request's mean
    itl: Latency  # between two pieces of an answer
    whole: Latency  # until the last token
    running: float | None = None  # at most at once, as the engine says; what it did not say is None, as below
    waiting: float | None = None
    cache_used: float | None = None  # share, at most
    error: str = ""  # what the first that failed was told

    @property
    def tokens_for_one(self) -> float:
        """What one of those who ask at the same time gets, with all its waiting."""
        return self.tokens / self.concurrency


@dataclass(frozen=True)
class Load:
    """What was asked."""

    prompt_tokens: int
    answer_tokens: int
    goals: dict[str, float]  # milliseconds, for ttft, tpot or e2el
    seconds: float  # that a step was to take
    seed: int


@dataclass(frozen=True)
class Served:
    """What was asked it of."""

    service: str  # empty for a throwaway server
    model: str
    commit: str | None
    engine: str  # the family, as people write it
    version: str
    kind: str
    engine_id: str  # of all its packages
    torch: str
    python: str
    tool: str  # our own version
    settings: dict[str, str]  # those that are not the default's, and vLLM's own flags
    context: int
    most_at_once: int | None  # --max-num-seqs of one engine, where it is given
    engines: int  # that share the work
    through_gateway: bool
    cache_tokens: int | None  # that the caches of all engines hold


@dataclass(frozen=True)
class Machine:
    """Where it ran."""

    cpu: str
    cpus: int
    memory: int
    kernel: str
    gpus: tuple[str, ...]  # of the service: name, memory, driver
    gpus_free: int  # of the host, that no service has


@dataclass(frozen=True)
class Measured:
    at: str  # when it began, and its name
    served: Served
    machine: Machine
    load: Load
    steps: tuple[Step, ...] = ()
    ended: str = ""  # why there are no more steps, by one of ENDED; empty while it runs, and where it was killed
    failed_at: int | None = None  # how many at once were too many
    error: str = ""  # what came of it
    format: int = field(default=FORMAT)

    @property
    def why_ended(self) -> str:
        return tr(ENDED.get(self.ended, self.ended), count=self.failed_at, error=self.error)

    @property
    def best(self) -> Step:
        """The most tokens for all together."""
        return max(self.steps, key=lambda step: step.tokens)

    @property
    def best_good(self) -> Step | None:
        """The most requests that kept the goals."""
        found = max(self.steps, key=lambda step: step.good_requests)
        return found if found.good_requests > 0 else None


def step_of(concurrency: int, prompts: int, found: Mapping[str, object]) -> Step:
    """What the engine's bench says of one run: numbers, or 0 where it says none."""

    def number(name: str) -> float:
        value = found.get(name)
        good = isinstance(value, (int, float)) and math.isfinite(value)
        return round(float(value), 4) if good and isinstance(value, (int, float)) else 0.0

    def latency(name: str) -> Latency:
        return Latency(*(number(f"p{share}_{name}_ms") for share in PERCENTILES))

    return Step(
        concurrency=concurrency,
        prompts=prompts,
        completed=int(number("completed")),
        failed=int(number("failed")),
        seconds=number("duration"),
        requests=number("request_throughput"),
        good_requests=number("request_goodput"),
        tokens=number("output_throughput"),
        tokens_in_all=number("total_token_throughput"),
        ttft=latency("ttft"),
        tpot=latency("tpot"),
        itl=latency("itl"),
        whole=latency("e2el"),
        error=str(found.get("error") or ""),
    )


# As files


def folder(layout: Layout) -> Path:
    return layout.state_dir / "bench"


def save(measured: Measured, layout: Layout, host: Host) -> Path:
    path = folder(layout) / f"{measured.at}.json"
    host.write(path, to_text(measured))
    return path


def to_text(measured: Measured) -> str:
    return json.dumps(asdict(measured), indent=2) + "\n"


def of_text(text: str) -> Measured:
    """Raises what is UNREADABLE."""
    data = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=lambda word: int(_number(word)))
    found: Measured = read_as(Measured, data)
    if not NAME.fullmatch(found.at) or any(step.concurrency < 1 for step in found.steps):
        raise ValueError(found.at)
    return found


def _number(word: str) -> float:
    value = float(word)
    if not abs(value) < BEYOND:
        raise ValueError(word)
    return value


def is_file(word: str) -> bool:
    """And no name of a result."""
    return "/" in word or word.endswith(".json")


def load(word: str, layout: Layout, host: Host) -> Measured:
    """By its name in `bench history`, as much of it as tells it from others, or by the path of a file."""
    path = Path(word).absolute()
    if not is_file(word):
        fit = [each for each in names(layout, host) if each.startswith(word)]
        if len(fit) != 1:
            raise UsageError(
                tr("{count} results are called {name}", count=len(fit), name=word)
                if fit
                else tr("no result is called {name}", name=word),
                f"vllm-install bench history --service {layout.service}",
            )
        path = folder(layout) / f"{fit[0]}.json"
    return _load(path, host)


def latest(layout: Layout, host: Host) -> Measured:
    if not (found := names(layout, host)):
        raise Refused(
            tr("nothing of {service} was measured yet", service=layout.service),
            f"sudo vllm-install bench --service {layout.service} --quick",
        )
    return _load(folder(layout) / f"{found[-1]}.json", host)


def names(layout: Layout, host: Host) -> list[str]:
    """The oldest first."""
    found = [path.stem for path in host.children(folder(layout)) if path.suffix == ".json"]
    return sorted(name for name in found if NAME.fullmatch(name))


def history(layout: Layout, host: Host) -> list[Measured]:
    """All that can be read, the oldest first."""
    found = []
    for name in names(layout, host):
        try:
            found.append(_load(folder(layout) / f"{name}.json", host))
        except UsageError:
            continue
    return found


def _load(path: Path, host: Host) -> Measured:
    try:
        text = host.read(path)
        if text is not None:
            return of_text(text)
    except (*UNREADABLE, Strange) as error:
        raise UsageError(tr("{path} is no result of bench: {why}", path=path, why=error)) from None
    raise UsageError(tr("there is no {path}", path=path), "vllm-install bench history")
