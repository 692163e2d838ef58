"""Which model is meant, where it lies, what of it is missing, and how it gets here."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from installer import builtin, hub
from installer.changes import Change
from installer.checkpoint import check_access, check_directory
from installer.download import Blob, fetch_all
from installer.host import Host
from installer.hub import ModelError, ModelFile, Origin
from installer.layout import Layout
from installer.partial import arrived
from installer.report import Report, size
from installer.settings import Settings
from installer.values import BUILTIN, HUB_ID

__all__ = [
    "Download", "Model", "ModelError", "ModelFile",
    "changes", "check_access", "check_directory", "is_present", "resolve",
]  # fmt: skip

# Left free beside the weights: a file system filled to the last byte breaks more than the download.
HEADROOM = 64 * 1024 * 1024


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
        return Origin(self.repo, self.revision, self.endpoint)

    @property
    def folder(self) -> Path:
        """The repository's directory in the hub cache: blobs, refs and snapshots."""
        return self.path.parents[1]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in _distinct(self.files))

    @property
    def bytes_missing(self) -> int:
        return sum(file.size - file.partial for file in _distinct(self.files) if not file.cached)


def resolve(settings: Settings, host: Host, layout: Layout, known_commit: str | None = None) -> Model:
    """Find the model. With a known commit that is complete on disk, nothing but the disk is asked."""
    if settings.model == BUILTIN:
        return Model(settings.model_id, layout.builtin_models / "tiny", None, "builtin")
    local = _local_directory(settings, host)
    if local is not None:
        return Model(settings.model_id, local, None, "local")
    return _resolve_on_hub(settings, host, layout, known_commit)


def is_present(model: Model, host: Host) -> bool:
    """Whether everything the model needs is on disk in its full length."""
    if model.source == "builtin":
        return builtin.is_current(host.at(model.path))
    if model.source == "local":
        return host.at(model.path).is_dir()
    files = model.files or _manifest(model, host)
    path = host.at(model.path)
    if not files:
        return path.is_dir() and not check_directory(path)
    return all(_size(path / file.name) == file.size for file in files)


def changes(model: Model, host: Host, connections: int) -> Iterator[Change]:
    if is_present(model, host):
        return
    if model.source == "builtin":
        yield builtin.MakeBuiltin(model.path)
    elif model.source == "hub":
        yield Download(model, connections)
    else:
        raise _no_directory(model.path)


@dataclass(frozen=True)
class Download:
    """Fetch what is missing of a model into the hub cache, every byte checked, then show it as a snapshot."""

    model: Model
    connections: int

    def describe(self) -> str:
        return f"download {self.model.repo} ({size(self.model.bytes_missing)}) into {self.model.path}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "download",
            "model": self.model.repo,
            "commit": self.model.commit,
            "path": str(self.model.path),
            "bytes": self.model.bytes_missing,
            "files": sum(not file.cached for file in _distinct(self.model.files)),
        }

    def apply(self, host: Host, report: Report) -> None:
        with _alone(self.model, host, report):
            # Anything may have happened since the plan: another process may have fetched it all.
            model = _as_on_disk(_with_files(self.model, host), host)
            _check_space(model, host)
            _write_manifest(model, host)
            _fetch(model, self.connections, host, report)
            _link(model, host)
            _sweep(model, host)
        problems = check_directory(host.at(model.path))
        if problems:
            raise ModelError(
                f"{model.repo} is not complete on the hub itself: {'; '.join(problems)}",
                "choose another revision or another model",
            )


# Resolving


def _local_directory(settings: Settings, host: Host) -> Path | None:
    """The directory that is meant, or None where a hub id is."""
    if settings.model.startswith(("./", "../")):
        path = (Path.cwd() / settings.model).resolve()
    elif settings.model.startswith("/"):
        path = Path(settings.model)
    elif settings.models_dir:
        path = Path(settings.models_dir) / settings.model
        if not host.at(path).is_dir() and HUB_ID.fullmatch(settings.model):
            return None
    elif HUB_ID.fullmatch(settings.model):
        return None
    else:
        raise ModelError(
            f"{settings.model} is neither a hub id nor below a models directory",
            "a hub id looks like Qwen/Qwen3-8B; for a directory give an absolute path, or set --models-dir",
        )
    if not host.at(path).is_dir():
        raise _no_directory(path)
    return path


def _no_directory(path: Path) -> ModelError:
    return ModelError(f"there is no model directory {path}", "check --model and --models-dir")


def _resolve_on_hub(settings: Settings, host: Host, layout: Layout, known_commit: str | None) -> Model:
    origin = Origin(settings.model, settings.revision, settings.hf_endpoint)
    folder = layout.hub / origin.folder

    def at(commit: str, files: tuple[ModelFile, ...] = ()) -> Model:
        path = folder / "snapshots" / commit
        return Model(settings.model_id, path, commit, "hub", files, origin.repo, origin.revision, origin.endpoint)

    commit = known_commit or _pinned(origin, folder, host, offline=settings.offline)
    if commit and hub.COMMIT.fullmatch(commit):
        files = _manifest(at(commit), host)
        if files:
            model = _as_on_disk(at(commit, files), host)
            if not settings.offline or is_present(model, host):
                return model
            raise _not_here(origin, f"{size(model.bytes_missing)} of it are missing")
        if (settings.offline or known_commit) and is_present(at(commit), host):
            return at(commit)
    if settings.offline:
        raise _not_here(origin, "it is not in the cache")
    commit, listed = hub.listing(origin, commit or origin.revision)
    return _as_on_disk(at(commit, hub.select(origin.repo, listed)), host)


