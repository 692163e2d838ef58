"""The host's locks: one change at a time, and for everybody to see whose that is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import Refused
from installer.base.files import Files
from installer.base.language import tr


class Busy(Refused):
    """Somebody else holds the lock."""


def for_root() -> Refused:
    return Refused(tr("only root can change what this host serves"), tr("run the command as root (sudo)"))


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and for how many seconds."""

    command: str
    seconds: int


class Locks(Files):
    @contextmanager
    def lock(self, path: Path, command: str, busy: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold a lock, or say who does; `busy` is told who, and then it is waited for.

        Whoever can open a file can hold a lock on it for ever, so only root can open this one. Who holds it stands
        beside it, for all to read.
        """
        note = path.with_name(f"{path.name}.now")
        with self._only_for_root(path) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self.word(note) or tr("another process")
                if busy is None:
                    raise Busy(
                        tr("another change is under way: {holder}", holder=holder),
                        tr("wait until it ends, then run the command again"),
                    ) from None
                busy(holder)
                fcntl.flock(handle, fcntl.LOCK_EX)
            self._leave_note(note, f"{command} (pid {os.getpid()})\n")
            try:
                yield
            finally:
                self._leave_note(note, "")

    @contextmanager
    def _only_for_root(self, path: Path) -> Iterator[int]:
        try:
            self.make_dir(path.parent)
            handle = os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError:
            if os.geteuid() == 0:  # on a network file system root is nobody special
                raise
            raise for_root() from None
        try:
            yield handle
        finally:
            os.close(handle)

    def _leave_note(self, note: Path, text: str) -> None:
        """For people, so it need not be there: a service that fills /run keeps nobody from revoking its keys."""
        with contextlib.suppress(OSError):
            handle = os.open(self.at(note), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(handle, "w") as file:
                os.fchmod(handle, 0o644)
                file.write(text)

    def lock_holder(self, path: Path) -> Holder | None:
        """Who holds a lock now. It is looked at from beside, as the kernel lists it: to try it is to hold it."""
        note = path.with_name(f"{path.name}.now")
        try:
            found = self.at(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        locks = Path("/proc/locks").read_text().splitlines()
        if not any(device in line.split() for line in locks):
            return None
        try:
            seconds = int(time.time() - self.at(note).stat().st_mtime)
        except FileNotFoundError:
            seconds = 0
        return Holder(self.word(note) or tr("another process"), max(0, seconds))
