"""What a running service does: its metrics read back as figures, and the GPUs' own account."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from installer.base.host import Host
from installer.checks.gpus.vendors import MODULES
from installer.families.known import family_counting
from installer.spec.target import Placed
from installer.units.api import Api, NoAnswer, gauge

ANSWER_WITHIN = 5.0


@dataclass(frozen=True)
class Sample:
    """One look at /metrics. What is missing or garbled there is None, or absent."""

    running: float | None
    waiting: float | None
    cache_used: float | None  # share of the KV cache, 0 to 1
    generated: float | None  # tokens since the start
    prompted: float | None
    cache_tokens: int | None  # how many tokens the KV cache holds
    first_token: Mapping[float, float]  # bucket's upper bound in seconds -> answers at most so slow


@dataclass(frozen=True)
class GpuUse:
    name: str
    uuid: str  # empty where the driver names none
    memory_used: int
    memory_total: int  # 0 where the driver has no figures, as for a slice of a GPU or one that is gone
    busy: int | None  # percent


def sample(api: Api) -> Sample | None:
    """None where there are no metrics to be had."""
    try:
        answer = api.ask("GET", "/metrics")
    except NoAnswer:
        return None
    return read_metrics(answer.body.decode(errors="replace")) if answer.status == 200 else None


def read_metrics(text: str) -> Sample | None:
    names = family_counting(text).metrics
    engines = len(re.findall(rf"^{names.cache_used}[ {{]", text, re.MULTILINE))
    used = gauge(text, names.cache_used)
    found = Sample(
        running=gauge(text, names.running),
        waiting=gauge(text, names.waiting),
        cache_used=used / engines if used is not None and engines else None,
        generated=gauge(text, names.generated),
        prompted=gauge(text, names.prompted),
        cache_tokens=names.cache_tokens(text),
        first_token=_buckets(text, names.first_token),
    )
    return None if found == Sample(None, None, None, None, None, None, {}) else found


def together(samples: Iterable[Sample | None]) -> Sample | None:
    """Of several engines that serve the same; what not one of them says is None."""
    found = [sample for sample in samples if sample]
    if len(found) < 2:
        return found[0] if found else None
    bounds = [sample.first_token for sample in found]
    edges = sorted(set().union(*bounds)) if all(each.keys() == bounds[0].keys() for each in bounds) else []
    shares = [sample.cache_used for sample in found if sample.cache_used is not None]
    tokens = [sample.cache_tokens for sample in found if sample.cache_tokens is not None]
    return Sample(
        running=_sum(sample.running for sample in found),
        waiting=_sum(sample.waiting for sample in found),
        cache_used=sum(shares) / len(shares) if shares else None,
        generated=_sum(sample.generated for sample in found),
        prompted=_sum(sample.prompted for sample in found),
        cache_tokens=sum(tokens) if tokens else None,
        first_token={edge: sum(each[edge] for each in bounds) for edge in edges},
    )


def _sum(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


def _buckets(text: str, name: str) -> dict[float, float]:
    """Of all engines together."""
    found: dict[float, float] = {}
    for labels, count in re.findall(rf"^{name}_bucket\{{(.*)\}} (\S+)\s*$", text, re.MULTILINE):
        bound = re.search(r'le="([^"]*)"', labels)
        try:
            edge, answers = float(bound[1]) if bound else math.nan, float(count)
        except ValueError:
            continue
        if not math.isnan(edge) and math.isfinite(answers):
            found[edge] = found.get(edge, 0.0) + answers
    return dict(sorted(found.items()))


def since(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, float]:
    """The answers that came between two looks; all of them where none did, or where the counters began anew."""
    if before.keys() != after.keys():
        return dict(after)
    difference = {bound: after[bound] - before[bound] for bound in after}
    total = max(difference.values(), default=0.0)
    return difference if total > 0 and min(difference.values()) >= 0 else dict(after)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """As Prometheus estimates it: in a straight line within a bucket; the last bound where it lies beyond all."""
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in buckets.items():
        if count >= share * total:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (share * total - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low


def gpus(host: Host, kind: str | None, placed: Sequence[Placed]) -> tuple[GpuUse, ...]:
    """The GPUs that a service was given, or all where it sees all; nothing for the CPU engine."""
    module = MODULES.get(kind or "")
    used = module.use(host) if module else ()
    found = [GpuUse(gpu.name, gpu.uuid, gpu.memory_used, gpu.memory_total, gpu.busy) for gpu in used]
    known = {use.uuid: use for use in found}
    return tuple([known.get(gpu.uuid, GpuUse(gpu.name, gpu.uuid, 0, 0, None)) for gpu in placed if module] or found)
