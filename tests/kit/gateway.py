"""The gateway for real, before stand-in replicas in a temporary directory; the test plays systemd around it."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from installer.base.assets import RUNTIME
from installer.base.host import Host
from installer.base.layout import Layout
from installer.spec.settings import Settings
from installer.spec.target import Replica as Placed
from installer.units.gateway import config_file, gateway_config
from tests.kit.boot.surroundings import held_port
from tests.kit.replica import Replica, door_of, replicas_on
from tests.kit.targets import target

LAYOUT = Layout("q")
PROGRAM = RUNTIME / "vllm_gateway.py"
PATIENCE = 180.0
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"  # a HAProxy of another release may come first
HAPROXY = shutil.which("haproxy", path=PATH)


class Gateway:
    """Its directory is a host's root, so that what asks a gateway by its host and layout asks this one."""

    def __init__(self, home: Path, settings: Settings, ports: Sequence[int], others: tuple[str, ...] = ()) -> None:
        self.home, self.host, self.settings, self.others = home, Host(home), settings, others
        self.run_dir = self.host.at(LAYOUT.run_dir)
        self.config = self.host.at(config_file(LAYOUT))
        self.credentials = home / "credentials"
        self.log = home / "journal"
        for folder in (self.run_dir, self.config.parent, self.credentials):
            folder.mkdir(parents=True)
        self.configure(ports)
        self.kept: dict[str, int] = {}  # what systemd keeps
        self.is_ready = threading.Event()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(home / "notify"))
        threading.Thread(target=self._listen, daemon=True).start()
        self._place, self.port = held_port()
        self.drain = 3  # seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.extra: tuple[str, ...] = ()

    def configure(self, ports: Sequence[int], change: Mapping[str, str] | None = None) -> None:
        made = dataclasses.replace(
            target(self.settings),
            replicas=tuple(Placed(number, port) for number, port in enumerate(ports, 1)),
            others=self.others,
        )
        text = gateway_config(made, LAYOUT, RUNTIME).replace(str(LAYOUT.run_dir), str(self.run_dir))
        for number, port in enumerate(ports, 1):
            text = text.replace(str(LAYOUT.door(number)), str(door_of(port)))
        for old, new in (change or {}).items():
            assert old in text
            text = text.replace(old, new)
        self.config.write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": PATH,
            "RUNTIME_DIRECTORY": str(self.run_dir),
            "DRAIN": str(self.drain),
            "CREDENTIALS_DIRECTORY": str(self.credentials),
            "NOTIFY_SOCKET": str(self.home / "notify"),
        }

    def start(self) -> None:
        """As systemd does, with the socket if it keeps one; returns when it says that it is ready."""
        self.is_ready.clear()
        words = ["run", "--host", "127.0.0.1", "--port", str(self.port), *self.extra, str(self.config)]
        hand_in = (
            "import os, sys; kept = int(sys.argv[1]); os.dup2(kept, 3) if kept else None;"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1' if kept else '0', LISTEN_FDNAMES='http');"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        kept = self.kept.get("http", 0)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", hand_in, str(kept), sys.executable, "-EsS", str(PROGRAM), *words],
                env=self.environment, pass_fds=[kept] if kept else [], stdout=log, stderr=log,
            )  # fmt: skip
        if not self.is_ready.wait(PATIENCE):
            raise AssertionError(f"the gateway is not ready\n{self.log.read_text()}")

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def reload(self, certificate: tuple[Path, Path] | None = None) -> subprocess.CompletedProcess[str]:
        assert self.process
        words = ["--certificate", str(certificate[0]), "--key", str(certificate[1])] if certificate else []
        return subprocess.run(
            [sys.executable, "-EsS", str(PROGRAM), "reload", *words, str(self.config)],
            env=self.environment | {"MAINPID": str(self.process.pid)}, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    def children(self) -> list[int]:
        """HAProxy's master, as long as it lives."""
        return [pid for pid, words in self._processes() if b"-W" in words]

    def keepers(self) -> list[int]:
        """The one for large requests."""
        return [pid for pid, words in self._processes() if b"-db" in words]

    def _processes(self) -> Iterator[tuple[int, list[bytes]]]:
        assert self.process
        for thread in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in thread.read_text().split():
                with contextlib.suppress(OSError):
                    yield int(pid), Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            for pid in (*self.children(), *self.keepers()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)  # at once: nobody is waited for
            self.process.kill()
            self.process.wait()
        for descriptor in self.kept.values():
            os.close(descriptor)
        self._notify.close()
        self._place.close()

    def _listen(self) -> None:
        """Take note at once, as systemd does; keep what is to be kept."""
        with contextlib.suppress(OSError):
            while True:
                words, rights, *_ = self._notify.recvmsg(65536, 4096)
                got = array.array("i")
                for _, _, data in rights:
                    got.frombytes(data)
                fields = dict(line.partition("=")[::2] for line in words.decode().splitlines())
                if fields.get("FDSTORE") and got:
                    os.close(self.kept.pop(fields["FDNAME"], -1)) if fields["FDNAME"] in self.kept else None
                    self.kept[fields["FDNAME"]] = got.pop()
                for descriptor in got:
                    os.close(descriptor)
                if fields.get("READY"):
                    self.is_ready.set()

    # Clients

    def ask(
        self, body: object = None, *, path: str = "/v1/completions", headers: Mapping[str, str] | None = None,
        method: str = "POST", tls: ssl.SSLContext | None = None, timeout: float = PATIENCE,
    ) -> Answer:  # fmt: skip
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection("localhost", self.port, timeout=timeout, context=tls)
            if tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        )
        try:
            text = body if isinstance(body, bytes) else json.dumps(body or {"prompt": "x"}).encode()
            connection.request(method, path, text, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {n.lower(): t for n, t in response.getheaders()}, response.read())
        finally:
            connection.close()


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@contextlib.contextmanager
def gateway(settings: Settings, ports: Sequence[int], *, starts: bool = True) -> Iterator[Gateway]:
    """At a short path: a socket's has at most 107 letters."""
    with tempfile.TemporaryDirectory() as home:
        made = Gateway(Path(home), settings, ports)
        try:
            if starts:
                made.start()
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def before(count: int, settings: Settings | None = None) -> Iterator[tuple[Gateway, list[Replica]]]:
    """A gateway before so many replicas."""
    with replicas_on(count) as replicas:
        chosen = settings or Settings(service="q")
        with gateway(chosen, [replica.port for replica in replicas]) as made:
            yield made, replicas
