"""What lies in the weight cache, who needs it, and what goes when nobody does."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.base.report import Report, size
from installer.model import builtin
from installer.spec.facts import Process
from installer.spec.model import ModelFile
from installer.spec.records import check_records, ejected, readable_state, readable_states, services
from installer.spec.values import BUILTIN
from installer.units import processes
from installer.units.graph import handle, on_disk
from installer.units.syntax import exec_line
from installer.weights import cache, partial
from installer.weights.addresses import server_of

ANY = Layout("any")  # the cache is the same for all services
OURS, FOREIGN = mark("built in"), mark("another client")  # sources, beside the addresses of servers
ROOTS = (f"{ANY.hub}/", f"{ANY.builtin_models}/")


@dataclass(frozen=True)
class Cached:
    """One commit of a model, as far as it is here."""

    model: str
    commit: str | None
    path: Path
    source: str
    revisions: tuple[str, ...]  # branches and tags that were this commit when it was fetched
    files: tuple[ModelFile, ...]
    bytes: int  # on the disk; what several commits share counts for each
    missing: int  # bytes that are still to come
    last_used: str | None
    used_by: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "model": self.model,
            "commit": self.commit,
            "path": str(self.path),
            "source": self.source,
            "revisions": list(self.revisions),
            "files": len(self.files),
            "bytes": self.bytes,
            "missing": self.missing,
            "complete": not self.missing,
            "last_used": self.last_used,
            "used_by": list(self.used_by),
        }


def models(host: Host) -> list[Cached]:
    """Every model in the cache, the built-in one too."""
    used = uses(host)
    found = [_cached(folder, commit, used, host) for folder in _folders(host) for commit in _commits(folder, host)]
    tiny = ANY.builtin_models / "tiny"
    if host.exists(tiny):
        files = tuple(ModelFile(path.name, host.at(path).stat().st_size, "") for path in host.children(tiny))
        paths = [host.at(tiny) / file.name for file in files]
        total = sum(file.size for file in files)
        missing = 0 if builtin.is_current(host.at(tiny)) else total
        found.append(
            Cached(BUILTIN, None, tiny, OURS, (), files, total, missing, _last_read(paths), used.get(tiny, ()))
        )
    return found


# Who needs it


def uses(host: Host, without: str = "") -> dict[Path, tuple[str, ...]]:
    """Path -> who needs it: a service now, for a rollback, or for a change that was cut off; any process that runs.

    Of a service whose record cannot be read, only what it serves is known.
    """
    found: dict[Path, dict[str, None]] = {}
    for name in set(services(host)) - {without}:
        layout = Layout(name)
        state = readable_state(host, layout)
        units = (handle(layout), *on_disk(host, layout))
        needed = [(path, name) for unit in units for path in _served(exec_line(host.read(unit.path) or ""))]
        if state and state.proved:
            needed += [(model.path, name) for model in state.proved.read]
        if state and state.previous:
            needed += [(model.path, f"{name} (rollback)") for model in state.previous.read]
        if state and state.pending_model:
            needed.append((Path(state.pending_model), f"{name} (unfinished {(state.pending or '').split(' ')[0]})"))
        for path, who in needed:
            found.setdefault(path, {})[who] = None
    for name, text in ejected(host).items():
        for path in _served(exec_line(text)):
            found.setdefault(path, {})[f"{name} (ejected)"] = None
    for path, process in _running(host):
        if process.unit.removesuffix(".service").partition("@")[0] not in services(host):
            found.setdefault(path, {})[str(process)] = None
    return {path: tuple(users) for path, users in found.items()}


def _served(words: Sequence[str]) -> list[Path]:
    """The model that a unit serves, and whatever else of the cache its command line names."""
    after = words[words.index("serve") + 1 :][:1] if "serve" in words else []
    return [*map(Path, after), *(Path(path) for word in words if (path := _in_cache(word)) and word not in after)]


def _in_cache(word: str) -> str:
    """The place in the cache that a word names, as a model or as NAME=ADAPTER; "" where it names none."""
    return next((path for path in (word, word.partition("=")[2]) if path.startswith(ROOTS)), "")


def users(path: Path, host: Host) -> tuple[str, ...]:
    return tuple({who: None for used, names in uses(host).items() if _is_in(used, path) for who in names})


def at(path: Path, host: Host) -> list[Cached]:
    return [one for one in models(host) if one.path == path]


def _running(host: Host) -> Iterator[tuple[Path, Process]]:
    """What other processes have of the cache: named on their command line, or mapped into their memory."""
    for pid in set(processes.pids(host)) - {os.getpid()}:
        named = processes.read(host, pid, "cmdline").split("\0")
        mapped = re.findall(r" (/\S.*)$", processes.read(host, pid, "maps"), re.MULTILINE)
        for path in {path for word in (*named, *mapped) if (path := _in_cache(word))}:
            yield Path(path), processes.describe(host, pid)


def _users(folder: Path, snapshot: Path, files: Iterable[ModelFile], used: Mapping[Path, tuple[str, ...]]) -> list[str]:
    blobs = {folder / "blobs" / file.digest for file in files}
    found = {who: None for path, users in used.items() if path in blobs or _is_in(path, snapshot) for who in users}
    # Who serves it now need not be named again for the generation before.
    return [who for who in found if not (who.endswith(" (rollback)") and who.removesuffix(" (rollback)") in found)]


def _is_in(path: Path, directory: Path) -> bool:
    return path == directory or directory in path.parents


# What goes


@dataclass(frozen=True)
class RemoveModel:
    """Remove commits of a model that nobody needs, and the blobs that no other commit shares with them.

    What is needed is looked at again when it is applied: a download may have ended since the plan.
    """

    folder: Path
    commits: tuple[str, ...]
    paths: tuple[Path, ...]
    bytes: int
    without: str = ""  # a service that is about to go, and needs nothing any more

    def describe(self) -> str:
        name, held = _name(self.folder), size(self.bytes)
        if not self.commits:
            return tr("remove {model} ({size})", model=name, size=held)
        commits = ", ".join(commit[:12] for commit in self.commits)
        return tr("remove {model} at {commits} ({size})", model=name, commits=commits, size=held)

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "remove-model",
            "model": _name(self.folder),
            "commits": list(self.commits),
            "paths": [str(path) for path in self.paths],
            "bytes": self.bytes,
        }

    def apply(self, host: Host, report: Report) -> None:
        with cache.alone(self.folder, host, busy=self._busy):
            if unneeded(self.folder, host, self.without) != self:
                self._busy()
            for path in self.paths:
                host.remove(path)

    def _busy(self) -> None:
        raise Refused(
            tr("{model} is being downloaded or was changed just now", model=_name(self.folder)),
            tr("run the command again later: vllm-install models prune"),
        )


def plan_prune(host: Host) -> list[RemoveModel]:
    check_records(host)
    folders = [*_folders(host), *host.children(ANY.builtin_models)]
    return [change for folder in folders if (change := unneeded(folder, host))]


def prune(host: Host, report: Report) -> list[RemoveModel]:
    with host.lock(ANY.shared_lock, "vllm-install models prune", report.waits):
        changes = plan_prune(host)
        for change in changes:
            report.begin(change)
            change.apply(host, report)
            report.done(change)
        return changes


def unneeded(folder: Path, host: Host, without: str = "") -> RemoveModel | None:
    """What nobody needs of one repository, links before what they point to; None where all of it may be needed."""
    if readable_states(host, [Layout(name) for name in services(host) if name != without]) is None:
        return None
    used = uses(host, without)
    if folder.parent == ANY.builtin_models and any(_is_in(path, folder) for path in used):
        return None
    commits = _commits(folder, host)
    kept = [c for c in commits if _users(folder, folder / "snapshots" / c, _files(folder, c, host), used)]
    gone = [commit for commit in commits if commit not in kept]
    if not kept:
        return RemoveModel(folder, tuple(gone), (folder,), _bytes(folder, host), without)
    needed = {
        file.digest
        for commit in kept
        for file in (*_files(folder, commit, host), *cache.linked(folder / "snapshots" / commit, host))
    }
    paths = [path for path in _refs(folder, host) if host.word(path) in gone]
    paths += [path for commit in gone for path in (folder / "snapshots" / commit, cache.manifest_path(folder, commit))]
    paths += [blob for blob in host.children(folder / "blobs") if blob.name.partition(".")[0] not in needed]
    present = tuple(path for path in paths if host.exists(path))
    freed = sum(_bytes(path, host) for path in present)
    return RemoveModel(folder, tuple(gone), present, freed, without) if present else None


# Looking


def _folders(host: Host) -> list[Path]:
    return [path for path in host.children(ANY.hub) if path.name.startswith("models--")]


def _name(folder: Path) -> str:
    return BUILTIN if folder.parent == ANY.builtin_models else folder.name.removeprefix("models--").replace("--", "/")


def _commits(folder: Path, host: Host) -> list[str]:
    """Those that are shown, and those whose download has begun."""
    shown = {path.name for path in host.children(folder / "snapshots")}
    begun = {path.stem for path in host.children(folder / "manifests") if path.suffix == ".json"}
    return sorted(shown | begun)


def _refs(folder: Path, host: Host) -> list[Path]:
    real = host.at(folder / "refs")
    return [folder / "refs" / path.relative_to(real) for path in sorted(real.rglob("*")) if path.is_file()]


def _files(folder: Path, commit: str, host: Host) -> tuple[ModelFile, ...]:
    manifest = cache.read_manifest(folder, commit, host)
    return manifest.files if manifest else cache.linked(folder / "snapshots" / commit, host)


def _cached(folder: Path, commit: str, used: Mapping[Path, tuple[str, ...]], host: Host) -> Cached:
    snapshot, blobs = folder / "snapshots" / commit, folder / "blobs"
    manifest, files = cache.read_manifest(folder, commit, host), _files(folder, commit, host)
    distinct = {file.digest: file for file in files}.values()
    missing = sum(_missing(host.at(blobs / file.digest), file.size) for file in distinct)
    names = {path.relative_to(folder / "refs") for path in _refs(folder, host) if host.read(path) == commit}
    return Cached(
        model=_name(folder),
        commit=commit,
        path=snapshot,
        source=server_of(manifest.origin) if manifest else FOREIGN,
        revisions=tuple(sorted(map(str, names))),
        files=files,
        bytes=sum(file.size for file in distinct) - missing,
        missing=missing,
        last_used=_last_read([host.at(blobs / file.digest) for file in distinct]),
        used_by=tuple(_users(folder, snapshot, files, used)),
    )


def _missing(blob: Path, length: int) -> int:
    if blob.exists() and blob.stat().st_size == length:
        return 0
    return length - partial.arrived(blob, length)


def _last_read(paths: Iterable[Path]) -> str | None:
    """By the access times, which most systems keep to the day."""
    times = [path.stat().st_atime for path in paths if path.exists()]
    return datetime.fromtimestamp(max(times), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if times else None


def _bytes(path: Path, host: Host) -> int:
    """What the file system gets back; a blob that has another name elsewhere stays."""
    real = host.at(path)
    entries = [real, *real.rglob("*")] if real.is_dir() and not real.is_symlink() else [real]
    found = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # a download that ends just now renames its files
            found.append(entry.lstat())
    return sum(
        min(status.st_size, status.st_blocks * 512)  # what is still to come of a partial file is not there
        for status in found
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    )
