"""What many of these modules begin with; one that needs another beginning has a fixture of that name itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.life import cli, is_gone, standin


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture(scope="module")
def key(machine: Machine, standin_wheels: Path) -> Iterator[str]:
    """The key of the one service that all tests of a module share, and of which nothing stays."""
    bare = snapshot(machine.root)
    yield cli(machine, "deploy", *standin(standin_wheels)).key
    cli(machine, "uninstall", "--yes", "--purge")
    is_gone(machine, bare)
