"""What of this host's configuration a machine needs to reach package indexes the way this host does."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
INHERITED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
SOURCES = ("find-links", "index-url", "extra-index-url")


def inherited_environment() -> dict[str, str]:
    """The environment of every command in a machine: fixed, plus proxies, certificates and pip's variables."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.lower().endswith("_proxy") or name.startswith(("PIP_", "UV_"))
    }
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONPATH": str(REPO),
        "PYTHONDONTWRITEBYTECODE": "1",
        **passed,
    }


def free_port() -> int:
    """One that nobody holds, below the range from which the kernel gives ports to connections that go out.

    A service in a machine that shares this host's network would lose such a one to anybody's connection whenever it is
    down for a moment, and fail its next start with it.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with contextlib.suppress(OSError), socket.create_server(("", random.randrange(10_000, lowest))) as server:
            return int(server.getsockname()[1])


def held_port(address: str = "127.0.0.1") -> tuple[socket.socket, int]:
    """One that nobody else is given for as long as the socket is open, which does not listen, and whoever is to may.

    Who does is refused to nobody; without it another test's socket could come in between, at a restart as well.
    """
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind((address, 0))
    return place, int(place.getsockname()[1])


def in_own_mounts(script: str, *arguments: str | Path) -> list[str]:
    """The command line of a shell script whose mounts nobody else sees."""
    mount_points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # In a plain chroot the root is no mount point, so its propagation cannot be changed.
    private = () if "/" in mount_points else ("--propagation", "unchanged")
    return ["unshare", "--mount", *private, "sh", "-euc", script, "sh", *map(str, arguments)]


@functools.cache
def local_wheel_folders() -> tuple[Path, ...]:
    """Directories that pip is configured to take packages from; a machine gets them bound in at the same paths."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    folders = []
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        if name.rpartition(".")[2] in SOURCES:
            folders += [Path(word.removeprefix("file://")) for word in ast.literal_eval(value).split()]
    return tuple(_mountable(folder) for folder in dict.fromkeys(folders) if folder.is_absolute() and folder.exists())


def _mountable(folder: Path) -> Path:
    """A simple index holds relative links to the files beside it, so the folder above comes along."""
    return folder.parent if folder.name == "simple" else folder
