"""Runs vLLM as a systemd service; stdlib only, because it runs on the engine's Python and imports nothing of ours.

    launch --api-key KEY… -- serve MODEL …   ExecStart=      write the key digests, start the watcher, become vLLM
    reload --api-key KEY…                    ExecReload=     replace the key digests of the running service
    check -- serve MODEL …                   ExecStartPre=+  name whoever holds the port or the GPU's memory

launch leaves three parts behind: vLLM as the unit's main process, the guard inside it, and the watcher beside it. It
listens on the port before any of them runs, and hands them the socket (vllm_listen.py).
"""

from __future__ import annotations

import calendar
import contextlib
import glob
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

sys.dont_write_bytecode = True  # `check` runs as root, and nobody would remove what it leaves here

if TYPE_CHECKING:
    from installer.runtime import vllm_flags
    from installer.runtime.vllm_listen import LISTENER
    from installer.runtime.vllm_watcher import BACKLOG, PROBE, command_of, notify, say
else:
    import vllm_flags
    from vllm_listen import LISTENER
    from vllm_watcher import BACKLOG, PROBE, command_of, notify, say

BAD_CONFIGURATION = 78  # with RestartPreventExitStatus=: trying again would change nothing
BUSY = 75  # somebody else has the port; it may be free at the next try
KEY = re.compile(
    r"(?:(?P<name>[a-z0-9_-]+)(?::(?P<role>metrics|inference|admin))?=)?"
    r"(?:sha256:(?P<digest>[0-9a-fA-F]{64})|(?P<plain>(?!sha256:)[!-9;-?A-~]{16,}))"
    r"(?:@(?P<expiry>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?"
)
KEY_FORM = "expected [NAME[:metrics|:inference|:admin]=]sha256:64-HEX-DIGITS[@2026-11-21T12:00:00Z], or the key itself"

# Secrets, and what would let vLLM speak to systemd in the watcher's place.
KEPT_FROM_VLLM = ("VLLM_API_KEY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY")


class Refused(Exception):
    def __init__(self, message: str, status: int = BAD_CONFIGURATION) -> None:
        super().__init__(message)
        self.status = status


# Keys


class Key(NamedTuple):
    name: str
    role: str
    digest: str
    expiry: str

    @property
    def argument(self) -> str:
        return f"{self.name}:{self.role}=sha256:{self.digest}" + (f"@{self.expiry}" if self.expiry != "-" else "")


def parse_key(text: str, position: int) -> Key:
    """Never quotes what it was given: that may be a key with a slip in it."""
    match = KEY.fullmatch(text)
    if not match:
        raise Refused(f"--api-key number {position} is malformed: {KEY_FORM}")
    expiry = match["expiry"] or "-"
    if expiry != "-":
        try:
            calendar.timegm(time.strptime(expiry, "%Y-%m-%dT%H:%M:%SZ"))
        except ValueError:
            raise Refused(f"--api-key number {position} expires on a day that does not exist: {expiry}") from None
    digest = match["digest"] or hashlib.sha256(match["plain"].encode()).hexdigest()
    return Key(match["name"] or "default", match["role"] or "inference", digest.lower(), expiry)


def read_keys(verb: str, words: list[str]) -> tuple[list[Key], list[str]]:
    """The keys and what follows them; a key in clear is hashed, and gone from our arguments before anything else."""
    try:
        texts, strays, serve = vllm_flags.split(words)
        if strays:
            raise Refused(f"argument {strays[0]} before the -- is not --api-key")
        keys = [parse_key(text, number) for number, text in enumerate(texts, 1)]
    except Refused as refused:
        # The journal stores the arguments of whoever writes to it, and these may hold a key.
        become(["refuse", str(refused)])
    if any("sha256:" not in text for text in texts):
        hashed = [word for key in keys for word in ("--api-key", key.argument)]
        become([verb, *hashed, "--", *serve])
    if not any(key.role != "metrics" for key in keys):
        raise Refused("no inference key among the --api-key arguments: a server that nobody may ask is a mistake")
    return keys, serve


def become(arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), *arguments])


def runtime_directory() -> str:
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not directory:
        raise Refused("RUNTIME_DIRECTORY is not set: the unit needs RuntimeDirectory=")
    return directory


def probe_digest() -> str:
    """Of the key that the watcher asks with; systemd before 247 knows no credentials, and then there is none."""
    try:
        with open(os.path.join(os.environ["CREDENTIALS_DIRECTORY"], "probe-key")) as file:
            return hashlib.sha256(file.read().strip().encode()).hexdigest()
    except (KeyError, OSError):
        raise Refused("no probe key: the unit needs LoadCredential=probe-key:PATH (systemd 247 or newer)") from None


def digest_in_force() -> str:
    """Of the same key, from the running service: systemd gives ExecReload= no credentials (252)."""
    path = os.path.join(runtime_directory(), "keys")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.readline(4096).split()[2].decode("ascii")
    except (OSError, IndexError, ValueError):
        raise Refused("the service does not run: there are no keys to replace") from None


def write_keys(keys: list[Key], probe: str) -> None:
    lines = [
        f"{key.name} {key.role} {key.digest} {key.expiry}\n" for key in (Key("probe", "inference", probe, "-"), *keys)
    ]
    write(os.path.join(runtime_directory(), "keys"), "".join(dict.fromkeys(lines)))


def write(path: str, text: str) -> None:
    """In one step: the guard sees the old file or the new one, and a full /run leaves the old one."""
    new = f"{path}.{os.getpid()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def reload(words: list[str]) -> None:
    keys, _ = read_keys("reload", words)
    write_keys(keys, digest_in_force())
    time.sleep(0.1)  # the guard looks every 0.05 s; `systemctl reload` returns when the new keys are in force


# Becoming vLLM


