"""What vLLM's metrics say of the requests that it has answered."""

from __future__ import annotations

import re

from installer.spec.soak import Requests

MOST = 1e15  # of one kind; whatever says more does not count
_ROW = re.compile(r'^http_requests_total\{(?:.*,)?status="(\w+)".*\} (\S+)\s*$', re.MULTILINE)


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
