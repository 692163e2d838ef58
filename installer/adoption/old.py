"""A hand-written vLLM deployment as it was found: what runs, with which variables, where. Nothing of it is executed."""

from __future__ import annotations

import os
import pwd
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.spec.keys import Key

LARGEST = 1024 * 1024  # bytes; no unit, script or compose file that a person wrote is longer
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")


@dataclass(frozen=True)
class Old:
    """The words after `vllm serve`, and what they mean something in."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = Path("/")
    home: str = "/root"  # of whom it ran as
    unit: str | None = None  # an installed unit that is to stand back
    files: tuple[Path, ...] = ()  # of that unit: its own file first, then its drop-ins
    texts: tuple[str, ...] = ()  # of everything that was read: where secrets may stand
    shown: str = ""  # what the difference starts from
    # A container sees other paths and ports than the host does.
    mounts: tuple[tuple[str, str], ...] = ()  # (path inside, path on the host)
    listens: tuple[str, int] | None = None
    notes: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()  # of a unit that vllm-install let go: known by their digests
    is_ejected: bool = False
    has_secret: bool = False  # it is given a secret that we do not read, probably its key

    def on_host(self, path: str) -> str:
        """Where a path that vLLM was given lies on this host."""
        for inside, outside in self.mounts:
            if path == inside or path.startswith(f"{inside}/"):
                return os.path.normpath(outside + path[len(inside) :])
        return os.path.normpath(self.directory / path)


def read_text(path: Path, host: Host) -> str:
    """A text file of a sensible size; a FIFO would block, a device never end."""
    try:
        handle = os.open(host.at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(
            tr("{path} does not exist, and is no unit that systemd knows", path=path),
            tr("name a systemd unit, a script, a compose file, or - for stdin"),
        ) from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        is_directory = stat.S_ISDIR(about.st_mode)
        what = tr("{path} is a directory", path=path) if is_directory else tr("{path} is not a regular file", path=path)
        raise Refused(what, tr("name the file itself"))
    with os.fdopen(handle, "rb") as file:
        content = file.read(LARGEST + 1)
    return as_text(content, str(path))


def home(user: str = "") -> str:
    """Of that user, or else of who runs this command, with sudo or without."""
    try:
        return pwd.getpwnam(user or os.environ.get("SUDO_USER", "") or "root").pw_dir
    except KeyError:
        return "/root"


def read_stdin() -> str:
    return as_text(sys.stdin.buffer.read(LARGEST + 1), tr("standard input"))


def as_text(content: bytes, name: str) -> str:
    if len(content) > LARGEST:
        raise Refused(
            tr("{name} is larger than 1 MiB, so it is no unit, script or compose file", name=name),
            tr("name the right file"),
        )
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if re.search(r"[\0-\x08\x0e-\x1f\x7f]", text):
        raise Refused(tr("{name} is not text", name=name), tr("name a systemd unit, a script or a compose file"))
    return text.replace("\r\n", "\n")


def serve_words(words: Sequence[str]) -> tuple[str, ...] | None:
    """What follows `vllm serve` in a command, or its older name; None where it is another command."""
    for position, word in enumerate(words):
        following = tuple(words[position + 1 :])
        if os.path.basename(word) == "vllm" and following[:1] == ("serve",):  # noqa: PTH119 it may be no path at all
            return following[1:]
        if word == "-m" and following[:1] and following[0] in _MODULES:
            rest = following[1:]
            return rest[1:] if following[0] == _MODULES[1] and rest[:1] == ("serve",) else rest
    return None
