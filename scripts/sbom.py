"""What a package of ours holds of others, as CycloneDX: names, versions, licences, checksums, and who needs whom."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The wheels of one version of a package are one component, for it is the same software for one Python or another.
Packages = dict[str, tuple[Message, list[Path]]]


def sbom(own: Path, wheels: Sequence[Path], moment: int) -> str:
    packages = _packages(wheels)
    ((name, (tool, _)),) = _packages([own]).items()
    listing = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)),
            "component": _component(name, tool, [own], "application"),
        },
        "components": [_component(name, *found, "library") for name, found in sorted(packages.items())],
        "dependencies": [
            _dependency(name, about, packages) for name, (about, _) in [(name, (tool, [])), *sorted(packages.items())]
        ],
    }
    return json.dumps(listing, indent=1) + "\n"


def _packages(wheels: Sequence[Path]) -> Packages:
    found: Packages = {}
    for wheel in sorted(wheels):
        with zipfile.ZipFile(wheel) as archive:
            (place,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            about = Parser().parsestr(archive.read(place).decode())
        found.setdefault(canonicalize_name(about["Name"]), (about, []))[1].append(wheel)
    return found


def _component(name: str, about: Message, wheels: Sequence[Path], kind: str) -> dict[str, Any]:
    return {
        "type": kind,
        "bom-ref": _place(name, about),
        "name": name,
        "version": about["Version"],
        "description": about["Summary"],
        "licenses": [_licence(about)],
        "purl": _place(name, about),
        "externalReferences": [
            {
                "type": "distribution",
                "url": wheel.name,
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
            }
            for wheel in wheels
        ],
    }


def _place(name: str, about: Message) -> str:
    return f"pkg:pypi/{name}@{about['Version']}"


def _licence(about: Message) -> dict[str, Any]:
    if said := about["License-Expression"]:
        return {"expression": said}
    named = about["License"] or next(line for line in about.get_all("Classifier", []) if line.startswith("License ::"))
    return {"license": {"name": named.rpartition(" :: ")[2]}}


def _dependency(name: str, about: Message, packages: Packages) -> dict[str, Any]:
    """Without what nobody asked for: an extra, or what is needed on other systems alone."""
    needed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, about.get_all("Requires-Dist", []))
        if requirement.marker is None or "extra" not in str(requirement.marker)
    }
    refs = [_place(other, packages[other][0]) for other in sorted(needed & packages.keys())]
    return {"ref": _place(name, about), "dependsOn": refs}
