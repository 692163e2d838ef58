"""Boot, use, reboot, cut off and throw away a machine; everything a test needs to know is in the error it raises."""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests.kit.boot.debian import copy
from tests.kit.boot.surroundings import REPO, inherited_environment, local_wheel_folders

LAUNCH = Path(__file__).with_name("launch")
MACHINES = REPO / "build/machines"
STORE = REPO / "build/opt"
SGLANG_STORE = REPO / "build/opt-sglang"  # of its own, for it has as many files again
PREFIX = "vllm-install"
# What a host has in /etc that programs of /usr rely on; everything else a machine makes itself at its first boot.
ETC = (
    "alternatives", "ca-certificates", "crypto-policies", "groff", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "login.defs", "man_db.conf", "manpath.config", "pip.conf", "pki", "ssl",
)  # fmt: skip
USER_CONFIG = (".config/pip", ".pip", ".config/uv")
TOP_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
POWER_OFF = signal.SIGRTMIN + 4
NETWORK = 0x40000000  # CLONE_NEWNET
# What systemd needs for filters of addresses; without it IPAddressDeny= is shown, and nothing more.
FILTERS = ("--capability=CAP_BPF,CAP_NET_ADMIN,CAP_SYS_ADMIN,CAP_PERFMON", "--system-call-filter=bpf")

PATIENCE = 300.0  # seconds until something that should have happened will not, however busy this host is

_count = itertools.count(1)


class MachineFailed(AssertionError):
    """A command failed in the machine, or the machine itself; shows the command's output, journal and console."""


