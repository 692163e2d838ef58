"""What an engine's lock says: its packages, and which wheels may be taken for them."""

from __future__ import annotations

from dataclasses import replace

from installer.spec.engine import checksums, exact, versions
from tests.kit.targets import target

OPEN = "vllm==0.32.0\ntorch==2.13.0+cpu\n# a comment\n"
TESTED = "vllm==0.32.0 --hash=sha256:aa --hash=sha256:bb\ntorch==2.13.0\n"


def test_an_engine_is_known_by_its_packages() -> None:
    engine = replace(target().engine, lock=TESTED)
    assert engine.packages == versions(TESTED) == ["vllm==0.32.0", "torch==2.13.0"]
    assert versions(OPEN) == ["vllm==0.32.0", "torch==2.13.0+cpu"]
    assert (engine.is_tested, replace(engine, lock=OPEN).is_tested) == (True, False)
    assert engine.has_torch
    assert not replace(engine, lock="torchvision==1.0\n").has_torch


def test_a_lock_says_which_wheels_may_be_taken() -> None:
    assert checksums(TESTED) == {"vllm==0.32.0": ["aa", "bb"]}
    assert checksums(OPEN) == {}


def test_an_installer_takes_that_version_alone() -> None:
    assert exact("torch==2.13.0 --hash=sha256:a==\nx==1\n") == "torch===2.13.0 --hash=sha256:a==\nx===1\n"
