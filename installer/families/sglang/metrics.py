"""The names of SGLang's metrics, and what they say of its cache and of the requests that it has answered."""

from __future__ import annotations

import math
import re

from installer.families.family import Metrics
from installer.runtime.vllm_words import SGLANG
from installer.spec.soak import Requests

MOST = 1e15  # of one kind; whatever says more does not count
_ROW = re.compile(r'^sglang:http_responses_total\{(?:.*,)?status_code="(\w+)".*\} (\S+)\s*$', re.MULTILINE)
_CACHE = re.compile(r"^sglang:max_total_num_tokens(?:\{.*\})? (\S+)\s*$", re.MULTILINE)


def read_requests(metrics: str) -> Requests | None:
    """None where that is not told. A fault of the caller's (4xx) says nothing of the service."""
    answered = failed = 0.0
    rows = [(status, _number(text)) for status, text in _ROW.findall(metrics)]
    for status, count in rows:
        if count is None:
            return None
        answered += count
        failed += count if status.startswith("5") else 0
    return Requests(int(answered), int(failed)) if rows else None


def cache_tokens(metrics: str) -> int | None:
    """Every rank tells the same, which is of all of them together."""
    told = [count for text in _CACHE.findall(metrics) if (count := _number(text))]
    return int(max(told)) if told else None


def _number(text: str) -> float | None:
    try:
        count = float(text)
    except ValueError:
        return None
    return count if math.isfinite(count) and 0 <= count < MOST else None


METRICS = Metrics(
    prefix="sglang:",
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    cache_used="sglang:token_usage",
    generated="sglang:generation_tokens_total",
    prompted="sglang:prompt_tokens_total",
    first_token="sglang:time_to_first_token_seconds",  # noqa: S106 it is no password
    between_tokens="sglang:inter_token_latency_seconds",
    progress=SGLANG.progress,
    cache_tokens=cache_tokens,
    requests=read_requests,
)