class Machine:
    """One machine. Use as a context manager: inside, it is booted to multi-user.target; after, nothing is left.

    Its root is a directory on the real disk, so that a reboot finds /etc and /var as they were. The host's /usr and
    this repository are there read-only, at the same paths as outside. `store` gives it what an earlier machine saved
    of /opt/vllm-install (engines and the wheel cache), there or in another place, by hard links, so that it may remove
    them; `network` shares the host's network instead of a loopback interface of its own; `keep` lets it run on when
    this process ends. `system` is an operating system of its own, in the place of the host's /usr and this repository;
    `cli` is then the command that was installed there.
    """

    def __init__(
        self,
        *,
        network: bool = False,
        store: bool | Path = False,
        keep: bool = False,
        binds: Mapping[Path, Path] | None = None,
        nspawn: Sequence[str] = (),
        system: Path | None = None,
    ) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-{next(_count)}"
        self.home = MACHINES / self.name
        self.root = self.home / "root"
        self.console = self.home / "console"
        self.leader = 0
        self._keep = keep
        self._store = STORE if store is True else store
        self._system = system
        self._process: subprocess.Popen[bytes] | None = None
        mounts = _mounts(local_wheel_folders() if system else _outside(), binds or {})
        self._arguments = [*FILTERS, *nspawn, *mounts, *(() if network else ("--private-network",))]

    # life

    def __enter__(self) -> Machine:
        if os.geteuid() != 0:
            raise MachineFailed("booting a machine needs root: run sudo make test (make test-fast needs none)")
        sweep()
        _compile()
        try:
            _copy_system(self._system, self.root) if self._system else _lay_out(self.root)
            if self._store and self._store.exists():
                _link_tree(self._store, self.at("/opt/vllm-install"))
            self.boot()
        except BaseException:
            self._throw_away()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            self._throw_away()

    def boot(self) -> None:
        """Start the machine and return when systemd has started everything."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(f"\0{self.name}")
            with self.console.open("ab") as console:
                self._process = subprocess.Popen(
                    [
                        *(() if self._keep else ("setpriv", "--pdeathsig", "KILL")), LAUNCH, self.name,
                        f"--directory={self.root}", "--console=read-only", *self._arguments,
                    ],
                    stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "NOTIFY_SOCKET": f"@{self.name}", "TERM": "dumb"},
                )  # fmt: skip
            self._wait_ready(self._process, notify)
        self.leader = _first_process(self._process.pid)

    def _wait_ready(self, process: subprocess.Popen[bytes], notify: socket.socket) -> None:
        notify.settimeout(0.2)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
        raise MachineFailed(f"the machine did not boot\n{self.evidence()}")

    def stop(self) -> None:
        """Shut down in order, as `systemctl poweroff` does."""
        self._end(POWER_OFF, PATIENCE)

    def cut_power(self) -> None:
        """End every process at once; what was written is what a crash would leave, less what the kernel still holds."""
        self._end(signal.SIGKILL, PATIENCE)

    def reboot(self) -> None:
        self.stop()
        self.boot()

    def _end(self, with_signal: int, patience: float) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.leader, with_signal)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise MachineFailed(f"the machine did not go down within {patience:g} s\n{self.evidence()}") from None
        finally:
            self._process, self.leader = None, 0

    def _throw_away(self) -> None:
        if self._process is not None:
            self._process.kill() if not self.leader else self._end(signal.SIGKILL, PATIENCE)
        _remove(self.name)

    # use

    def command(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` as root inside, from outside."""
        # Its root by name as well: in a chroot the root of the mount namespace is another directory.
        return ["nsenter", "--target", str(self.leader), "--all", "--root", "--wd", "--", *map(str, argv)]

    def start(self, *argv: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command inside, its output in pipes. It leads a process group: end it with os.killpg."""
        return subprocess.Popen(
            self.command(*argv), env={**inherited_environment(), **(env or {})}, start_new_session=True, text=True,
            errors="replace", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; with `check`, a failure raises with everything there is to see."""
        with self.start(*argv, env=env) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                said = "".join(part.decode(errors="replace") for part in (error.output, error.stderr) if part)
                raise MachineFailed(f"{argv} took more than {timeout:g} s\n{said}\n{self.evidence()}") from None
        if check and process.returncode != 0:
            said = f"{argv} ended with {process.returncode}\n{stdout}\n{stderr}"
            raise MachineFailed(f"{said}\n{self.evidence()}")
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def shell(self, script: str, *, check: bool = True, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        return self.run("sh", "-euc", script, check=check, timeout=timeout)

    def cli(
        self, *args: str, check: bool = True, stdin: str = "", timeout: float = 2 * PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run `vllm-install ARGS` from this checkout."""
        command = ("vllm-install",) if self._system else (sys.executable, "-m", "installer")
        return self.run(*command, *args, check=check, stdin=stdin, timeout=timeout)

    def connect(self, port: int, timeout: float = PATIENCE) -> socket.socket:
        """A connection to a port of the machine, from within; only a thread has to go there for it, and no process."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_connect_within, self.leader, port, timeout).result()

    def at(self, path: str | Path) -> Path:
        """Where a path of the machine lies on this host (not for /usr, /run, /tmp and what is bound in)."""
        return self.root / str(path).lstrip("/")

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)
        self.at(path).chmod(mode)

    def save_store(self) -> None:
        """Keep this machine's engines and wheel cache for later ones, if there is a new engine among them."""
        engines, store = self.at("/opt/vllm-install/engines"), self._store or STORE
        if all((store / "engines" / engine.name).exists() for engine in engines.iterdir()):
            return
        fresh = store.with_name(f"{store.name}.{self.name}")
        _link_tree(self.at("/opt/vllm-install"), fresh)
        shutil.rmtree(store, ignore_errors=True)
        fresh.rename(store)

    def journal(self, *args: str) -> str:
        """The journal, also of a machine that is down."""
        if self.leader:
            subprocess.run(self.command("journalctl", "--sync"), check=False, capture_output=True)
        command = ["journalctl", f"--directory={self.root / 'var/log/journal'}", "--no-pager", "--output=short-precise"]
        return subprocess.run([*command, *args], check=False, capture_output=True, text=True, errors="replace").stdout

    def evidence(self) -> str:
        console = self.console.read_text(errors="replace").splitlines()[-15:]
        journal = self.journal("--lines=80").splitlines()
        return "\n".join(["--- journal", *journal, "--- console", *console])


@functools.cache
def _compile() -> None:
    """What machines run of this repository, which they cannot write: every command would compile all of it anew."""
    for folder in ("installer", "tests/kit"):
        compileall.compile_dir(REPO / folder, quiet=1)


def _outside() -> Iterator[Path]:
    """What a machine has of this host."""
    tops = (path for path in map(Path("/").joinpath, TOP_LINKS) if path.is_dir() and not path.is_symlink())
    outside = [REPO, Path(sys.base_prefix), *local_wheel_folders()]
    yield from dict.fromkeys([Path("/usr"), *tops, *(p for p in outside if not p.is_relative_to("/usr"))])


def _mounts(outside: Iterable[Path], binds: Mapping[Path, Path]) -> Iterator[str]:
    """nspawn's arguments for what lies outside its root; whoever names a bind gets it read-write."""
    for path in outside:
        # Not recursive: this repository holds the roots of machines, with all that is mounted in them.
        yield f"--bind-ro={_escape(path)}:{_escape(path)}:norbind"
    for source, target in binds.items():
        yield f"--bind={_escape(source)}:{_escape(target)}"


def _escape(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:")


def _lay_out(root: Path) -> None:
    """A root directory that systemd takes for an installed system: /usr comes by a mount, /etc is nearly empty."""
    # nspawn looks for os-release before it mounts anything; a persistent journal can be read from outside.
    for directory in ("etc/systemd/system", "root", "opt", "usr/lib", "var/log/journal"):
        (root / directory).mkdir(parents=True)
    shutil.copy("/usr/lib/os-release", root / "usr/lib/os-release")
    for name in TOP_LINKS:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    # With an id it is no first boot: no questions, and no presets that would start this host's own services.
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    _copy(Path("/etc"), ETC, root / "etc")
    _copy(Path.home(), USER_CONFIG, root / "root")


def _copy_system(system: Path, root: Path) -> None:
    """It reaches package indexes as this host does."""
    copy(system, root)
    for directory in ("etc/ssl/certs", "var/log/journal"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    _copy(Path("/etc"), ("pip.conf", "ssl/certs/ca-certificates.crt"), root / "etc")
    _copy(Path("/usr/local/share"), ("ca-certificates",), root / "usr/local/share")  # where its own package looks
    _copy(Path.home(), USER_CONFIG, root / "root")


def _link_tree(source: Path, target: Path) -> None:
    """What is in an engine or a wheel cache is replaced, never written into, so copies may share their files."""
    subprocess.run(["cp", "--archive", "--link", source, target], check=True)


def _copy(source: Path, names: Iterable[str], target: Path) -> None:
    for name in names:
        if (source / name).is_dir():
            skip = shutil.ignore_patterns("private")
            shutil.copytree(source / name, target / name, symlinks=True, ignore=skip, ignore_dangling_symlinks=True)
        elif (source / name).exists():
            shutil.copy(source / name, target / name)


def _connect_within(pid: int, port: int, timeout: float) -> socket.socket:
    with Path(f"/proc/{pid}/ns/net").open() as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"the network of pid {pid} cannot be entered")
    return socket.create_connection(("127.0.0.1", port), timeout)


def _first_process(pid: int) -> int:
    """The machine's PID 1, as this host numbers it: the descendant that is 1 in a PID namespace within nspawn's."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{child.pid}/status").read_text()
            ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(ids) >= 3 and ids[-1] == "1":
                return child.pid
    raise MachineFailed("the machine's first process is not to be found")


def running() -> dict[str, int]:
    """Machine name -> pid of the outermost process that holds it up; also for machines of other processes."""
    found: dict[str, int] = {}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(LAUNCH) not in line[:4] and "systemd-nspawn" not in line[:1] and "unshare" not in line[:1]:
            continue
        for word in line:
            if word.removeprefix("--machine=").startswith(f"{PREFIX}-"):
                found.setdefault(word.removeprefix("--machine="), process.pid)
    return found


def has_owner(name: str) -> bool:
    """Whether the process that started the machine still runs: then the machine is in use, and not ours to end."""
    return psutil.pid_exists(int(name.split("-")[2]))


def sweep() -> None:
    """Remove what machines left behind whose test run was killed."""
    alive = running()
    for home in MACHINES.glob(f"{PREFIX}-*"):
        mine = home.name.startswith(f"{PREFIX}-{os.getpid()}-")
        if home.name not in alive and (mine or not has_owner(home.name)):
            _remove(home.name)


def _remove(name: str) -> None:
    for hierarchy in ("", "unified"):
        top = Path("/sys/fs/cgroup", hierarchy, name)
        for group in [*sorted(top.rglob("*/"), reverse=True), top]:
            with contextlib.suppress(OSError):
                group.rmdir()
    shutil.rmtree(MACHINES / name, ignore_errors=True)
    for leftover in (Path("/run/systemd/nspawn/propagate", name), Path("/run/systemd/nspawn/unix-export", name)):
        with contextlib.suppress(OSError):
            leftover.rmdir()
