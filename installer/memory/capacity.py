"""How long a context fits, and how many at once: said before a start, and exactly once vLLM itself has measured.

What vLLM has for its cache is its share of the memory, less the weights, less what it needs to compute. The cache's
layout is known to the block (kv.py); what it needs to compute is estimated (overhead.py) until a start has shown it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from installer.base.cells import pad
from installer.base.language import tr
from installer.base.sizes import GIB, MIB
from installer.memory.device import Device
from installer.memory.kv import Cache, Kind, Rules, arrange
from installer.memory.kv_layers import layers_of, states_per_request
from installer.memory.overhead import Batch, batch, cpu_overhead, gpu_overhead
from installer.memory.shape import Shape
from installer.spec.calibration import Calibration
from installer.spec.settings import Settings

BLOCK, MLA_BLOCK, CPU_BLOCK, CPU_MLA_BLOCK = 16, 64, 128, 16


class Outlook(Enum):
    FITS = "fits"
    CLOSE = "close"
    CANNOT = "cannot"


@dataclass(frozen=True)
class Verdict:
    """Whether a context fits on each GPU, with the numbers that say so."""

    answer: Outlook
    context: int
    needed: int
    available: int
    largest: int
    limit: int

    @property
    def reason(self) -> str:
        if self.context > self.limit:
            return tr(
                "{context} tokens are more than the model's own limit of {limit}",
                context=self.context,
                limit=self.limit,
            )
        numbers = tr(
            "{context} tokens need {needed} of cache and about {available} is free",
            context=self.context,
            needed=_gib(self.needed),
            available=_gib(self.available),
        )
        if self.answer is Outlook.FITS or not self.largest:
            return numbers
        return numbers + tr(", enough for about {largest}", largest=self.largest)

    def to_json(self) -> dict[str, object]:
        return {
            "answer": self.answer.value,
            "context": self.context,
            "needed_bytes": self.needed,
            "available_bytes": self.available,
            "largest_context": self.largest,
            "model_limit": self.limit,
        }


@dataclass(frozen=True)
class Row:
    """How many requests of one context fit at once."""

    context: int
    requests: int
    needed: int
    answer: Outlook


@dataclass(frozen=True)
class Estimate:
    """Bytes are those of one GPU (of the host, for the CPU engine)."""

    weights: int
    overhead: int
    available_kv: int
    margin: int  # by how much available_kv may be wrong
    kv_per_token: int
    context: int  # the one asked for, or the largest for `auto`
    limit: int
    cache: Cache
    calibrated: bool
    certain: bool  # False for a model with layers that are not known here

    @property
    def kv_tokens(self) -> int:
        """What vLLM will print as its cache's size."""
        return self.cache.tokens(max(self.available_kv, 0), self.context)

    @property
    def largest_context(self) -> int:
        return self.cache.largest(self.available_kv, self.limit)

    def to_json(self) -> dict[str, object]:
        rows = [{"context": row.context, "requests": row.requests, "answer": row.answer.value} for row in table(self)]
        return {
            "weights_bytes": self.weights,
            "overhead_bytes": self.overhead,
            "available_kv_bytes": self.available_kv,
            "margin_bytes": self.margin,
            "kv_bytes_per_token": self.kv_per_token,
            "kv_tokens": self.kv_tokens,
            "largest_context": self.largest_context,
            "model_limit": self.limit,
            "calibrated": self.calibrated,
            "rows": rows,
        }


def estimate(shape: Shape, device: Device, settings: Settings, calibration: Calibration | None = None) -> Estimate:
    """The estimate for the settings' context; a calibration is of the same engine, model, GPUs and flags."""
    context = min(settings.max_model_len or shape.limit, shape.limit)
    first = _estimate(shape, device, context, calibration)
    if settings.max_model_len is not None:
        return first
    # What a step takes depends a little on the context, so `auto` is settled in two rounds.
    return _estimate(shape, device, max(1, min(first.largest_context, context)), calibration)


def judge(estimate: Estimate, context: int) -> Verdict:
    """Refuse only what cannot fit: between certainly and certainly not lies the margin."""
    needed = estimate.cache.needed(context)
    if context > estimate.limit:
        answer = Outlook.CANNOT
    elif needed <= estimate.available_kv - estimate.margin:
        answer = Outlook.FITS
    elif needed <= estimate.available_kv + estimate.margin or not estimate.certain:
        answer = Outlook.CLOSE
    else:
        answer = Outlook.CANNOT
    available = max(estimate.available_kv, 0)
    return Verdict(answer, context, needed, available, estimate.largest_context, estimate.limit)