def _pinned(origin: Origin, folder: Path, host: Host, *, offline: bool) -> str | None:
    """The commit, where it can be known without the hub."""
    if origin.revision and hub.COMMIT.fullmatch(origin.revision):
        return origin.revision
    ref = _ref(folder, origin)
    return (host.read(ref) or "").strip() or None if ref and offline else None


def _not_here(origin: Origin, why: str) -> ModelError:
    return ModelError(
        f"{origin.repo} cannot be used offline: {why}",
        "run once without --offline (OFFLINE), or give a local directory with --model",
    )


# The cache: blobs named by their checksum, snapshots of links to them, and a list of what belongs to a commit


def _distinct(files: Iterable[ModelFile]) -> list[ModelFile]:
    """One file for each content: equal files share a blob."""
    return list({file.digest: file for file in files}.values())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _as_on_disk(model: Model, host: Host) -> Model:
    """The model with what is known about each file's blob."""
    blobs = host.at(model.folder / "blobs")
    files = []
    for file in model.files:
        cached = _size(blobs / file.digest) == file.size
        begun = 0 if cached else arrived(blobs / file.digest, file.size)
        files.append(replace(file, cached=cached, partial=begun))
    return replace(model, files=tuple(files))


def _ref(folder: Path, origin: Origin) -> Path | None:
    """Where the cache keeps which commit a branch or tag was."""
    revision = origin.revision or "main"
    is_name = hub.is_inside(revision) and not hub.COMMIT.fullmatch(revision)
    return folder / "refs" / revision if is_name else None


def _manifest_path(model: Model) -> Path:
    return model.folder / "manifests" / f"{model.commit}.json"


def _manifest(model: Model, host: Host) -> tuple[ModelFile, ...]:
    """The commit's files as the hub listed them; empty where that was not kept."""
    text = host.read(_manifest_path(model))
    try:
        listed = json.loads(text or "[]")
        return tuple(hub.checked(ModelFile(f["name"], f["size"], f["digest"])) for f in listed)
    except (ValueError, TypeError, KeyError):
        return ()


def _write_manifest(model: Model, host: Host) -> None:
    listed = [{"name": file.name, "size": file.size, "digest": file.digest} for file in model.files]
    host.write(_manifest_path(model), json.dumps(listed, indent=1) + "\n")


@contextmanager
def _alone(model: Model, host: Host, report: Report) -> Iterator[None]:
    """One process at a time fetches a model; the next one waits and then finds it there."""
    path = model.folder.parent / ".locks" / f"{model.folder.name}.vllm-install.lock"
    host.make_dir(path.parent)
    with host.at(path).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.note(f"another process downloads {model.repo} already: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_space(model: Model, host: Host) -> None:
    folder = model.folder
    host.make_dir(folder / "blobs")
    free = shutil.disk_usage(host.at(folder)).free
    if model.bytes_missing and free < model.bytes_missing + HEADROOM:
        raise ModelError(
            f"{model.repo} needs {size(model.bytes_missing + HEADROOM)} more, but {folder} has only {size(free)} left",
            f"free some space, or put a larger file system at {folder.parent} (df -h)",
        )


def _fetch(model: Model, connections: int, host: Host, report: Report) -> None:
    blobs = [_blob(model, file, host) for file in _distinct(model.files) if not file.cached]
    if blobs:
        with report.bytes(model.repo, model.bytes_missing, len(blobs)) as advance:
            fetch_all(blobs, model.origin, connections, advance)


def _blob(model: Model, file: ModelFile, host: Host) -> Blob:
    url = model.origin.url(str(model.commit), file.name)
    return Blob(file.name, url, host.at(model.folder / "blobs" / file.digest), file.size, file.digest)


def _with_files(model: Model, host: Host) -> Model:
    """The model with its list of files; one that was written down and read back has lost it."""
    if model.files:
        return model
    files = _manifest(model, host) or hub.select(model.repo, hub.listing(model.origin, model.commit)[1])
    return replace(model, files=files)


def _link(model: Model, host: Host) -> None:
    """Show the blobs under their names. The names were checked when they came from the hub."""
    for file in model.files:
        path = model.path / file.name
        host.make_dir(path.parent)
        target = os.path.relpath(model.folder / "blobs" / file.digest, path.parent)
        staged = host.at(path.with_name(f".{file.digest[:16]}.link"))
        staged.unlink(missing_ok=True)
        staged.symlink_to(target)
        staged.replace(host.at(path))
    ref = _ref(model.folder, model.origin)
    if ref:
        host.write(ref, str(model.commit))


def _sweep(model: Model, host: Host) -> None:
    """Remove beginnings that nothing will continue: of files that an older commit had, or another client left."""
    for partial in host.at(model.folder / "blobs").glob("*.incomplete"):
        partial.unlink()
