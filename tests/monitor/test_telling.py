"""What nobody took is counted where Prometheus sees it."""

from __future__ import annotations

import pytest

from installer.base.host import Host
from installer.diagnosis import scene
from installer.flow import steps
from installer.flow.wanted import Wanted
from installer.monitor import telling
from installer.monitor.moment import Moment
from installer.units import alarm
from tests.flow import test_transaction
from tests.flow.test_transaction import LAYOUT
from tests.kit.targets import with_settings

host, plain = test_transaction.host, test_transaction.want


@pytest.mark.parametrize(("url", "found"), [("https://alerts.example", [2.0]), (None, [])])
def test_failures_are_those_of_who_wants_to_be_told(
    host: Host, plain: Wanted, monkeypatch: pytest.MonkeyPatch, url: str | None, found: list[float]
) -> None:
    monkeypatch.setattr(alarm, "check_tool", lambda: None)
    want = with_settings(plain, notify_url=url)
    test_transaction.recorded(want, steps.plan(want, host), host)
    host.write(LAYOUT.told_file, '{"failures": 2}')
    rows = list(telling.rows(Moment(host, (scene.look("qwen3vl", host),))))
    assert [row.value for row in rows] == found
    assert all(row.labels == {"service": "qwen3vl"} for row in rows)
