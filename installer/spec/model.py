"""A model as data: what is wanted, its files, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import Exit, InstallError

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
PROVIDERS = ("hub", "modelscope")
LONGEST_NAME = 1024  # bytes; with the cache's own directories before it a path can have 4096


class ModelError(InstallError):
    """The weights cannot be had or cannot be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.MODEL)


class NotHere(ModelError):
    """This source does not answer, or has not got it; another one may."""


class NoAccess(ModelError):
    """The source has it, and not for everybody."""


@dataclass(frozen=True)
class ModelFile:
    """One file of a checkpoint; the digest is its sha256, or git's sha1 where the hub has no other."""

    name: str
    size: int
    digest: str
    cached: bool = False
    partial: int = 0


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    repo: str
    revision: str | None
    endpoint: str | None
    provider: str = "hub"  # whose protocol the endpoint speaks: one of PROVIDERS
    token_file: str | None = None

    @property
    def folder(self) -> str:
        """The hub cache's name for the repository."""
        return "models--" + self.repo.replace("/", "--")


@dataclass(frozen=True)
class Model:
    """What is wanted, resolved to a directory and, on the hub, to one commit."""

    id: str
    path: Path
    commit: str | None
    source: str
    files: tuple[ModelFile, ...] = ()
    repo: str = ""
    revision: str | None = None
    endpoint: str | None = None

    @property
    def origin(self) -> Origin:
        return Origin(self.repo, self.revision, self.endpoint, self.source)

    @property
    def folder(self) -> Path:
        """The repository's directory in the hub cache: blobs, refs and snapshots."""
        return self.path.parents[1]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in distinct(self.files))

    @property
    def bytes_missing(self) -> int:
        return sum(file.size - file.partial for file in distinct(self.files) if not file.cached)


def distinct(files: Iterable[ModelFile]) -> list[ModelFile]:
    """One file for each content: equal files share a blob."""
    return list({file.digest: file for file in files}.values())


def is_inside(name: str) -> bool:
    """Whether a relative name, joined to a directory, is sure to stay in it."""
    parts = name.split("/")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        return False
    if any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts):
        return False
    return "\\" not in name and name.isprintable()
