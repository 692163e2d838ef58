"""How many requests failed, by vLLM's own count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.families.vllm.metrics import read_requests
from installer.spec.soak import Requests

METRICS = """\
# HELP http_requests_total Total number of requests by method, status and handler.
# TYPE http_requests_total counter
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 90.0
http_requests_total{handler="/v1/completions",method="POST",status="5xx"} 6.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"} 4.0
http_requests_created{handler="/v1/completions",method="POST",status="5xx"} 1.7e+09
"""


def test_a_fault_of_the_callers_own_is_none_of_the_service() -> None:
    assert read_requests(METRICS) == Requests(100, 6)
    assert Requests(100, 6).share == 0.06
    assert Requests().share == 0


@pytest.mark.parametrize(
    "text", ["", "vllm:x 1\n", *(METRICS.replace("6.0", text) for text in ("six", "NaN", "+Inf", "-1", "1e300"))]
)
def test_what_is_not_told_is_no_rate(text: str) -> None:
    assert read_requests(text) is None


@given(st.text() | st.integers(0, len(METRICS)).map(lambda at: METRICS[:at] + "}{" + METRICS[at + 3 :]))
def test_garbled_metrics_are_tolerated(text: str) -> None:
    found = read_requests(text)
    assert found is None or found.answered >= found.failed >= 0
