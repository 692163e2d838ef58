"""Units read back: what confines a service, and what its process is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.units.syntax import environment, sandbox
from tests.kit.boot.surroundings import REPO

UNITS = sorted(path for path in (REPO / "tests/golden").glob("*.service") if "podman" not in path.stem)  # its own


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_sandbox_is_all_that_confines_the_service_and_nothing_else(path: Path) -> None:
    lines = path.read_text().splitlines()
    end = lines.index("[Install]") if "[Install]" in lines else None  # which a replica has none of
    confining = [line for line in lines[lines.index("# Sandbox") : end] if line and line[0] != "#"]
    groups = [line for line in lines if line.startswith("SupplementaryGroups=")]
    found = sandbox("\n".join(lines) + "\n")
    assert found == groups + confining
    assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="} <= set(found)
    assert not [line for line in found if line.startswith(("ExecStart", "WantedBy", "User="))]


def test_a_value_may_hold_what_separates_it_from_its_name() -> None:
    text = '[Service]\nEnvironment=A=1\nEnvironment="B=x=y z" C=\n'
    assert environment(text) == {"A": "1", "B": "x=y z", "C": ""}
    assert environment(text + "Environment=\nEnvironment=D=2\n") == {"D": "2"}
