"""Opening a bundle, an archive or the directory that one was unpacked into, and taking verified files out of it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from installer.airgap.bundle_format import (
    END,
    IMAGE,
    LONGEST_MANIFEST,
    LONGEST_SIGNATURE,
    MANIFEST,
    MODEL,
    SIGNATURE,
    WHEELS,
    BundleError,
    Manifest,
    Member,
    ModelPart,
    after,
    declared_size,
    header,
    header_length,
    parse_manifest,
    places,
)
from installer.base import trees
from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.report import Advance, Report
from installer.spec.model import ModelFile
from installer.weights import checksums

CHUNK = 16 << 20  # copied, then read back from the page cache for its checksum
READ = 1 << 20
# What a kernel or file system says that cannot copy between these two files by itself.
NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY)


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest
    text: bytes = field(repr=False)  # of the manifest, which a signature is about
    signature: str | None = field(default=None, repr=False)
    offsets: dict[str, int] | None = field(default=None, repr=False)  # of the members' data; None: a directory
    folder: str = MODEL  # of what is meant of it, where that is one of its models

    @property
    def part(self) -> ModelPart:
        return self.manifest.parts[self.folder]

    def of_adapter(self, name: str) -> Bundle | None:
        """The same, with the adapter that clients ask for by this name in the model's place."""
        of = {
            each.name: folder for each, folder in zip(self.manifest.adapters, [*self.manifest.parts][1:], strict=True)
        }
        return replace(self, folder=of[name]) if name in of else None

    @property
    def digest(self) -> str:
        """The manifest's, which stands for everything: it holds all other checksums."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def wheel_bytes(self) -> int:
        return sum(member.size for member in self.manifest.below(WHEELS))

    @property
    def image_bytes(self) -> int:
        return sum(member.size for member in self.manifest.below(IMAGE))

    def bring(self, member: Member, target: Path, advance: Advance) -> None:
        """Put a member at `target`, verified; what an interrupted run had copied is not copied again."""
        part = target.with_name(target.name + ".bundle.incomplete")
        for last in (False, True):
            with self._source(member) as (source, offset):
                had = part.exists()
                found = _link(source, part, advance) if self.offsets is None and not had else None
                found = found or _copy(source, offset, member, part, advance)
            if found == member.sha256:
                part.chmod(0o644)  # only now: what was found may have been meant for nobody
                part.replace(target)
                return
            part.unlink()
            if last or not had:
                raise self._damaged(member)
            advance(-member.size)

    def bring_file(self, file: ModelFile, target: Path, advance: Advance) -> None:
        """The same for a file of the model, whose name in the cache is the hub's own digest."""
        member = next(member for member in self.manifest.members if member.name == self.folder + file.name)
        self.bring(member, target, advance)
        if len(file.digest) == 40 and not checksums.is_right(target, file.digest, lambda count: None):
            target.unlink()
            raise self._damaged(member)

    def bring_wheels(self, directory: Path, report: Report) -> None:
        with report.bytes(tr("wheels from {path}", path=self.path.name), self.wheel_bytes) as advance:
            for member in self.manifest.below(WHEELS):
                self.bring(member, directory / member.name.removeprefix(WHEELS), advance)

    def bring_image(self, target: Path, report: Report) -> None:
        with report.bytes(tr("the image from {path}", path=self.path.name), self.image_bytes) as advance:
            for member in self.manifest.below(IMAGE):
                self.bring(member, target, advance)

    def check(self, member: Member, advance: Advance) -> bool:
        """Whether a member's bytes are what the manifest says."""
        with self._source(member) as (source, offset):
            return _sum(source, offset, member.size, advance) == member.sha256

    @contextmanager
    def _source(self, member: Member) -> Iterator[tuple[int, int]]:
        with _opened(self.path, member.name if self.offsets is None else "") as handle:
            yield handle, 0 if self.offsets is None else self.offsets[member.name]

    def _damaged(self, member: Member) -> BundleError:
        return BundleError(
            tr(
                "{path} is damaged: {member} does not have the checksum in its manifest",
                path=self.path,
                member=member.name,
            )
        )


def open_bundle(path: Path) -> Bundle:
    """The bundle, if its structure is sound: the checksums of its members are looked at when they are used."""
    path = path.resolve()
    if path.is_dir():
        return _open_directory(path)
    with _opened(path) as handle:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError(tr("{path} is no file", path=path), tr("a bundle is what vllm-install bundle create made"))
        text, end = _read_loose(handle, path, MANIFEST, 0, LONGEST_MANIFEST)
        manifest = parse_manifest(text, path)
        signature = None
        if manifest.signed:
            raw, end = _read_loose(handle, path, SIGNATURE, end, LONGEST_SIGNATURE)
            signature = raw.decode(errors="replace")
        offsets = {}
        for member, offset, head in places(manifest.members, end):
            data = offset + len(head)
            end = after(data, member.size)
            padding = end - data - member.size
            if os.pread(handle, len(head), offset) != head or _padding(handle, end, padding) != bytes(padding):
                raise BundleError(
                    tr("{path} is damaged: {member} is not where its manifest says", path=path, member=member.name)
                )
            offsets[member.name] = data
        size = os.fstat(handle).st_size
        if size != end + END or os.pread(handle, END, end) != bytes(END):
            raise BundleError(
                tr(
                    "{path} is damaged: it has {size} bytes, but its manifest makes it {expected}",
                    path=path,
                    size=size,
                    expected=end + END,
                )
            )
    return Bundle(path, manifest, text, signature, offsets)


