"""A model that is wanted: its directory, its files, and what of them is on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.model import builtin
from installer.model.checkpoint import check_directory
from installer.spec.model import COMMIT, Model, ModelError, ModelFile, Origin, is_inside
from installer.weights import cache
from installer.weights.partial import arrived


def is_present(model: Model, host: Host) -> bool:
    """Whether everything the model needs is on disk in its full length."""
    if model.source == "builtin":
        return builtin.is_current(host.at(model.path))
    if model.source == "local":
        return host.at(model.path).is_dir()
    files = model.files or _manifest(model, host)
    if not files:
        return host.at(model.path).is_dir() and not check_directory(host.at(model.path), with_pickles=True)
    return all(cache.is_linked(model.path, file, host) for file in files)


def files_of(model: Model, host: Host) -> tuple[ModelFile, ...]:
    """The files of a model in the cache: as its source listed them, or as another client linked them."""
    known = model.files or _manifest(model, host)
    return known or (cache.linked(model.path, host) if is_present(model, host) else ())


def as_on_disk(model: Model, host: Host) -> Model:
    """The model with what is known about each file's blob."""
    blobs = host.at(model.folder / "blobs")
    files = []
    for file in model.files:
        cached = cache.size_of(blobs / file.digest) == file.size
        begun = 0 if cached else arrived(blobs / file.digest, file.size)
        files.append(replace(file, cached=cached, partial=begun))
    return replace(model, files=tuple(files))


def ref_of(folder: Path, origin: Origin) -> Path | None:
    """Where the cache keeps which commit a branch or tag was: each provider has its own branches."""
    revision = origin.revision or "main"
    is_name = is_inside(revision) and not COMMIT.fullmatch(revision)
    place = folder / "refs" if origin.provider == "hub" else folder / "refs" / origin.provider
    return place / revision if is_name else None


def not_here(repo: str, why: str) -> ModelError:
    return ModelError(
        tr("{repo} cannot be used offline: {why}", repo=repo, why=why),
        tr("run once without --offline (OFFLINE), or give a local directory with --model"),
    )


def _manifest(model: Model, host: Host) -> tuple[ModelFile, ...]:
    """The commit's files as their source listed them; empty where that was not kept."""
    manifest = cache.read_manifest(model.folder, str(model.commit), host)
    return manifest.files if manifest else ()
