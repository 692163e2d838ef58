"""Whether what was installed is one engine: no file is two packages' own, and torch is the build for this kind."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from installer.base.language import tr
from installer.families.family import Packages
from installer.forms.venv import resolving
from installer.forms.venv.pipconf import Sources
from installer.forms.venv.uv import EngineFailed
from installer.runtime.vllm_text import without_password

BUILD = re.compile(
    r"^(cuda|hip)\b[^=\n]*= *['\"]", re.MULTILINE
)  # set in torch/version.py for the one it was built for
NAMED = 3


def check_site(site: Path, kind: str, sources: Sources, packages: Packages) -> None:
    """Refuse what imports today by chance; to read every RECORD of a CUDA engine takes a fifth of a second."""
    _refuse_clashes(site, packages)
    _refuse_wrong_torch(site, kind, sources)


def _refuse_clashes(site: Path, packages: Packages) -> None:
    clashes = clashing(site, packages)
    if not clashes:
        return
    shown = [f"{path} ({', '.join(owners)})" for path, owners in list(clashes.items())[:NAMED]]
    if len(clashes) > NAMED:
        shown.append(tr("and {count} more", count=len(clashes) - NAMED))
    raise EngineFailed(
        tr(
            "packages of this engine bring the same file with different content, and which one is there is chance: "
            "{files}",
            files=", ".join(shown),
        ),
        tr(
            "leave --resolve and --vllm-version out: the packages that this vllm-install was tested with do not; "
            "else try another version, and report this one"
        ),
    )


def clashing(site: Path, packages: Packages) -> dict[str, list[str]]:
    """File -> the packages that own it with different content. A missing checksum says nothing, so it differs."""
    owners: dict[str, dict[str, str]] = {}
    for record in sorted(site.glob("*.dist-info/RECORD")):
        package = record.parent.name.removesuffix(".dist-info").replace("-", " ", 1)
        for path, checksum in _files(record):
            owners.setdefault(path, {}).setdefault(package, checksum)
    harmless = packages.harmless_clashes()
    return {
        path: list(found)
        for path, found in owners.items()
        if len(found) > 1 and path not in harmless and ("" in found.values() or len(set(found.values())) > 1)
    }


def _files(record: Path) -> Iterator[tuple[str, str]]:
    try:
        with record.open(newline="", errors="surrogateescape") as file:
            for path, checksum, *_ in csv.reader(file):
                yield os.path.normpath(path), checksum
    except (csv.Error, ValueError) as error:
        raise EngineFailed(tr("{path} cannot be read: {error}", path=record, error=error)) from None


def _refuse_wrong_torch(site: Path, kind: str, sources: Sources) -> None:
    """By what torch says of itself: a mirror may hold another build under the very same version."""
    for metadata in site.glob("torch-*.dist-info"):
        version = metadata.name.removeprefix("torch-").removesuffix(".dist-info")
        build = _build_of(site / "torch/version.py") or resolving.build_of(version)
        if build and build != kind:
            raise resolving.wrong_torch(version, build, kind, _place_of(version, sources))


def _build_of(about: Path) -> str | None:
    try:
        text = about.read_text(errors="replace")
    except OSError:
        return None
    found = BUILD.search(text)
    if found is None:
        return "cpu" if re.search(r"^cuda\b", text, re.MULTILINE) else None
    return "rocm" if found[1] == "hip" else "cuda"


def _place_of(version: str, sources: Sources) -> str:
    """Where it came from: a folder that has a file of this version, or else whatever was asked."""
    for folder in sources.find_links:
        if "://" not in folder and list(Path(folder).glob(f"torch-{version}-*.whl")):
            return folder
    places = sources.find_links if sources.no_index else [place or "PyPI" for place in sources.places()]
    return without_password(", ".join(places))
