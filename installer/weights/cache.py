"""What is kept beside the hub's own cache layout: the files of each commit, and which blobs were seen to be right."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Report
from installer.model import selection
from installer.spec.model import DIGEST, ModelError, ModelFile, Origin
from installer.weights import checksums, hub


@dataclass(frozen=True)
class Manifest:
    """The files of one commit as their source listed them."""

    origin: Origin
    files: tuple[ModelFile, ...]


def manifest_path(folder: Path, commit: str) -> Path:
    return folder / "manifests" / f"{commit}.json"


def read_manifest(folder: Path, commit: str, host: Host) -> Manifest | None:
    text = host.read(manifest_path(folder, commit))
    try:
        kept = json.loads(text or "")
        files = tuple(hub.checked(ModelFile(f["name"], f["size"], f["digest"])) for f in kept["files"])
        return Manifest(Origin(**kept["origin"]), files)
    except (ValueError, TypeError, KeyError):
        return None


def write_manifest(folder: Path, commit: str, manifest: Manifest, host: Host) -> None:
    origin = manifest.origin
    kept = {
        "origin": {name: getattr(origin, name) for name in ("repo", "revision", "endpoint", "provider")},
        "files": [{"name": file.name, "size": file.size, "digest": file.digest} for file in manifest.files],
    }
    host.write(manifest_path(folder, commit), json.dumps(kept, indent=1) + "\n")


def linked(snapshot: Path, host: Host) -> tuple[ModelFile, ...]:
    """The files of a snapshot without a manifest: another client made it, and named each blob by its checksum."""
    real = host.at(snapshot)
    found = []
    for link in sorted(real.rglob("*")):
        target = link.resolve()
        if link.is_symlink() and target.is_file() and DIGEST.fullmatch(target.name):
            found.append(ModelFile(str(link.relative_to(real)), target.stat().st_size, target.name))
    return tuple(found)


def is_linked(snapshot: Path, file: ModelFile, host: Host) -> bool:
    """Whether the snapshot shows the file's own blob, in its full length, under the file's name."""
    link = host.at(snapshot) / file.name
    blob = host.at(snapshot.parents[1]) / "blobs" / file.digest
    try:
        return link.samefile(blob) and blob.stat().st_size == file.size
    except OSError:
        return False


def strangers(snapshot: Path, files: Iterable[ModelFile], host: Host) -> list[str]:
    """Files among a snapshot's own that its source did not list, and that an engine might read all the same."""
    real, names = host.at(snapshot), {file.name for file in files}
    found = (str(path.relative_to(real)) for path in sorted(real.rglob("*")) if path.is_symlink() or path.is_file())
    return [name for name in found if name not in names and names and selection.is_read(name)]


@contextmanager
def alone(folder: Path, host: Host, busy: Callable[[], None]) -> Iterator[None]:
    """One process at a time changes a repository. Where another one does, `busy` is called; then it is waited for."""
    path = folder.parent / ".locks" / f"{folder.name}.vllm-install"
    with host.lock(path, "vllm-install models pull", lambda _: busy()):
        yield


# Which blobs were seen to be right


def unchecked(folder: Path, files: Iterable[ModelFile], host: Host) -> list[ModelFile]:
    """Files whose bytes nobody has summed since they were last written: one for each content."""
    seen = _seen(folder, host)
    distinct = {file.digest: file for file in files}
    return [
        file for digest, file in distinct.items() if seen.get(digest) != _signature(host.at(folder / "blobs" / digest))
    ]


def remember(folder: Path, right: Iterable[str], wrong: Iterable[str], host: Host) -> None:
    """Note how the blobs look that were just seen to be right; of others any note goes."""
    blobs = host.at(folder / "blobs")
    seen = {digest: signature for digest, signature in _seen(folder, host).items() if (blobs / digest).exists()}
    for digest in wrong:
        seen.pop(digest, None)
    for digest in right:
        if signature := _signature(blobs / digest):
            seen[digest] = signature
    host.write(_seen_path(folder), json.dumps(seen, indent=1) + "\n")


def find_wrong(folder: Path, files: Sequence[ModelFile], host: Host, report: Report) -> list[ModelFile]:
    """Sum the files' blobs; those with wrong bytes or none. Remembered, so that nobody sums them again in vain."""
    blobs = host.at(folder / "blobs")
    present = [file for file in files if size_of(blobs / file.digest) == file.size]
    before = {file.digest: _signature(blobs / file.digest) for file in present}
    total = sum(file.size for file in present)
    with report.bytes(
        tr("checking {what}", what=folder.name.removeprefix("models--").replace("--", "/")), total
    ) as advance:
        wrong = {path.name for path in checksums.find_wrong([(blobs / f.digest, f.digest) for f in present], advance)}
    # What changed while it was read may have been right only before.
    wrong |= {digest for digest, signature in before.items() if _signature(blobs / digest) != signature}
    right = before.keys() - wrong
    if os.access(blobs, os.W_OK):
        remember(folder, right, wrong, host)
    return [file for file in files if file.digest not in right]


def _seen_path(folder: Path) -> Path:
    return folder / "checked.json"


def _seen(folder: Path, host: Host) -> dict[str, str]:
    try:
        kept = json.loads(host.read(_seen_path(folder)) or "{}")
    except ValueError:
        return {}
    return {str(digest): str(signature) for digest, signature in kept.items()} if isinstance(kept, dict) else {}


def _signature(blob: Path) -> str | None:
    """Changes with every write, replacement or repair of a file; nobody can set the change time back."""
    try:
        found = blob.stat()
    except OSError:
        return None
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def unwritable(error: OSError, cache: Path) -> ModelError | None:
    """What a fault of the disk means for the weights."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            tr("the disk is full: what is still missing does not fit into {cache}", cache=cache),
            tr("free some space (df -h) and run the command again: it continues where it stopped"),
        )
    if error.errno == errno.EROFS:
        return ModelError(
            tr("{cache} is on a read-only file system", cache=cache),
            tr("mount it for writing (mount -o remount,rw …) or put another file system at {cache}", cache=cache),
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ModelError(
            tr("no permission to write {path}", path=error.filename or cache),
            tr(
                "run the command as root (sudo); where root was refused too, see who owns it: ls -ld {cache}",
                cache=cache,
            ),
        )
    return None