def table(estimate: Estimate) -> list[Row]:
    """Context x concurrency, from 1024 up to the model's limit, the context asked for among them."""
    contexts = {2**power for power in range(10, 25)} | {estimate.context, estimate.largest_context, estimate.limit}
    rows = []
    for context in sorted(n for n in contexts if 0 < n <= estimate.limit):
        verdict = judge(estimate, context)
        fits = int(estimate.cache.requests(verdict.available, context)) if verdict.needed <= verdict.available else 0
        rows.append(Row(context, fits, verdict.needed, verdict.answer))
    return rows


def describe(estimate: Estimate) -> list[str]:
    """The estimate as lines of text, for people."""
    lines = [
        tr(
            "weights {weights}, computing {computing}, cache {cache} ({source})",
            weights=_gib(estimate.weights),
            computing=_gib(estimate.overhead),
            cache=_gib(max(estimate.available_kv, 0)),
            source=tr("measured at the last start") if estimate.calibrated else tr("estimated"),
        ),
        tr(
            "{bytes} bytes per token, {tokens} tokens in all; largest context {largest} of {limit}",
            bytes=estimate.kv_per_token,
            tokens=estimate.kv_tokens,
            largest=estimate.largest_context,
            limit=estimate.limit,
        ),
        f"{pad(tr('context'), -10)} {pad(tr('at once'), -8)} {pad(tr('each'), -11)}",
    ]
    notes = {Outlook.FITS: "", Outlook.CLOSE: tr("close"), Outlook.CANNOT: tr("does not fit")}
    for row in table(estimate):
        line = f"{row.context:>10} {row.requests:>8} {_gib(row.needed):>11}  {notes[row.answer]}"
        lines.append(line.rstrip())
    return lines


def _estimate(shape: Shape, device: Device, context: int, calibration: Calibration | None) -> Estimate:
    flags = shape.flags
    found = layers_of(shape.config, flags, shape.tensor_parallel, device.is_cpu)
    stage = found.layers[: -(-len(found.layers) // flags.pipeline_parallel)]
    step = batch(shape, device, context)
    cache = arrange(stage, _rules(shape, device, step), flags.keep_windows)
    weights = max(0, shape.weights // shape.gpus - flags.cpu_offload)
    overhead = _overhead(shape, device, context)
    margin = GIB // 2 + weights // 50 + overhead // 4
    if calibration is not None:
        # Everything but the cache, as it was, and what another context changes about it.
        other = replace(device, share=calibration.share or device.share).usable - calibration.available
        other += overhead - _overhead(shape, device, calibration.context)
        weights = calibration.weights or weights
        overhead, margin = other - weights, calibration.available // 100 + 64 * MIB
    available = device.usable - weights - overhead
    if flags.kv_cache_memory:
        available, margin = flags.kv_cache_memory, 0
    return Estimate(
        weights=weights,
        overhead=overhead,
        available_kv=available,
        margin=margin,
        kv_per_token=sum(layer.size for layer in stage if layer.kind is not Kind.STATE),
        context=context,
        limit=shape.limit,
        cache=cache,
        calibrated=calibration is not None,
        certain=found.certain and not flags.speculative,
    )


def _overhead(shape: Shape, device: Device, context: int) -> int:
    step = batch(shape, device, context)
    return cpu_overhead(shape, step) if device.is_cpu else gpu_overhead(shape, step, context)


def _rules(shape: Shape, device: Device, step: Batch) -> Rules:
    flags, is_mla = shape.flags, shape.config.is_mla
    if device.is_cpu:
        own, alignment, batches = CPU_MLA_BLOCK if is_mla else CPU_BLOCK, CPU_BLOCK, 1
    else:
        own, alignment = (MLA_BLOCK, 128) if is_mla else (BLOCK, BLOCK)
        batches = 2 if flags.async_scheduling else 1
    return Rules(
        block_size=flags.block_size or own,
        in_flight=step.tokens * (batches + flags.pipeline_parallel - 1),
        state_alignment=alignment,
        states_per_request=states_per_request(shape.config, flags),
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
