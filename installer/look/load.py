"""What a running service does: its metrics read back as figures, and the GPUs' own account."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from installer.base.host import Host
from installer.checks.gpus.vendors import MODULES
from installer.spec.target import Placed
from installer.units.api import Api, NoAnswer, gauge

ANSWER_WITHIN = 5.0
TTFT = "vllm:time_to_first_token_seconds"
_BUCKET = re.compile(rf"^{TTFT}_bucket\{{(.*)\}} (\S+)\s*$", re.MULTILINE)
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} \S+\s*$", re.MULTILINE)


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
    engines = len(re.findall(r"^vllm:kv_cache_usage_perc[ {]", text, re.MULTILINE))
    used = gauge(text, "vllm:kv_cache_usage_perc")
    found = Sample(
        running=gauge(text, "vllm:num_requests_running"),
        waiting=gauge(text, "vllm:num_requests_waiting"),
        cache_used=used / engines if used is not None and engines else None,
        generated=gauge(text, "vllm:generation_tokens_total"),
        prompted=gauge(text, "vllm:prompt_tokens_total"),
        cache_tokens=_cache_tokens(text),
        first_token=_buckets(text),
    )
    return None if found == Sample(None, None, None, None, None, None, {}) else found


def _cache_tokens(text: str) -> int | None:
    """vLLM's own figure; older ones tell only blocks, which is too much for models with several kinds of layers."""
    tokens = 0
    for match in _CACHE.finditer(text):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
        told, size, count = (labels.get(name, "") for name in ("kv_cache_size_tokens", "block_size", "num_gpu_blocks"))
        whole, parts = _count(told), (_count(size), _count(count))
        tokens += whole if whole is not None else (parts[0] or 0) * (parts[1] or 0)
    return tokens or None


def _count(text: str) -> int | None:
    """Digits as ours are written, no more of them than a count has: `²` is a digit to Python, and no number."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _buckets(text: str) -> dict[float, float]:
    """Of all engines together."""
    found: dict[float, float] = {}
    for labels, count in _BUCKET.findall(text):
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
