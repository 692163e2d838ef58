"""Weights in another hub cache of this host, which another user may own, or on another host: never believed.

No link of another user's is followed on the way. What lies there counts for what its bytes are, which are summed
before anybody sees them here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

from installer.base import trees
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Advance, Report
from installer.model.model_about import read_small
from installer.model.plain_file import DEEPEST, LONGEST
from installer.spec.model import COMMIT, DIGEST, Model, ModelFile, Origin, distinct, is_inside
from installer.spec.offer import Elsewhere, Offer, unpacked
from installer.weights import cache, checksums, hub

LONGEST_WORD = 100  # bytes of a file that holds a commit
MOST_NAMES = 10_000  # in a snapshot: no model has so many files


@dataclass(frozen=True)
class Held:
    """A commit of a model as another cache shows it: its blobs are named by what they should be."""

    place: Path | None  # in another cache of this host
    commit: str
    files: tuple[ModelFile, ...]
    offer: Offer | None = None  # of another host

    @property
    def who(self) -> str:
        return self.offer.host if self.offer else str(self.place)


def find(caches: Iterable[Elsewhere], origin: Origin, host: Host) -> Held | None:
    """The commit that was served from there, where there is one."""
    for each in caches:
        if isinstance(each, Offer):
            if each.is_of(origin):
                return Held(None, each.commit, tuple(map(hub.checked, each.files)), each)
            continue
        if origin.provider != "hub":
            continue
        place = each / origin.folder
        commit = _commit(place, origin.revision or "main", host)
        if commit and (files := _files(place, commit, host)):
            return Held(place, commit, files)
    return None


def bring(model: Model, place: Path, host: Host, report: Report) -> None:
    """What is missing of a model and lies there: seen to be right, and then a blob of ours."""
    missing = [file for file in distinct(model.files) if not file.cached and DIGEST.fullmatch(file.digest)]
    there = [file for file in missing if _size(place / "blobs", file.digest, host) == file.size]
    if not there:
        return
    blobs = model.folder / "blobs"
    host.make_dir(blobs)
    what = tr("{model} from {place}", model=model.repo, place=place)
    with report.bytes(what, sum(file.size for file in there), len(there)) as advance:
        for file in there:
            if _bring(file, place, host.at(blobs / file.digest), host, advance):
                cache.remember(model.folder, (file.digest,), (), host)
            advance(0, 1)


def texts(files: Iterable[ModelFile], held: Held, host: Host) -> dict[str, str]:
    """What the small ones among a model's files say, as far as they are there and right."""
    if held.place is None:
        said = unpacked(held.offer.texts) if held.offer else {}
        return {file.name: said[file.name] for file in files if file.name in said and _is_said(file, said[file.name])}
    found = {}
    with host.scratch() as scratch, Report().bytes("", 0) as silent:
        for number, file in enumerate(files):
            copy = scratch / str(number)
            if file.size <= LONGEST and _bring(file, held.place, copy, host, silent):
                found[file.name] = read_small(copy)
    return found


def _is_said(file: ModelFile, text: str) -> bool:
    content = text.encode(errors="replace")
    checksum = checksums.new(file.digest, len(content))
    checksum.update(content)
    return checksum.hexdigest() == file.digest


def _bring(file: ModelFile, place: Path, to: Path, host: Host, advance: Advance) -> bool:
    is_right = partial(checksums.is_right, digest=file.digest, advance=advance)
    return host.bring(host.at(place / "blobs"), file.digest, to, file.size, is_right)


def _commit(place: Path, revision: str, host: Host) -> str:
    if COMMIT.fullmatch(revision):
        return revision
    name = Path("refs") / revision
    with _entered(place / name.parent, host) as refs:
        if refs is None or not is_inside(revision):
            return ""
        try:
            handle = os.open(name.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=refs)
        except OSError:
            return ""
        with os.fdopen(handle, "rb") as file:
            is_file = stat.S_ISREG(os.fstat(handle).st_mode)
            word = file.read(LONGEST_WORD).decode("ascii", errors="replace").strip() if is_file else ""
        return word if COMMIT.fullmatch(word) else ""


def _files(place: Path, commit: str, host: Host) -> tuple[ModelFile, ...]:
    return tuple(sorted(_shown(place, commit, host), key=attrgetter("name")))


def _shown(place: Path, commit: str, host: Host) -> Iterator[ModelFile]:
    """The names in a snapshot, each a link to a blob: its target is read and not followed."""
    with _entered(place / "snapshots" / commit, host) as snapshot:
        if snapshot is None:
            return
        for count, (handle, below, name) in enumerate(_entries(".", snapshot)):
            if count >= MOST_NAMES:
                raise Refused(
                    tr("{place} holds more than {count} names of {commit}, as no model does",
                       place=place, count=MOST_NAMES, commit=commit),
                    tr("move it away, and the weights are fetched anew: mv {place} {place}.before", place=place),
                )  # fmt: skip
            digest = _target(name, handle)
            size = _size(place / "blobs", digest, host) if digest and is_inside(below + name) else None
            if size is not None:
                yield ModelFile(below + name, size, digest)


def _entries(folder: str, parent: int, below: str = "", depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """One after the other, as the file system has them: however many there are, none are kept."""
    with suppress(OSError), trees.opened(folder, parent) as directory, os.scandir(directory) as found:
        for entry in found:
            yield directory, below, entry.name
            if depth < DEEPEST and entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.name, directory, f"{below}{entry.name}/", depth + 1)


def _target(name: str, directory: int) -> str:
    try:
        digest = os.readlink(name, dir_fd=directory).rpartition("/")[2]
    except OSError:
        return ""
    return digest if DIGEST.fullmatch(digest) else ""


def _size(blobs: Path, digest: str, host: Host) -> int | None:
    with _entered(blobs, host) as handle:
        if handle is None:
            return None
        try:
            found = os.stat(digest, dir_fd=handle, follow_symlinks=False)
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None


@contextmanager
def _entered(directory: Path, host: Host) -> Iterator[int | None]:
    """The directory, reached by no link of another user's; None where it is not."""
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(trees.reached(host.at(directory)))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                raise
            handle = None
        yield handle
