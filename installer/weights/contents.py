"""Which weights these are, said so that two hosts can compare it: by commit, or by what is in a directory."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from installer.base.host import Host
from installer.model.plain_file import entries_below, open_regular
from installer.spec.model import Model
from installer.weights.checksums import MOST_WORKERS, PIECE


def identity(model: Model, host: Host) -> str:
    """A directory may have any name, and another content on every host: so all of it is read."""
    return f"{model.id}@{model.commit}" if model.commit else f"{model.id}@sha256:{_digest(host.at(model.path))}"


def _digest(directory: Path) -> str:
    """Of names and bytes of all files but hidden ones, which no engine reads."""
    names = {path: path.relative_to(directory) for path in entries_below(directory) if path.is_file()}
    shown = sorted(path for path, name in names.items() if not any(part.startswith(".") for part in name.parts))
    with ThreadPoolExecutor(MOST_WORKERS) as pool:
        sums = zip(shown, pool.map(_sha256, shown), strict=True)
        return hashlib.sha256("".join(f"{names[path]}\0{each}\n" for path, each in sums).encode()).hexdigest()


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()
