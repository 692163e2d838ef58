"""The launcher for real, around the stand-in for vLLM; the test plays systemd: its notify socket and its store."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from installer.base.assets import RUNTIME
from tests.kit.boot.surroundings import REPO, held_port

LAUNCHER = RUNTIME / "vllm_launcher.py"
PROBE, USER = "sk-probe-0123456789abcdef", "sk-user-0123456789abcdef"
PATIENCE = 180.0
ONLY_AT_START = ("CREDENTIALS_DIRECTORY", "WATCHDOG_USEC")
# Puts what systemd has kept where systemd would put it, for the very process that the command becomes.
HAND_IN = (
    sys.executable, "-c",
    "import os, sys\n"
    "[os.dup2(int(number), at, False) for at, number in enumerate(os.environ.pop('STORED').split(), 103)]\n"
    "os.closerange(3, 100)\n"
    "[os.dup2(at + 100, at) for at in range(3, 3 + int(os.environ['LISTEN_FDS']))]\n"
    "os.environ['LISTEN_PID'] = str(os.getpid())\n"
    "os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class Service:
    """What the unit sets up around the launcher, and what systemd hears of it."""

    def __init__(self, home: Path) -> None:
        self.home, self.run, self.credentials = home, home / "run", home / "credentials"
        for folder in (self.run, self.credentials, home / "site/vllm-0.32.0.dist-info"):
            folder.mkdir(parents=True)
        (home / "site/vllm-0.32.0.dist-info/METADATA").write_text(
            "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n"
        )
        (self.credentials / "probe-key").write_text(PROBE + "\n")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(home / "notify"))
        self.messages: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        self.place, self.port = held_port()
        self.environment = {
            "PATH": f"{home}/bin:/usr/bin:/bin",
            "HOME": str(home),
            "PYTHONPATH": f"{home}/site:{REPO}/tests/kit/standin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUNTIME_DIRECTORY": str(self.run),
            "CREDENTIALS_DIRECTORY": str(self.credentials),
            "NOTIFY_SOCKET": str(home / "notify"),
            "WATCHDOG_USEC": "8000000",
        }
        self.heard: list[str] = []
        self.store: dict[str, list[int]] = {}  # what systemd keeps, by name
        self.process: subprocess.Popen[str] | None = None
        self.log = home / "journal"
        self.substate("running")

    def substate(self, state: str, job: str = "", limits: str = "") -> None:
        """What systemctl says: `show --property=SubState --value`, list-jobs, and show of the limits of a restart."""
        (self.home / "bin").mkdir(exist_ok=True)
        fake = self.home / "bin/new"
        fake.write_text(f"""#!/bin/sh
[ -z "$NOTIFY_SOCKET" ] || exit 1
case "$*" in
list-jobs*) echo "{job}";;
*Restart*) echo "{limits}";;
*) echo "{state}";;
esac
""")
        fake.chmod(0o755)
        fake.replace(self.home / "bin/systemctl")

    def faults(self, words: str) -> None:
        (self.home / "standin").write_text(words)

    def command(self, verb: str, *keys: str, serve: tuple[str, ...] | None = None) -> list[str]:
        rest = (
            serve if serve is not None else ("serve", "/models/tiny", "--host", "127.0.0.1", "--port", str(self.port))
        )
        words = [word for key in keys for word in ("--api-key", key)]
        return [sys.executable, str(LAUNCHER), verb, *words, *(("--", *rest) if rest else ())]

    def start(
        self, *keys: str, serve: tuple[str, ...] | None = None, within: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            command = [*within, *self.command("launch", *(keys or (digest(USER),)), serve=serve)]
            self.process = subprocess.Popen(
                [*HAND_IN, *command], env=self.environment | self.stored(), stdout=log, stderr=log, text=True,
                pass_fds=[each for kept in self.store.values() for each in kept],
            )  # fmt: skip
        return self.process

    def stored(self) -> dict[str, str]:
        names = [(name, number) for name, kept in self.store.items() for number in kept]
        return {
            "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(name for name, _ in names),
            "STORED": " ".join(str(number) for _, number in names),
        }  # fmt: skip

    def restart(self) -> subprocess.Popen[str]:
        """As systemd does after the main process has ended: it kills the rest, and hands in what it has kept."""
        self.kill()
        return self.start()

    def running_keys(self) -> str:
        """The key file as `launch` leaves it."""
        text = f"probe inference {digest(PROBE)[7:]} -\ndefault inference {digest(USER)[7:]} -\n"
        (self.run / "keys").write_text(text)
        return text

    def once(self, verb: str, *keys: str, serve: tuple[str, ...] | None = ()) -> subprocess.CompletedProcess[str]:
        command = self.command(verb, *keys, serve=serve)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)

    def reload(self, *more: str, keys: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """As ExecReload= with `more` words for vLLM: without credentials, and without what systemd has kept."""
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        command = self.command("reload", *(keys or (digest(USER),)), serve=("serve", "/models/tiny", *address, *more))
        mine = {name: value for name, value in self.environment.items() if name not in ONLY_AT_START}
        with self.log.open("a") as log:
            return subprocess.Popen(command, env=mine, stdout=log, stderr=log, text=True)

    def listen(self) -> None:
        """Read at once, as systemd does: whoever sent a barrier waits for it."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 8192, 8)
            if not data:
                return
            self.take_note(data.decode(), list(descriptors))
            self.messages.put(data.decode())

    def take_note(self, message: str, descriptors: list[int]) -> None:
        name = message.partition("FDNAME=")[2].partition("\n")[0]
        gone = descriptors
        if "FDSTORE=1" in message:
            known = {os.fstat(number).st_ino for number in self.store.get(name, [])}
            gone = [number for number in descriptors if os.fstat(number).st_ino in known]
            self.store.setdefault(name, []).extend(set(descriptors) - set(gone))
        elif "FDSTOREREMOVE=1" in message:
            gone = self.store.pop(name, [])
        for number in gone:
            os.close(number)

    def hear(self, wanted: str) -> str:
        """The next message that holds `wanted`; everything up to it is kept in `heard`."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.heard.append(self.messages.get(timeout=max(0, end - time.monotonic())))
            except queue.Empty:
                heard, journal = "\n".join(self.heard), self.log.read_text()
                raise AssertionError(f"{wanted!r} was not heard, but:\n{heard}\njournal:\n{journal}") from None
            if wanted in self.heard[-1]:
                return self.heard[-1]

    def status(self, path: str, key: str | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        status = connection.getresponse().status
        connection.close()
        return status

    def ours(self) -> list[int]:
        """Every process of this service; each carries its environment."""
        mark = f"RUNTIME_DIRECTORY={self.run}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def pids(self, words: str) -> list[int]:
        found = []
        for pid in self.ours():
            with suppress(OSError):
                found += [pid] if words in arguments(pid) else []
        return found

    def named(self, words: str) -> int:
        """A process that is about to become a command has the words of who starts it, for a moment."""
        wait_until(lambda: len(self.pids(words)) == 1)
        return self.pids(words)[0]

    def serving(self) -> set[int]:
        """Supervisor, watcher, vLLM and its engine, and nobody else any more: a watcher asks systemctl now and then."""
        wait_until(lambda: len(self.ours()) == 4)
        return set(self.ours())

    def vllm(self) -> int:
        return self.named("vllm_listen.py")

    def end(self) -> None:
        self.kill()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.home / "notify"))
        for number in [each for kept in self.store.values() for each in kept]:
            os.close(number)
        self.place.close()

    def kill(self) -> None:
        """As systemd does: whatever is left of the unit is killed."""
        while pids := self.ours():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process:
                self.process.wait()


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
