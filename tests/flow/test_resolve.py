"""What is refused between the settings and the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.flow.resolve import _check_senses
from installer.spec.model import Model, ModelFile

SEEING = Model("org/seeing", Path("/hub/seeing"), "c" * 40, "hub", (ModelFile("preprocessor_config.json", 1, "d"),))
READING = Model("org/reading", Path("/hub/reading"), "c" * 40, "hub", (ModelFile("config.json", 1, "d"),))


def test_a_model_that_sees_is_refused_on_the_cpu_engine_before_its_weights_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="org/seeing takes images"):
        _check_senses(SEEING, "cpu", Host(tmp_path))
    _check_senses(SEEING, "cuda", Host(tmp_path))
    _check_senses(READING, "cpu", Host(tmp_path))


def test_a_model_that_sees_is_recognised_on_disk_as_well(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.write(READING.path / "preprocessor_config.json", "{}")
    with pytest.raises(Refused):
        _check_senses(READING, "cpu", host)
