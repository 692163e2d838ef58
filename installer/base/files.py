"""The host's files: read without a trap, written in one step, removed to the last one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from installer.base import trees
from installer.base.errors import Refused
from installer.base.language import tr

CHUNK = 256 * 1024
COPIED = 1 << 30  # bytes that the kernel is asked to copy at once
LONGEST = 64 * 1024 * 1024  # bytes of a file that is read whole
NOTHING = os.makedev(1, 3)  # /dev/null, to which a masked unit is a link


class Strange(Refused):
    """Something lies in a file's place that we neither read nor wait for."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            tr("{where} is not what it has to be: {reason}", where=path, reason=why),
            tr("move it away: mv {where} {where}.before", where=path),
        )


@dataclass(frozen=True)
class Files:
    """Those below a root directory: `/` for real, a temporary tree in tests."""

    root: Path = Path("/")

    def at(self, path: Path) -> Path:
        """The real location of a host path."""
        return path if self.root == Path("/") else self.root / path.relative_to("/")

    def read(self, path: Path) -> str | None:
        return self._read(path, 0, None, LONGEST)

    def word(self, path: Path) -> str:
        """What a file of one line says; nothing where there is none."""
        return (self.read(path) or "").strip()

    def read_of(self, path: Path, owners: Collection[int], longest: int) -> str | None:
        """A file in a directory that others may write: the file itself, no link, from one of its owners, and short."""
        return self._read(path, os.O_NOFOLLOW, owners, longest)

    def _read(self, path: Path, flags: int, owners: Collection[int] | None, longest: int) -> str | None:
        """Nothing that lies there makes us wait or fill our memory: a pipe, a device, a text without an end."""
        try:
            handle = os.open(self.at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise Strange(path, error.strerror or "") from None
            raise
        try:
            self._check_readable(path, os.fstat(handle), owners)
            # Bytes in, bytes out: neither the locale nor a foreign line end may change a file that is only edited.
            content = bytearray()
            while chunk := os.read(handle, CHUNK):  # not at once, which would ask for the memory that may be needed
                content += chunk
                if len(content) > longest:
                    raise Strange(path, tr("it is longer than {bytes} bytes", bytes=longest))
            return content.decode(errors="surrogateescape")
        finally:
            os.close(handle)

    @staticmethod
    def _check_readable(path: Path, found: os.stat_result, owners: Collection[int] | None) -> None:
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode) and found.st_rdev != NOTHING:
            raise Strange(path, tr("it is no regular file"))
        if owners is not None and found.st_uid not in owners:
            raise Strange(path, tr("it belongs to the user {uid}", uid=found.st_uid))

    def owner(self, path: Path) -> int | None:
        try:
            return self.at(path).lstat().st_uid
        except (FileNotFoundError, NotADirectoryError):
            return None

    def group(self, path: Path) -> int | None:
        try:
            return self.at(path).lstat().st_gid
        except (FileNotFoundError, NotADirectoryError):
            return None

    def mode(self, path: Path) -> int | None:
        try:
            return self.at(path).lstat().st_mode & 0o7777
        except (FileNotFoundError, NotADirectoryError):
            return None

    def modified(self, path: Path) -> float | None:
        """When a file was written last, in seconds since 1970."""
        try:
            return self.at(path).lstat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_socket(self, path: Path) -> bool:
        """Whether a socket itself lies there; no link is followed, and nobody is connected to."""
        try:
            return stat.S_ISSOCK(self.at(path).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def exists(self, path: Path) -> bool:
        return os.path.lexists(self.at(path))

    def children(self, directory: Path) -> list[Path]:
        """The host paths of a directory's entries; an absent directory has none."""
        real = self.at(directory)
        return sorted(directory / entry.name for entry in real.iterdir()) if real.is_dir() else []

    def glob(self, pattern: str) -> list[Path]:
        """The host paths that match, in order."""
        return sorted(Path("/") / path.relative_to(self.root) for path in self.root.glob(pattern.lstrip("/")))

    def write(self, path: Path, text: str, mode: int = 0o644, group: int = -1) -> None:
        """Replace a file in one step: readers see the old text or the new, also after a power loss."""
        target = self.at(path)
        made = self.make_dir(path.parent)
        # The same name every time: what a killed run left goes with the next one. The lock keeps others out.
        new = target.parent / f".{path.name}.new"
        new.unlink(missing_ok=True)
        try:
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                if group >= 0:
                    os.fchown(handle, -1, group)
                os.fchmod(handle, mode)
                file.write(text.encode(errors="surrogateescape"))
                file.flush()
                os.fsync(handle)
            new.replace(target)
        except BaseException as error:
            new.unlink(missing_ok=True)
            for directory in made:
                self.remove_empty_dir(directory)
            if isinstance(error, OSError):
                error.filename = str(path)  # a full disk is noticed by a write, which does not know its file's name
            raise
        self._sync_dir(target.parent)

    def write_into(self, directory: Path, name: str, text: str, mode: int = 0o600) -> None:
        """Replace a file in a directory of another user's, who gets it. What lay there is never followed."""
        with trees.opened(self.at(directory)) as parent:
            theirs = os.fstat(parent)
            new = f".{name}.{secrets.token_hex(8)}"
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    os.fchown(handle, theirs.st_uid, theirs.st_gid)
                    os.fchmod(handle, mode)
                    file.write(text.encode())
                try:
                    os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
                except IsADirectoryError:
                    trees.remove(parent, name)
                    os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                trees.is_unlinked(parent, new)
                raise

    def write_out(self, path: Path, text: str, mode: int = 0o644, *, force: bool) -> None:
        """A file where somebody wants it: over no other unless asked, through no link, and by no link of others."""
        try:
            with trees.reached(self.at(path.parent)) as parent:
                self._write_out(parent, path, text, mode, force)
        except (FileNotFoundError, NotADirectoryError):
            raise Refused(
                tr("there is no directory {path}", path=path.parent), tr("make it, or name another place")
            ) from None
        except OSError as error:
            error.filename = str(path)
            raise

    @staticmethod
    def _write_out(parent: int, path: Path, text: str, mode: int, force: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            if force and not stat.S_ISREG(os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Refused(
                    tr("{path} is no regular file", path=path), tr("name another place, or - for standard output")
                )
        new = f".{secrets.token_hex(8)}.new" if force else path.name
        try:
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
        except FileExistsError:
            raise Refused(tr("{path} is there already", path=path), tr("write over it with --force")) from None
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, mode)
                file.write(text.encode(errors="surrogateescape"))
            if force:
                os.rename(new, path.name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            trees.is_unlinked(parent, new)
            raise

    def make_dir(self, path: Path) -> list[Path]:
        """Create a directory and its parents, independent of the caller's umask; says which were missing."""
        missing = [p for p in (path, *path.parents) if not self.at(p).is_dir()]
        for directory in reversed(missing):
            self.at(directory).mkdir(exist_ok=True)
            self.at(directory).chmod(0o755)
        return missing

    def set_mode(self, path: Path, mode: int) -> None:
        self.at(path).chmod(mode)

    def move(self, path: Path, to: Path) -> None:
        self.at(path).rename(self.at(to))

    def keep_others_from_writing(self, tree: Path) -> None:
        for _, directories, files, handle in os.fwalk(self.at(tree)):
            for name in (*directories, *files):
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode):
                    os.chmod(name, stat.S_IMODE(found.st_mode) & ~0o022, dir_fd=handle)

    def link(self, path: Path, to: Path) -> None:
        """A symbolic link that stays right when both its ends are moved together; in one step instead of another."""
        new = self.at(path.with_name(".new-link"))
        new.unlink(missing_ok=True)
        new.symlink_to(os.path.relpath(to, path.parent))
        new.replace(self.at(path))

    def share(self, path: Path, to: Path) -> None:
        """Another name for a file."""
        try:
            self.at(path).hardlink_to(self.at(to))
        except FileNotFoundError:
            self.make_dir(path.parent)
            self.at(path).hardlink_to(self.at(to))

    @staticmethod
    def bring(place: Path, name: str, to: Path, size: int, is_right: Callable[[Path], bool]) -> bool:
        """A file from a directory that others may write, as one of ours that nobody else can change. Real locations.

        One that is root's alone gets another name; any other is copied, or cloned where the file system can. It takes
        its place once it is right.
        """
        new = to.with_name(f".{to.name}.new")
        new.unlink(missing_ok=True)
        try:
            with trees.reached(place) as parent:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                source = os.open(name, flags, dir_fd=parent)
        except OSError:
            return False
        try:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return False
            if not (_is_fixed(found) and _named(source, new)):
                _copy(source, new, size)
            if not is_right(new):
                return False
            new.chmod(0o644)
            new.replace(to)
            return True
        finally:
            os.close(source)
            new.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file, a link or a whole tree, however deep and whoever made it; absent is fine."""
        if self.exists(path):
            with trees.opened(self.at(path.parent), follow=True) as parent:
                trees.remove(parent, path.name)

    def remove_empty_dir(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            self.at(path).rmdir()

    @staticmethod
    @contextmanager
    def scratch(files: Mapping[str, str] | None = None) -> Iterator[Path]:
        """A directory of our own for the length of a block, with these files."""
        with tempfile.TemporaryDirectory() as name:
            for file, text in (files or {}).items():
                Path(name, file).write_text(text)
            yield Path(name)

    @staticmethod
    def private_dir(place: Path, prefix: str) -> Path:
        """A directory that only we can enter; it stays until it is removed."""
        return Path(tempfile.mkdtemp(prefix=prefix, dir=place))

    @staticmethod
    @contextmanager
    def readable_by_all() -> Iterator[None]:
        """The service's user must read what root installs, whatever root's umask."""
        before = os.umask(0o022)
        try:
            yield
        finally:
            os.umask(before)

    @staticmethod
    def _sync_dir(directory: Path) -> None:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_fixed(found: os.stat_result) -> bool:
    """Whether we alone can change it, while everybody reads it."""
    return found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o644


def _named(handle: int, new: Path) -> bool:
    """The very file that was opened under one more name, on the same file system."""
    with contextlib.suppress(OSError):
        # Without a directory Python would not follow, and link the entry of /proc itself.
        os.link(f"/proc/self/fd/{handle}", new, src_dir_fd=handle, follow_symlinks=True)
        return True
    return False


def _copy(source: int, new: Path, size: int) -> None:
    """So much at most: it may grow while it is read."""
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while size > 0 and (done := _copy_piece(source, handle, min(size, COPIED))):
            size -= done
    finally:
        os.close(handle)


def _copy_piece(source: int, target: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return os.sendfile(target, source, None, length)