def _open_directory(path: Path) -> Bundle:
    text = _read_small(path, MANIFEST, LONGEST_MANIFEST)
    manifest = parse_manifest(text, path)
    signature = _read_small(path, SIGNATURE, LONGEST_SIGNATURE).decode(errors="replace") if manifest.signed else None
    for member in manifest.members:
        with _opened(path, member.name) as handle:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size != member.size:
                raise BundleError(
                    tr(
                        "{path} is damaged: {member} is no file of {size} bytes",
                        path=path,
                        member=member.name,
                        size=member.size,
                    )
                )
    return Bundle(path, manifest, text, signature)


def _read_loose(handle: int, path: Path, name: str, offset: int, most: int) -> tuple[bytes, int]:
    """A member whose size only its header tells; and where the next one begins."""
    data = offset + header_length(offset)
    head = os.pread(handle, data - offset, offset)
    size = declared_size(head)
    if head != header(name, max(size, 0), offset):
        raise BundleError(
            tr("{path} is no bundle of vllm-install, or damaged: {name} is not where it belongs", path=path, name=name)
        )
    if not 0 < size <= most:
        raise BundleError(tr("{path} is damaged: {name} has {size} bytes", path=path, name=name, size=size))
    text, end = os.pread(handle, size, data), after(data, size)
    if len(text) != size or _padding(handle, end, end - data - size) != bytes(end - data - size):
        raise BundleError(tr("{path} is damaged: it ends in the middle of {name}", path=path, name=name))
    return text, end


def _padding(handle: int, end: int, length: int) -> bytes:
    return os.pread(handle, length, end - length)


def _read_small(directory: Path, name: str, most: int) -> bytes:
    with _opened(directory, name) as handle:
        text = os.read(handle, most + 1)
    if len(text) > most:
        raise BundleError(tr("{path} is too long to be what it is called", path=directory / name))
    return text


@contextmanager
def _opened(bundle: Path, member: str = "") -> Iterator[int]:
    """The archive, or a file of the directory, to which no link leads, whoever unpacked it or owns it."""
    path = bundle / member
    try:
        with ExitStack() as stack:
            *folders, name = PurePosixPath(member).parts if member else (bundle.name,)
            parent = stack.enter_context(trees.reached(bundle if member else bundle.parent))
            for folder in folders:
                parent = stack.enter_context(trees.opened(folder, parent))
            # A pipe in the place of a file must not be waited for.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            handle = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        raise UsageError(
            tr("there is no {path}", path=path), tr("--bundle takes what vllm-install bundle create made")
        ) from None
    except OSError as error:
        if member and error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise BundleError(
                tr("{path} is damaged: {member} is not where its manifest says", path=bundle, member=member)
            ) from None
        if error.errno == errno.ELOOP:
            raise BundleError(
                tr("{path} is a symbolic link", path=path), tr("name the file itself: {target}", target=path.resolve())
            ) from None
        raise
    try:
        yield handle
    finally:
        os.close(handle)


# Bytes


def _link(source: int, part: Path, advance: Advance) -> str | None:
    """A second name for a file of an unpacked bundle instead of a copy, where nobody but root could change it."""
    found = os.fstat(source)
    if found.st_uid != 0 or stat.S_IMODE(found.st_mode) != 0o644:
        return None
    try:
        # The file that was looked at, whatever its name leads to by now; only with a directory are links followed.
        os.link(f"/proc/self/fd/{source}", part, src_dir_fd=source, follow_symlinks=True)
    except OSError:  # another file system, or one without hard links
        return None
    return _sum(source, 0, found.st_size, advance)


def _copy(source: int, offset: int, member: Member, part: Path, advance: Advance) -> str:
    """Copy what is missing of a member, chunk by chunk, and return the checksum of what then is there."""
    checksum = hashlib.sha256()
    target = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        have = os.fstat(target).st_size
        if have > member.size:
            os.ftruncate(target, 0)
            have = 0
        for at in range(0, member.size, CHUNK):
            until = min(at + CHUNK, member.size)
            begin = max(at, min(have, until))
            _transfer(source, offset + begin, target, begin, until - begin, member)
            for piece in _pieces(target, at, until - at):
                checksum.update(piece)
            advance(until - at)
        os.fsync(target)
    except OSError as error:
        error.filename = str(part)  # a write to a full disk does not know its file
        raise
    finally:
        os.close(target)
    return checksum.hexdigest()


def _transfer(source: int, begin: int, target: int, to: int, count: int, member: Member) -> None:
    """In the kernel where it can, which on btrfs and XFS shares the blocks instead of copying them."""
    while count:
        try:
            done = os.copy_file_range(source, target, min(count, CHUNK), begin, to)
        except OSError as error:
            if error.errno not in NO_COPY:
                raise
            done = os.pwrite(target, os.pread(source, min(count, READ), begin), to)
        if not done:
            raise BundleError(tr("the bundle is damaged: it ends in the middle of {member}", member=member.name))
        begin, to, count = begin + done, to + done, count - done


def _sum(handle: int, offset: int, size: int, advance: Advance) -> str:
    checksum = hashlib.sha256()
    for piece in _pieces(handle, offset, size):
        checksum.update(piece)
        advance(len(piece))
    return checksum.hexdigest()


def _pieces(handle: int, offset: int, size: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(READ))
    while size:
        count = os.preadv(handle, [buffer[: min(size, READ)]], offset)
        if not count:
            raise BundleError(tr("the bundle is damaged: it became shorter while it was read"))
        yield buffer[:count]
        offset, size = offset + count, size - count
