"""Weights from the cache of one host into that of another: the missing bytes in one stream, and nothing else in it.

No name is in the stream, and nothing that anybody could read in two ways: who takes it has said before which bytes of
which blobs it misses. It sums each blob as it comes, and shows it to nobody before it is right.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from installer.base import trees, trust
from installer.base.errors import Exit, InstallError, Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.spec.model import DIGEST, Model, ModelError, distinct
from installer.spec.offer import Offer
from installer.weights import cache, checksums, hub, models, sources
from installer.weights.partial import BLOCK, Partial, partial_path
from installer.weights.wanted import as_on_disk

HUB = Layout("any").hub
CHUNK = 1 << 20
MODE = 0o644  # the service's user reads it
QUIET = 900.0  # seconds without a byte: whoever gave is gone, and lost its power before it could say so


@dataclass(frozen=True)
class Part:
    """The end of a blob, from the byte on that is missing."""

    digest: str
    size: int
    at: int

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.digest) or not 0 <= self.at <= self.size <= hub.LARGEST:
            raise ValueError(self.digest)


def of_others(folder: Path, host: Host) -> Path | None:
    """What others than root can change on the way to a model's blobs: nothing is given or taken there."""
    blobs = folder / "blobs"
    return trust.of_others(host, next(path for path in (blobs, *blobs.parents) if host.exists(path)))


# Giving


def give(offer: Offer, parts: Sequence[Part], host: Host, goes: int, begins: Callable[[], None]) -> None:
    """What was asked for, from blobs that root alone can change. `begins` is called when all of them are there."""
    blobs = _of_root(HUB / offer.origin.folder, host) / "blobs"
    with trees.reached(host.at(blobs)) as directory:
        for part in parts:
            with _blob(directory, blobs, part):
                pass
        begins()
        for part in parts:
            with _blob(directory, blobs, part) as source:
                _pour(source, part, goes, blobs)


@contextmanager
def _blob(directory: int, blobs: Path, part: Part) -> Iterator[int]:
    """The file itself: no link, nothing that makes us wait, and of the length that is meant."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    handle = None
    with suppress(OSError):
        handle = os.open(part.digest, flags, dir_fd=directory)
    if handle is None:
        raise _not_given(blobs / part.digest)
    try:
        found = os.fstat(handle)
        is_ours = found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022
        if not (stat.S_ISREG(found.st_mode) and is_ours and found.st_size == part.size):
            raise _not_given(blobs / part.digest)
        yield handle
    finally:
        os.close(handle)


def _not_given(path: Path) -> InstallError:
    return InstallError(
        tr("{path} is not what it has to be, and is given to nobody", path=path),
        "sudo vllm-install models verify --repair",
        Exit.MODEL,
    )


def _pour(source: int, part: Part, goes: int, blobs: Path) -> None:
    at = part.at
    while at < part.size:
        done = os.sendfile(goes, source, at, min(CHUNK, part.size - at))
        if not done:
            raise _not_given(blobs / part.digest)
        at += done


# Taking


def take(
    offer: Offer, host: Host, comes: int, ask: Callable[[Sequence[Part]], None], note: Callable[[str], None]
) -> None:
    """Fill the cache with what is missing of an offer. `ask` says what that is; then it comes, in that order."""
    model = Model(
        offer.repo, HUB / offer.origin.folder / "snapshots" / offer.commit, offer.commit, offer.provider,
        tuple(map(hub.checked, offer.files)), offer.repo, offer.revision,
    )  # fmt: skip
    folder = _of_root(model.folder, host)
    waiting = tr("another process downloads {model} already: waiting for it", model=offer.repo)
    try:
        with cache.alone(folder, host, busy=lambda: note(waiting)):
            if before := cache.read_manifest(folder, offer.commit, host):
                who = tr("{server} and what {other} listed earlier", server=offer.host, other=HUB)
                sources.refuse_contradiction(offer.commit, before.files, model.files, who)
            model = as_on_disk(model, host)
            models.check_space(model, host)
            blobs = host.at(folder / "blobs")
            parts = [_begun(file.digest, file.size, blobs) for file in distinct(model.files) if not file.cached]
            ask(parts)
            for part in parts:
                _take(part, blobs, comes, offer)
                cache.remember(folder, (part.digest,), (), host)
    except OSError as error:
        raise cache.unwritable(error, HUB) or error from None


def _begun(digest: str, size: int, blobs: Path) -> Part:
    partial = Partial(partial_path(blobs / digest), size)
    try:
        return Part(digest, size, partial.keep_front())
    finally:
        partial.close()


def _take(part: Part, blobs: Path, comes: int, offer: Offer) -> None:
    partial, checksum = Partial(partial_path(blobs / part.digest), part.size), checksums.new(part.digest, part.size)
    try:
        at, buffer = 0, memoryview(bytearray(CHUNK))
        while at < part.at:  # what came in an earlier run
            count = partial.read(at, buffer[: min(CHUNK, part.at - at)])
            checksum.update(buffer[:count])
            at += count
        while at < part.size:
            count = _heard(comes, buffer[: min(CHUNK, part.size - at, BLOCK - at % BLOCK)], offer)
            checksum.update(buffer[:count])
            partial.write(at, buffer[:count], record=False)
            at += count
            if at % BLOCK == 0 or at == part.size:
                partial.write_out((at - 1) // BLOCK * BLOCK, at)
        if checksum.hexdigest() != part.digest:
            partial.reset()
            raise _wrong(part, offer)
        partial.finish(blobs / part.digest, MODE)
    finally:
        partial.close()


def _heard(comes: int, into: memoryview, offer: Offer) -> int:
    is_there = select.select([comes], [], [], QUIET)[0]
    count = os.readv(comes, [into]) if is_there else 0
    if not count:
        raise ModelError(
            tr("what {host} gives of {model} ended in the middle", host=offer.host, model=offer.repo),
            tr("run the command again: it continues where it stopped"),
        )
    return count


def _wrong(part: Part, offer: Offer) -> ModelError:
    names = ", ".join(file.name for file in offer.files if file.digest == part.digest)
    return ModelError(
        tr("{file} of {model} came from {host} with wrong bytes", file=names, model=offer.repo, host=offer.host),
        tr("look where they came from: sudo vllm-install models verify {model} --repair", model=offer.repo),
    )


def _of_root(folder: Path, host: Host) -> Path:
    if theirs := of_others(folder, host):
        raise Refused(
            tr("{path} can be changed by others than root: no weights are given or taken there", path=theirs),
            tr("see whose it is: ls -ld {path}", path=theirs),
        )
    return folder
