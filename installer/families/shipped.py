"""What ships with this tool about packages, each rule with its reason, and the locks of engines that were tested."""

from __future__ import annotations

import functools

from installer.base import datafile
from installer.base.assets import DATA
from installer.families.family import Rules
from installer.spec.engine import HASH


def rules(kind: str) -> Rules:
    """Of a kind of engine, whichever its family; what is asked for first is the family's."""
    lists = {
        name: tuple(
            entry.text("line")
            for entry in _content().sections(name, "kind line reason")
            if entry.text("reason") and entry.text("kind") == kind
        )
        for name in ("requirements", "constraints", "exclusions")
    }
    return Rules(**lists)


def harmless_clashes() -> frozenset[str]:
    """Files that several packages bring with different content, and that nobody reads."""
    entries = _content().sections("harmless_clashes", "file reason")
    return frozenset(entry.text("file") for entry in entries if entry.text("reason"))


@functools.cache
def _content() -> datafile.Section:
    return datafile.read(DATA / "packages.json", "requirements constraints exclusions harmless_clashes")


def lock(name: str, target: str) -> str | None:
    """Lines NAME==VERSION with the checksums of their wheels, for an interpreter and a machine such as cp312-x86_64;
    None where none was tested."""
    path = DATA / "locks" / f"{name}.json"
    if not path.exists():
        return None
    content = datafile.read(path, "targets wheels")
    if target not in content.texts("targets"):
        return None
    checksums: dict[str, str] = {}
    for wheel in content.sections("wheels", "package sha256", "targets"):
        if target in (wheel.texts("targets") or (target,)):
            package = wheel.text("package")
            checksums[package] = checksums.get(package, "") + HASH + wheel.text("sha256")
    return "".join(f"{package}{hashes}\n" for package, hashes in checksums.items())
