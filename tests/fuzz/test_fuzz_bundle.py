"""Bundles that a courier has changed: of the manifest, of the archive, of both."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from installer.airgap.bundle_file import Bundle, open_bundle
from installer.airgap.bundle_format import parse_manifest
from tests.airgap.test_bundle_file import manifest, write
from tests.fuzz.hostile import JSON, NESTED, as_bytes, is_ours, outcome, tampered

MANIFEST: dict[str, Any] = json.loads(manifest().to_text())


@given(tampered(MANIFEST).map(as_bytes) | JSON.map(as_bytes) | NESTED | st.binary(max_size=60))
@settings(max_examples=400)
@example(json.dumps({**MANIFEST, "tool": "\nforged"}).encode())
def test_a_manifest(text: bytes) -> None:
    found = outcome(lambda: parse_manifest(text, "a.bundle"))
    if hasattr(found, "members"):
        for part in (
            found.tool,
            found.model.name,
            str(found.model.revision),
            *(member.name for member in found.members),
        ):
            is_ours(part)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("bundle") / "a.bundle").read_bytes()


@given(st.data())
@settings(max_examples=150)
def test_an_archive(sound: bytes, data: st.DataObject) -> None:
    """Whatever is changed in it: refused, or every byte that is taken out of it is the one that was put in."""
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(sound) - 1))
        piece = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\0" * 600)))
        changed[at : at + len(piece)] = piece
    changed = changed[: data.draw(st.sampled_from((len(changed), len(changed), len(changed) // 2, 512, 0)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.bundle")
        path.write_bytes(changed)
        outcome(lambda: taken_out(open_bundle(path), Path(folder, "out")))


def taken_out(bundle: Bundle, target: Path) -> None:
    for member in bundle.manifest.members:
        bundle.bring(member, target, lambda count, files=0: None)
        assert target.stat().st_size == member.size
        target.unlink()
