"""How telling does, for node-exporter: messages that somebody was to take and did not."""

from __future__ import annotations

from collections.abc import Iterator

from installer.flow.alarm import told
from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row

NAME = "vllm_install_notify_failures_total"
FAILURES = Family(NAME, "Messages that NOTIFY_URL or NOTIFY_COMMAND did not take.", "counter")


def rows(moment: Moment) -> Iterator[Row]:
    """Of services that tell somebody."""
    for scene in moment.services:
        if scene.settings.notifies:
            yield Row(NAME, {"service": scene.service}, told(scene.host, scene.layout).failures)


SOURCE = Source("alarms", (FAILURES,), rows)
