"""What a service is to keep to, as figures: an alert compares them with what its clients see."""

from __future__ import annotations

from collections.abc import Iterator

from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row
from installer.spec.values import seconds

TARGET = Family("vllm_install_target_seconds", "What one request in twenty may be slower than; only where it is set.")


def rows(moment: Moment) -> Iterator[Row]:
    for scene in moment.services:
        for of, target in (("ttft", scene.settings.target_ttft), ("itl", scene.settings.target_itl)):
            if target:
                yield Row(TARGET.name, {"service": scene.service, "of": of}, seconds(target))


TARGETS = Source("targets", (TARGET,), rows)