def launch(words: list[str]) -> NoReturn:
    keys, serve = read_keys("launch", words)
    check_command(serve)
    write_keys(keys, probe_digest())
    flags = vllm_flags.given(serve)
    host, port = address(flags)
    listener = listen(host, port).detach()
    here, runtime = os.path.dirname(os.path.abspath(__file__)), runtime_directory()
    environment = {name: value for name, value in os.environ.items() if name not in KEPT_FROM_VLLM}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    environment["VLLM_USE_RUST_FRONTEND"] = "0"
    # Its engine dead, vLLM would exit 0, as if asked to. So it stays, and the watcher ends it by a signal.
    environment["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"
    write(os.path.join(runtime, "stages"), "")
    if flags.keys().isdisjoint(("--log-config-file", "--logging-config")):
        environment.setdefault("VLLM_LOGGING_CONFIG_PATH", os.path.join(runtime, "logging.json"))
        write(os.path.join(runtime, "logging.json"), json.dumps(log_configuration(runtime, flags)))
    if "--allowed-media-domains" not in flags:
        # An empty list would let anyone have this host fetch any address; the name is one that never exists.
        serve = [*serve, "--allowed-media-domains", "none.invalid"]
    # Not -I, which would keep it from the file beside it.
    watcher = [sys.executable, "-EsS", os.path.join(here, "vllm_watcher.py"), str(os.getpid()), host, str(listener)]
    subprocess.run(watcher, stdin=subprocess.DEVNULL, check=True, pass_fds=[listener])
    os.set_inheritable(listener, True)
    environment[LISTENER] = str(listener)
    # -P: a folder named vllm in the working directory must not take vLLM's place.
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    command = [
        sys.executable, *safe, os.path.join(here, "vllm_listen.py"), *serve, "--middleware", "vllm_guard.Guard",
    ]  # fmt: skip
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # what was ignored would stay so, and by these a start is ended
    os.execve(sys.executable, command, environment)


def check_command(serve: list[str]) -> None:
    if serve[:1] != ["serve"]:
        raise Refused("expected `-- serve MODEL` after the keys")
    if found := vllm_flags.refused(serve):
        raise Refused(f"{found[0]} cannot be used: {found[1]}")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise Refused("VLLM_USE_RUST_FRONTEND is set: vLLM's Rust front end takes no guard, so it is refused")


def address(flags: Mapping[str, str]) -> tuple[str, int]:
    port = flags.get("--port", "8000")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise Refused(f"--port {port} is not a port")
    return flags.get("--host", "0.0.0.0"), int(port)


def log_configuration(runtime: str, flags: Mapping[str, str]) -> dict[str, object]:
    """vLLM's and uvicorn's usual logs; besides, the stages go into a file and the probes nowhere."""
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO")
    quiet = flags.get("--disable-access-log-for-endpoints", "").split(",")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {"()": "vllm_guard.vllm_formatter"},
            "uvicorn": {"format": "%(levelname)s:     %(message)s"},
        },
        "filters": {"quiet": {"()": "vllm_guard.QuietAccess", "paths": [PROBE, "/health", "/metrics", *quiet]}},
        "handlers": {
            "vllm": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "vllm"},
            "uvicorn": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "uvicorn"},
            "stages": {"()": "vllm_guard.Stages", "path": os.path.join(runtime, "stages")},
        },
        "loggers": {
            "vllm": {"handlers": ["vllm", "stages"], "level": level, "propagate": False},
            "uvicorn": {"handlers": ["uvicorn", "stages"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"filters": ["quiet"], "level": "INFO"},
        },
    }


# Custody of port and GPU


def check(words: list[str]) -> None:
    """As root, before the sandbox: it can name processes that the service itself cannot see."""
    listen(*address(vllm_flags.given(vllm_flags.split(words)[2]))).close()
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory,gpu_uuid", "--format=csv,noheader"]
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20).stdout
        for pid, memory, uuid in re.findall(r"(\d+), (.+), (\S+)", shown):
            # Only what is named by uuid can be told apart: a number counts among those that CUDA shows.
            if uuid in own or not all(name.startswith("GPU-") for name in own):
                say(f"GPU memory is held by pid {pid} ({command_of(int(pid))}): {memory}", 5)


def listen(host: str, port: int) -> socket.socket:
    """From now on nobody else can, neither here nor on one of the addresses that this one covers; or who does."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except PermissionError:
        raise Refused(f"port {port} is not open to this user: take one above 1023") from None
    except OSError as error:
        held = f"port {port} is held by {holder(port)}"
        why = held if error.errno == 98 else f"cannot listen on {host} port {port}: {error.strerror}"
        raise Refused(why, BUSY) from None
    return listener


def holder(port: int) -> str:
    """Who listens there, or has a connection that goes out from there: the kernel takes the upper numbers for those."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            rows = (line.split() for line in file)
            inodes |= {row[9] for row in rows if row[1].endswith(f":{port:04X}")} - {"0"}
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link)[8:-1] in inodes:
                pid = int(link.split("/")[2])
                return f"pid {pid} ({command_of(pid)})"
    return f"another user's process (to see it, as root: ss -atnp 'sport = :{port}')"


def refuse(words: list[str]) -> None:
    raise Refused(" ".join(words))


def main(words: list[str]) -> int:
    verbs = {"launch": launch, "reload": reload, "check": check, "refuse": refuse}
    try:
        if not words or words[0] not in verbs:
            raise Refused(f"expected one of {', '.join(verbs)}")
        verbs[words[0]](words[1:])
    except Refused as refused:
        say(str(refused), 3)
        notify(f"STATUS=refused: {refused}")
        return refused.status
    except OSError as error:
        say(f"cannot {words[0]}: {error}", 3)
        notify(f"STATUS=cannot {words[0]}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
