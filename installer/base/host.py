"""The host: where processes are started; with its files and locks the place for side effects, but for a short list."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from installer.base.errors import CommandFailed, InstallError
from installer.base.files import CHUNK, LONGEST
from installer.base.language import tr
from installer.base.locks import Busy, Locks

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a child may inherit beyond the fixed part: how to reach the network, and nothing else.
INHERITED = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "TMPDIR",
)  # fmt: skip

ENDS_WITHIN = 60.0  # seconds that a process which clears up gets for it
DIES_WITHIN = 2.0  # seconds that a killed process gets; below a wedged driver it never ends
ANSWERS_WITHIN = 20.0  # seconds; a wedged GPU driver never answers


@dataclass(frozen=True)
class Completed:
    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Host(Locks):
    """A host seen from its root directory: `/` for real, a temporary tree in tests."""

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
            self._kill(process)
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

    def ask(
        self,
        *argv: str | Path,
        within: float,
        longest: int = LONGEST,
        errors: bool = False,
        lock: Path | None = None,
    ) -> tuple[str, bool]:
        """What a command says in so long, and whether it said all. One that cannot even be killed is left behind.

        With its `errors`, where they are wanted. It holds the lock for as long as it lives: no second one joins it.
        """
        end = time.monotonic() + within
        with self._turn(lock, end) as handle:
            process = subprocess.Popen(
                (*self._leash(), *map(str, argv)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
                env=self.environment({}),
                pass_fds=() if handle is None else (handle,),
            )
        assert process.stdout is not None
        said, is_whole = bytearray(), False
        with process.stdout as out:
            while (
                not is_whole
                and len(said) < longest
                and select.select([out], [], [], max(0.0, end - time.monotonic()))[0]
            ):
                chunk = os.read(out.fileno(), CHUNK)
                said += chunk
                is_whole = not chunk
        self._kill(process)
        return said.decode(errors="replace"), is_whole

    @contextmanager
    def _turn(self, lock: Path | None, end: float) -> Iterator[int | None]:
        """Hold a lock that a process is to inherit; Busy where whoever has it does not give it up in time."""
        if lock is None:
            yield None
            return
        with self._only_for_root(lock) as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise Busy(tr("who asked before has no answer yet")) from None
                    time.sleep(0.05)
                else:
                    break
            yield handle

    @staticmethod
    def _kill(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DIES_WITHIN)

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
    def conversing(self, *argv: str | Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A command that is asked and answers while it runs. It ends with us, and when the block does."""
        process = subprocess.Popen(
            (*self._leash(), *map(str, argv)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(env or {}),
            start_new_session=True,  # a Ctrl-C at the terminal is for us, who tell it
        )
        try:
            yield process
        finally:
            self._kill(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()

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

    @staticmethod
    def free_port() -> int:
        """A port that nobody listens on at this moment."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])
