"""How a host is reached: by OpenSSH as it is configured here, with nobody to ask and no host key taken on trust."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from installer.base.errors import InstallError, Refused
from installer.base.host import Completed, Host
from installer.base.language import mark, tr
from installer.runtime.vllm_text import one_line

CONNECTS_WITHIN, ASKED_EVERY, MISSED = 10, 5, 3  # seconds, and answers that are missed until a host is lost
ANSWERS_WITHIN = 30.0
OPTIONS = (
    "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={CONNECTS_WITHIN}",
    "-o", f"ServerAliveInterval={ASKED_EVERY}", "-o", f"ServerAliveCountMax={MISSED}", "-o", "ForwardAgent=no",
    "-o", "ForwardX11=no", "-o", "ClearAllForwardings=yes",
)  # fmt: skip
# What ssh and sudo say, what that means, and the command that helps. In this order: one may follow from another.
SAYINGS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        mark("its host key is another one than before"),
        mark("if it was installed anew: ssh-keygen -R {name}, then ssh {name} and compare the fingerprint"),
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        mark("its host key is not known here"),
        mark("ssh {name} once, and compare the fingerprint that it shows"),
    ),
    (
        r"Permission denied|Too many authentication failures",
        mark("ssh is refused there"),
        mark("ssh-copy-id {name}, as the user who runs this command"),
    ),
    (r"Could not resolve hostname", mark("nobody knows a host of that name"), "getent hosts {name}"),
    (
        r"a password is required|a terminal is required|not in the sudoers|not allowed to",
        mark("sudo wants a password there"),
        mark("reach it as root (User root in ~/.ssh/config), or let the user run sudo without one: NOPASSWD: ALL"),
    ),
    (r"sudo: (command )?not found", mark("it has no sudo"), mark("reach it as root (User root in ~/.ssh/config)")),
    (
        r"Connection (refused|closed|reset)|timed out|No route to host|not responding|Network is unreachable",
        mark("it cannot be reached"),
        "ssh {name} true",
    ),
)  # fmt: skip


class Unreachable(Refused):
    """Nobody answers there, or not to us."""


def command(name: str, *remote: str) -> list[str]:
    """What runs one command there. ssh joins its words for a shell: they are ours, and nothing that was typed."""
    return ["ssh", *OPTIONS, "--", name, *remote]


def environment() -> Mapping[str, str]:
    """The agent of whoever runs us, if he has one."""
    return {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}


def explain(name: str, said: str, fallback: str) -> Unreachable:
    """Why a connection ended, by what ssh and the far side said on their standard error."""
    for pattern, meaning, hint in SAYINGS:
        if re.search(pattern, said, re.IGNORECASE):
            return Unreachable(tr("{what}: {why}", what=name, why=tr(meaning)), tr(hint, name=name))
    last = next((one_line(line) for line in reversed(said.splitlines()) if line.strip()), fallback)
    return Unreachable(tr("{what}: {why}", what=name, why=last), f"ssh {name} true")


def machine_there(name: str, host: Host) -> str:
    """The machine-id of the host that has this name here."""
    try:
        done: Completed = host.run(
            *command(name, "cat /etc/machine-id"), check=False, env=environment(), timeout=ANSWERS_WITHIN
        )
    except InstallError as error:
        raise Unreachable(tr("{what}: {why}", what=name, why=error.message), f"ssh {name} true") from None
    if done.returncode != 0:
        raise explain(name, done.stderr, tr("it did not say who it is"))
    return done.stdout.strip()


def is_here(name: str, host: Host) -> bool:
    """Whether the name leads to this host itself, as ssh is configured; a port of its own may be another's."""
    try:
        told = host.run("ssh", "-G", "--", name, check=False, timeout=ANSWERS_WITHIN).stdout
    except InstallError:
        return False
    words = dict(line.split(" ", 1) for line in told.lower().splitlines() if " " in line)
    if words.get("port") != "22" or words.keys() & {"proxyjump", "proxycommand"}:
        return False
    return _is_ours(words.get("hostname", name))


def _is_ours(address: str) -> bool:
    """Only an address of this host can be bound here."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, protocol, _, place in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
                return True
    return False


def machine_id(host: Host) -> str:
    return host.word(Path("/etc/machine-id"))
