"""What launcher, supervisor and watcher share of systemd's word to them."""

from __future__ import annotations

import pytest

from installer.runtime.vllm_systemd import seconds


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7", 7.0), ("0", 0.0), ("0.5", 0.5),
        *((text, 30.0) for text in ("", "-1", "long", "1e9", "nan", "inf", " 7", "7s", "٧", "9" * 12)),
    ],
)  # fmt: skip
def test_a_time_that_makes_no_sense_is_the_usual_one(monkeypatch: pytest.MonkeyPatch, text: str, found: float) -> None:
    """A drop-in can say anything, and a supervisor that stumbled over it would end the service in a handover."""
    monkeypatch.setenv("DRAIN", text)
    assert seconds("DRAIN") == found


def test_unsaid_it_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("START_PATIENCE_SEC", raising=False)
    assert seconds("START_PATIENCE_SEC") == 300.0
