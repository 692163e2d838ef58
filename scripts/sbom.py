"""What a package of ours holds of others, as CycloneDX: names, versions, licences, checksums, and who needs whom."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

from installer.look.sbom import Part, component, document, needs


def sbom(own: Path, wheels: Sequence[Path], moment: int) -> str:
    (tool,) = _parts([own])
    parts = _parts(wheels)
    known = {part.name: part for part in parts}
    components = [component(part) for part in parts]
    return document(moment, component(tool, "application"), components, [needs(part, known) for part in (tool, *parts)])


def _parts(wheels: Sequence[Path]) -> list[Part]:
    """The wheels of one version of a package are one part, for it is the same software for one Python or another."""
    found: dict[str, Part] = {}
    for wheel in sorted(wheels):
        with zipfile.ZipFile(wheel) as archive:
            (place,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            part = Part(Parser().parsestr(archive.read(place).decode()), {})
        digests = {wheel.name: [hashlib.sha256(wheel.read_bytes()).hexdigest()]}
        known = found.get(part.name, part)
        found[part.name] = Part(known.about, {**known.wheels, **digests})
    return [part for _, part in sorted(found.items())]
