"""adopt: which service a deployment becomes that is named without saying so."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from installer.base.errors import Refused
from installer.flow import adopt as view
from installer.flow import deploy as flow
from installer.verbs.adopt import adopt


@pytest.mark.parametrize(
    ("words", "unit", "service"),
    [
        (["old-llm"], "old-llm", "old-llm"),
        (["/srv/serve.sh"], None, "qwen3vl"),
        (["old-llm", "--service", "other"], "old-llm", "other"),
    ],
)
def test_a_unit_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch, words: list[str], unit: str | None, service: str
) -> None:
    meant: list[str] = []

    def make_way(service: str, *_: object) -> None:
        meant.append(service)
        raise Refused("that is all")

    monkeypatch.setattr(view, "service_of", lambda *_: unit)
    monkeypatch.setattr(flow, "make_way", make_way)
    CliRunner().invoke(adopt, words)
    assert meant == [service]
