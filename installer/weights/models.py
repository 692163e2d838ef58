"""Which model is meant, and how what is missing of it gets here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from installer.base.changes import Change
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report, size
from installer.model import builtin
from installer.model.checkpoint import check_directory
from installer.model.selection import select
from installer.spec.model import COMMIT, PROVIDERS, Model, ModelError, ModelFile, NoAccess, NotHere, Origin, distinct
from installer.spec.offer import Elsewhere
from installer.spec.settings import Settings
from installer.spec.values import BUILTIN, HUB_ID
from installer.weights import cache, elsewhere, sources
from installer.weights.addresses import server_of, url_of
from installer.weights.download import Blob, fetch_all
from installer.weights.elsewhere import Held
from installer.weights.wanted import as_on_disk, files_of, is_present, not_here, ref_of

if TYPE_CHECKING:
    from installer.spec.carrier import Carrier

# Left free beside the weights: a file system filled to the last byte breaks more than the download.
HEADROOM = 64 * 1024 * 1024


def resolve(
    settings: Settings, host: Host, layout: Layout, known_commit: str | None = None, report: Report | None = None,
    caches: Sequence[Elsewhere] = (),
) -> Model:  # fmt: skip
    """Find the model. With a known commit that is complete on disk, nothing but the disk is asked.

    What another of the `caches` on this host served last stays in force: it is here already.
    """
    if settings.model == BUILTIN:
        return Model(settings.model_id, layout.builtin_models / "tiny", None, "builtin")
    local = local_directory(settings, host)
    if local is not None:
        return Model(settings.model_id, local, None, "local")
    report = report or Report()
    held = elsewhere.find(caches, sources.origins(settings)[0], host)
    if held is None:
        return _resolve_on_hub(settings, host, layout, known_commit, report)
    if not settings.offline:
        try:
            found = _resolve_on_hub(settings, host, layout, known_commit or held.commit, report)
            if held.offer and found.commit == held.commit:
                who = tr("{server} and what {other} listed earlier", server=server_of(found.origin), other=held.who)
                sources.refuse_contradiction(held.commit, held.files, found.files, who)
            return found
        except (NotHere, NoAccess) as fault:
            report.warn(fault.message)
    report.note(tr("the checksums of {repo} are taken as {place} names them", repo=settings.model, place=held.who))
    chosen = select(settings.model, held.files, with_pickles=settings.model in settings.allow_pickle)
    return as_on_disk(_at(settings, sources.origins(settings)[0], layout, held.commit, chosen), host)


def carried(settings: Settings, host: Host, layout: Layout, commit: str, files: tuple[ModelFile, ...]) -> Model:
    """The model that a bundle holds; it goes where a download of the same commit would."""
    return as_on_disk(_at(settings, sources.origins(settings)[0], layout, commit, files), host)


def changes(
    model: Model, host: Host, settings: Settings, bundle: Carrier | None = None, caches: Sequence[Elsewhere] = ()
) -> Iterator[Change]:
    """What is due until the model can be served: in the cache, until every byte of it was seen to be right."""
    present = is_present(model, host)
    if model.source in PROVIDERS:
        model = replace(model, files=files_of(model, host))
        odd = cache.unchecked(model.folder, model.files, host) or cache.strangers(model.path, model.files, host)
        if not present or odd:
            origins = () if bundle else sources.of_model(settings, model.source)
            held = elsewhere.find(caches, sources.origins(settings)[0], host)
            yield Download(as_on_disk(model, host), settings.download_connections, origins, bundle, held)
    elif present:
        return
    elif model.source == "builtin":
        yield builtin.MakeBuiltin(model.path)
    else:
        raise _no_directory(model.path)


@dataclass(frozen=True)
class Download:
    """Fetch what is missing of a model into the hub cache, see that every byte is right, then show it as a snapshot.

    Blobs that are there but were never summed since they were written are summed first: a wrong one counts as missing.
    It stays where it is until the right one takes its place, because a running service may read it.
    """

    model: Model
    connections: int
    origins: tuple[Origin, ...]  # who may be asked, in this order; nobody offline
    bundle: Carrier | None = None  # which has all of it
    held: Held | None = None  # the same model elsewhere, which is looked into first

    def describe(self) -> str:
        if not self.model.bytes_missing:
            return tr("check {model} in {path}", model=self.model.repo, path=self.model.path)
        repo, missing, path = self.model.repo, size(self.model.bytes_missing), self.model.path
        if self.held:
            return tr(
                "take {model} ({size}) from {place} into {path}, and download what is not there",
                model=repo,
                size=missing,
                place=self.held.who,
                path=path,
            )
        if self.bundle:
            return tr(
                "import {model} ({size}) from {bundle} into {path}",
                model=repo,
                size=missing,
                bundle=self.bundle.path,
                path=path,
            )
        return tr("download {model} ({size}) into {path}", model=repo, size=missing, path=path)

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "import" if self.bundle else "download",
            "model": self.model.repo,
            "commit": self.model.commit,
            "path": str(self.model.path),
            "bytes": self.model.bytes_missing,
            "files": sum(not file.cached for file in distinct(self.model.files)),
            **({"bundle": str(self.bundle.path)} if self.bundle else {}),
            **({"from": self.held.who} if self.held else {}),
        }

    def apply(self, host: Host, report: Report) -> None:
        try:
            self._apply(host, report)
        except OSError as error:
            raise cache.unwritable(error, self.model.folder.parent) or error from None

    def _apply(self, host: Host, report: Report) -> None:
        waiting = tr("another process downloads {model} already: waiting for it", model=self.model.repo)
        with cache.alone(self.model.folder, host, busy=lambda: report.note(waiting)):
            model = self._with_files(host, report)
            cache.write_manifest(model.folder, str(model.commit), cache.Manifest(model.origin, model.files), host)
            if self.held and self.held.place:  # what another host has, that host's group brings
                elsewhere.bring(as_on_disk(model, host), self.held.place, host, report)
            self._fill(model, host, report)
            _link(model, host)
            for stranger in cache.strangers(model.path, model.files, host):
                report.warn(
                    tr(
                        "{file} does not belong to {repo}; it is taken out of {path}",
                        file=stranger,
                        repo=model.repo,
                        path=model.path,
                    )
                )
                host.remove(model.path / stranger)
            _sweep(model, host)
        problems = check_directory(host.at(model.path), with_pickles=True)
        if problems:
            raise ModelError(
                tr(
                    "{repo} is not complete on the hub itself: {problems}",
                    repo=model.repo,
                    problems=tr("; ").join(problems),
                ),
                tr("choose another revision or another model"),
            )

    def _with_files(self, host: Host, report: Report) -> Model:
        """The model with its list of files; one that was written down and read back has lost it."""
        model = self.model
        known = model.files or files_of(model, host)
        if not known and not self.origins:
            raise not_here(model.repo, tr("it is not in the cache"))
        if not known:
            listed = sources.find(self.origins, model.commit, report)[2]
            known = select(model.repo, listed, with_pickles=True)  # it was judged when it was resolved
        return replace(model, files=known)

    def _fill(self, model: Model, host: Host, report: Report) -> None:
        """Every blob there and right; where a source fails, the next one continues."""

        def from_source(origin: Origin | None) -> None:
            # Anything may have happened since the plan: another process may have fetched it all.
            found = _without_wrong(as_on_disk(model, host), host, report)
            missing = [file.digest for file in found.files if not file.cached]
            check_space(found, host)
            if missing and self.bundle:
                _import(found, self.bundle, host, report)
            elif missing:
                if origin is None:
                    size_missing = size(found.bytes_missing)
                    raise not_here(model.repo, tr("{size} of it are missing or have wrong bytes", size=size_missing))
                _fetch(found, origin, self.connections, host, report)
            cache.remember(model.folder, missing, (), host)

        if self.origins:
            sources.first(self.origins, report, from_source)
        else:
            from_source(None)


# Resolving


def is_local(path: Path) -> bool:
    """Whether a model's directory is one of the user's own."""
    layout = Layout("any")
    return not any(ours in path.parents for ours in (layout.hub, layout.builtin_models, layout.opt))


def local_directory(settings: Settings, host: Host) -> Path | None:
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
            tr("{model} is neither a hub id nor below a models directory", model=settings.model),
            tr("a hub id looks like Qwen/Qwen3-8B; for a directory give an absolute path, or set --models-dir"),
        )
    if not host.at(path).is_dir():
        raise _no_directory(path)
    return path


def _no_directory(path: Path) -> ModelError:
    return ModelError(tr("there is no model directory {path}", path=path), tr("check --model and --models-dir"))


def _resolve_on_hub(settings: Settings, host: Host, layout: Layout, known_commit: str | None, report: Report) -> Model:
    candidates = sources.origins(settings)
    for origin in candidates:
        commit = known_commit or _pinned(origin, layout, host, offline=settings.offline)
        found = _in_cache(settings, origin, layout, commit, host) if commit else None
        if found and (is_present(found, host) or not settings.offline):
            return found
        if found:
            raise not_here(settings.model, tr("{size} of it are missing", size=size(found.bytes_missing)))
    if settings.offline:
        raise not_here(settings.model, tr("it is not in the cache"))
    origin, commit, listed = sources.find(candidates, known_commit, report)
    folder = layout.hub / origin.folder
    if before := cache.read_manifest(folder, commit, host):
        who = tr("{server} and what {other} listed earlier", server=server_of(origin), other=server_of(before.origin))
        sources.refuse_contradiction(commit, before.files, listed, who)
    chosen = select(origin.repo, listed, with_pickles=settings.model in settings.allow_pickle)
    return as_on_disk(_at(settings, origin, layout, commit, chosen), host)


def _at(settings: Settings, origin: Origin, layout: Layout, commit: str, files: tuple[ModelFile, ...] = ()) -> Model:
    path = layout.hub / origin.folder / "snapshots" / commit
    return Model(settings.model_id, path, commit, origin.provider, files, origin.repo, origin.revision, origin.endpoint)


def _in_cache(settings: Settings, origin: Origin, layout: Layout, commit: str, host: Host) -> Model | None:
    """The commit as far as the cache knows it; None where only the source can tell what belongs to it."""
    manifest = cache.read_manifest(layout.hub / origin.folder, commit, host)
    if manifest:
        is_from_there = manifest.origin.provider == origin.provider
        return as_on_disk(_at(settings, origin, layout, commit, manifest.files), host) if is_from_there else None
    model = _at(settings, origin, layout, commit)
    return model if is_present(model, host) else None


def _pinned(origin: Origin, layout: Layout, host: Host, *, offline: bool) -> str | None:
    """The commit, where it can be known without the source."""
    if origin.revision and COMMIT.fullmatch(origin.revision):
        return origin.revision
    ref = ref_of(layout.hub / origin.folder, origin)
    commit = host.word(ref) if ref and offline else ""
    return commit if COMMIT.fullmatch(commit) else None


# The cache: blobs named by their checksum, snapshots of links to them, and a list of what belongs to a commit


def _without_wrong(model: Model, host: Host, report: Report) -> Model:
    """The model without those of its blobs whose bytes are wrong; only what nobody looked at yet is looked at."""
    doubtful = cache.unchecked(model.folder, [file for file in model.files if file.cached], host)
    wrong = {file.digest for file in cache.find_wrong(model.folder, doubtful, host, report)} if doubtful else set()
    for file in doubtful:
        if file.digest in wrong:
            report.warn(tr("{file} of {repo} has wrong bytes on the disk", file=file.name, repo=model.repo))
    return replace(model, files=tuple(replace(f, cached=f.cached and f.digest not in wrong) for f in model.files))


def check_space(model: Model, host: Host) -> None:
    folder = model.folder
    host.make_dir(folder / "blobs")
    free = shutil.disk_usage(host.at(folder)).free
    if model.bytes_missing and free < model.bytes_missing + HEADROOM:
        raise ModelError(
            tr(
                "{repo} needs {size} more, but {folder} has only {free} left",
                repo=model.repo,
                size=size(model.bytes_missing + HEADROOM),
                folder=folder,
                free=size(free),
            ),
            tr("free some space, or put a larger file system at {parent} (df -h)", parent=folder.parent),
        )


def _fetch(model: Model, origin: Origin, connections: int, host: Host, report: Report) -> None:
    blobs = [_blob(model, origin, file, host) for file in distinct(model.files) if not file.cached]
    if blobs:
        with report.bytes(model.repo, model.bytes_missing, len(blobs)) as advance:
            fetch_all(blobs, origin, connections, advance)


def _import(model: Model, bundle: Carrier, host: Host, report: Report) -> None:
    missing = [file for file in distinct(model.files) if not file.cached]
    with report.bytes(
        tr("{model} from {bundle}", model=model.repo, bundle=bundle.path.name), model.bytes_missing, len(missing)
    ) as advance:
        for file in missing:
            bundle.bring_file(file, host.at(model.folder / "blobs" / file.digest), advance)
            advance(0, 1)


def _blob(model: Model, origin: Origin, file: ModelFile, host: Host) -> Blob:
    url = url_of(origin, str(model.commit), file.name)
    return Blob(file.name, url, host.at(model.folder / "blobs" / file.digest), file.size, file.digest)


def _link(model: Model, host: Host) -> None:
    """Show the blobs under their names. The names were checked when they came from the hub.

    The reference comes first: the links are what a rerun looks at, so after a kill nothing else may be missing.
    """
    ref = ref_of(model.folder, model.origin)
    if ref:
        host.write(ref, str(model.commit))
    for file in model.files:
        path = model.path / file.name
        host.make_dir(path.parent)
        host.link(path, model.folder / "blobs" / file.digest)


def _sweep(model: Model, host: Host) -> None:
    """Remove beginnings that nothing will continue: of files that an older commit had, or another client left."""
    for path in host.children(model.folder / "blobs"):
        if path.suffix == ".incomplete":
            host.remove(path)
