"""The names of vLLM's metrics, and what they say of its cache and of the requests that it has answered."""

from __future__ import annotations

import re

from installer.families.family import Metrics
from installer.runtime.vllm_words import VLLM
from installer.spec.soak import Requests

MOST = 1e15  # of one kind; whatever says more does not count
_ROW = re.compile(r'^http_requests_total\{(?:.*,)?status="(\w+)".*\} (\S+)\s*$', re.MULTILINE)
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} \S+\s*$", re.MULTILINE)


def read_requests(metrics: str) -> Requests | None:
    """None where that is not told. A fault of the caller's (4xx) says nothing of the service."""
    answered = failed = 0.0
    rows = _ROW.findall(metrics)
    for status, text in rows:
        try:
            count = float(text)
        except ValueError:
            return None
        if not 0 <= count < MOST:  # NaN, too
            return None
        answered += count
        failed += count if status.startswith("5") else 0
    return Requests(int(answered), int(failed)) if rows else None


def cache_tokens(metrics: str) -> int | None:
    """vLLM's own figure; older ones tell only blocks, which is too much for models with several kinds of layers."""
    tokens = 0
    for match in _CACHE.finditer(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
        told, size, count = (labels.get(name, "") for name in ("kv_cache_size_tokens", "block_size", "num_gpu_blocks"))
        whole, parts = _count(told), (_count(size), _count(count))
        tokens += whole if whole is not None else (parts[0] or 0) * (parts[1] or 0)
    return tokens or None


def _count(text: str) -> int | None:
    """Digits as ours are written, no more of them than a count has: `²` is a digit to Python, and no number."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


METRICS = Metrics(
    prefix="vllm:",
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    cache_used="vllm:kv_cache_usage_perc",
    generated="vllm:generation_tokens_total",
    prompted="vllm:prompt_tokens_total",
    first_token="vllm:time_to_first_token_seconds",  # noqa: S106 it is no password
    between_tokens="vllm:inter_token_latency_seconds",
    progress=VLLM.progress,
    cache_tokens=cache_tokens,
    requests=read_requests,
)
