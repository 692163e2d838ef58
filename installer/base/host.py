"""The host: where processes are started and files changed; a test lists the few modules beside it that do so too."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from installer.base import trees
from installer.base.errors import CommandFailed, InstallError, Refused
from installer.base.language import tr

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a child may inherit beyond the fixed part: how to reach the network, and nothing else.
INHERITED = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "TMPDIR",
)  # fmt: skip

ENDS_WITHIN = 60.0  # seconds that a process which clears up gets for it
ANSWERS_WITHIN = 20.0  # seconds; a wedged GPU driver never answers
CHUNK = 256 * 1024
LONGEST = 64 * 1024 * 1024  # bytes of a file that is read whole
NOTHING = os.makedev(1, 3)  # /dev/null, to which a masked unit is a link


class Busy(Refused):
    """Somebody else holds the lock."""


class Strange(Refused):
    """Something lies in a file's place that we neither read nor wait for."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            tr("{where} is not what it has to be: {reason}", where=path, reason=why),
            tr("move it away: mv {where} {where}.before", where=path),
        )


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and for how many seconds."""

    command: str
    seconds: int


@dataclass(frozen=True)
class Completed:
    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Host:
    """A host seen from its root directory: `/` for real, a temporary tree in tests."""

    root: Path = Path("/")

    def at(self, path: Path) -> Path:
        """The real location of a host path."""
        return path if self.root == Path("/") else self.root / path.relative_to("/")

    # processes

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str | None = None,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command: no shell, closed stdin, fixed locale, explicit environment.

        `on_line` gets the command's stderr line by line while it runs.
        """
        args = tuple(str(a) for a in argv)
        try:
            process = subprocess.Popen(
                (*self._leash(), *args) if shutil.which(args[0], path=PATH) else args,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=cwd,
                env=self.environment(env or {}),
            )
        except FileNotFoundError:
            raise InstallError(tr("{command}: no such command", command=args[0])) from None
        try:
            stdout, stderr = self._communicate(process, args, stdin, timeout, on_line)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if check and process.returncode != 0:
            raise CommandFailed(args, process.returncode, stderr or stdout)
        return Completed(args, process.returncode, stdout, stderr)

    def output(self, command: str, *args: str) -> str:
        """What a command prints, or nothing where it is absent, fails or hangs."""
        found = self.which(command)
        with contextlib.suppress(InstallError):
            done = self.run(self.at(found), *args, check=False, timeout=ANSWERS_WITHIN) if found else None
            return done.stdout if done and done.returncode == 0 else ""
        return ""

    @contextmanager
    def streaming(self, *argv: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """A command whose output is read while it runs; its complaints go to our own stderr. It ends with us."""
        process = subprocess.Popen(
            (*self._leash(), *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self.environment(env or {}),
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @staticmethod
    def _communicate(
        process: subprocess.Popen[str],
        args: tuple[str, ...],
        stdin: str | None,
        timeout: float | None,
        on_line: Callable[[str], None] | None,
    ) -> tuple[str, str]:
        if on_line is None:
            try:
                return process.communicate(stdin, timeout=timeout)
            except subprocess.TimeoutExpired:
                raise InstallError(
                    tr("no answer from {command} within {seconds:g} s", command=args[0], seconds=timeout)
                ) from None
        lines = []
        with tempfile.TemporaryFile("w+") as spool:
            # stdout could fill its pipe while stderr is followed, so a thread drains it into a file.
            assert process.stderr is not None
            assert process.stdout is not None
            drain = threading.Thread(target=shutil.copyfileobj, args=(process.stdout, spool), daemon=True)
            drain.start()
            for line in process.stderr:
                lines.append(line)
                on_line(line.rstrip("\n"))
            process.wait()
            drain.join()
            spool.seek(0)
            return spool.read(), "".join(lines)

    @contextmanager
    def keep(self, *argv: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A process for the length of a block, its output in one pipe.

        The end of its input tells it to end, so our death does as well, and it has time to clear up. It has a session
        of its own: a Ctrl-C at the terminal is for us, and we end it in order.
        """
        process = subprocess.Popen(
            tuple(map(str, argv)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.environment({}),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            too_late = threading.Timer(ENDS_WITHIN, process.kill)
            too_late.start()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            while process.stdout.read(65536):
                pass  # what nobody waits for any more, however long its lines are
            process.wait()
            too_late.cancel()

    def end_marked(self, name: str, value: str) -> None:
        """Kill every process that has this in its environment; one that cannot be killed is given up."""
        began = time.monotonic()
        while marked := [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(name) == value]:
            if time.monotonic() - began > ENDS_WITHIN:
                pids = ", ".join(str(process.pid) for process in marked)
                raise InstallError(tr("these processes cannot be ended: {pids}", pids=pids))
            for process in marked:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)

    @staticmethod
    def _leash() -> tuple[str, ...]:
        """What makes a command end with us, even by SIGKILL: a rerun must not work beside an orphan of ours."""
        return ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv", path=PATH) else ()

    @staticmethod
    def environment(extra: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **inherited, **extra}

    def systemctl(self, *args: str, check: bool = True) -> Completed:
        root = () if self.root == Path("/") else (f"--root={self.root}",)
        return self.run("systemctl", *root, "--no-ask-password", *args, check=check)

    def which(self, command: str) -> Path | None:
        """Where a command lies on this host, as a host path."""
        candidates = (Path(directory) / command for directory in PATH.split(":"))
        return next((path for path in candidates if shutil.which(self.at(path))), None)

    # files

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

    def write(self, path: Path, text: str, mode: int = 0o644) -> None:
        """Replace a file in one step: readers see the old text or the new, also after a power loss."""
        target = self.at(path)
        made = self.make_dir(path.parent)
        # The same name every time: what a killed run left goes with the next one. The lock keeps others out.
        new = target.parent / f".{path.name}.new"
        new.unlink(missing_ok=True)
        try:
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
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

    def write_into(self, directory: Path, name: str, text: str) -> None:
        """Replace a file in a directory of another user's, who gets it. What lay there is never followed."""
        with trees.opened(self.at(directory)) as parent:
            theirs = os.fstat(parent)
            new = f".{name}.{secrets.token_hex(8)}"
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    os.fchown(handle, theirs.st_uid, theirs.st_gid)
                    file.write(text.encode())
                try:
                    os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
                except IsADirectoryError:
                    trees.remove(parent, name)
                    os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                trees.is_unlinked(parent, new)
                raise

    def make_dir(self, path: Path, mode: int = 0o755) -> list[Path]:
        """Create a directory and its parents, independent of the caller's umask; says which were missing."""
        missing = [p for p in (path, *path.parents) if not self.at(p).is_dir()]
        for directory in reversed(missing):
            self.at(directory).mkdir(exist_ok=True)
            self.at(directory).chmod(mode if directory == path else 0o755)
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
    def free_port() -> int:
        """A port that nobody listens on at this moment."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])

    @staticmethod
    def _sync_dir(directory: Path) -> None:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    # one change at a time

    @contextmanager
    def lock(self, path: Path, command: str, busy: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold a lock, or say who does; `busy` is told who, and then it is waited for.

        Whoever can open a file can hold a lock on it for ever, so only root can open this one. Who holds it stands
        beside it, for all to read.
        """
        note = path.with_name(f"{path.name}.now")
        with self._only_for_root(path, command) as handle:
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
    def _only_for_root(self, path: Path, command: str) -> Iterator[int]:
        try:
            self.make_dir(path.parent)
            handle = os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except PermissionError:
            if os.geteuid() == 0:  # on a network file system root is nobody special
                raise
            raise Refused(tr("only root can change what this host serves"), f"sudo {command}") from None
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
