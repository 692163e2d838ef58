"""installer/data/vllm.json against the real package. GOLDEN=write writes it anew, for another version of vLLM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from installer.base.assets import DATA
from installer.model import profiles
from installer.spec.settings import Settings
from tests.kit.boot.surroundings import REPO
from tests.vllm.source import facts


@pytest.fixture(scope="module")
def package(cpu_engine: str) -> Path:
    (found,) = (REPO / "build/opt/engines" / cpu_engine).glob("lib/python3*/site-packages/vllm")
    return found


def test_what_we_say_of_vllm_is_what_it_says_of_itself(package: Path) -> None:
    said = json.dumps(facts(package, Settings.vllm_version), indent=1) + "\n"
    if os.environ.get("GOLDEN") == "write":
        (DATA / "vllm.json").write_text(said)
    assert (DATA / "vllm.json").read_text() == said


def test_parity_row_28_every_parser_and_architecture_of_the_profiles_is_one_of_vllms(package: Path) -> None:
    real = facts(package, Settings.vllm_version)
    known = profiles.load_profiles()
    assert known.parsers("tools") <= set(real["tool_parsers"])  # type: ignore[call-overload]
    assert known.parsers("reasoning") <= set(real["reasoning_parsers"])  # type: ignore[call-overload]
    named = {name for family in known.families for name in family.architectures}
    assert named <= set(real["architectures"])  # type: ignore[call-overload]
