"""Starts the launcher in a container, as root: podman has to be told in numbers whom it runs as there. Only stdlib.

launch --api-key KEY… -- serve MODEL …   ExecStart=+    becomes `podman run`, with the options in PODMAN_RUN
reload --api-key KEY…                    ExecReload=+   the keys of what runs there, edited by hand
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_systemd import own_group
else:
    from vllm_systemd import own_group

PODMAN = "/usr/bin/podman"
# Where the image's own users are on this host, whose files nobody has there: but for the service's, who is itself.
FIRST, COUNT = 0x60000000, 0x10000
# What is said of this process, or of this host, and means something else in the container or nothing.
OUTSIDE = (
    "PODMAN_RUN", "PATH", "LANG", "SHELL", "HOME", "NOTIFY_SOCKET", "WATCHDOG_PID",
    "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MAINPID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "LISTEN_PIDFDID", "MANAGERPID", "MANAGERPIDFDID", "FDSTORE", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
)  # fmt: skip


def main(words: list[str], environment: Mapping[str, str]) -> None:
    command = reload(words, environment) if words[:1] == ["reload"] else run(words, environment)
    # Its home is the service's to write, and podman reads what lies in its own.
    os.execve(command[0], command, {**environment, "HOME": "/root"})


def keep_group() -> None:
    """systemd gives a group that is delegated to User=, and podman leaves what is not its own for a scope elsewhere:
    the container would not belong to the unit, whose word systemd does not hear then, and whose stop ends nothing."""
    os.chown(f"/sys/fs/cgroup{own_group()}", 0, 0)


def run(words: list[str], environment: Mapping[str, str]) -> list[str]:
    *options, image = shlex.split(environment["PODMAN_RUN"])
    user = pwd.getpwnam(environment["USER"])
    return [
        PODMAN, "run", f"--user={user.pw_uid}:{user.pw_gid}",
        *mapped("uidmap", user.pw_uid), *mapped("gidmap", user.pw_gid), *options,
        *(f"--env={name}" for name in environment if name not in OUTSIDE),
        f"--env=HOME={environment['HOME']}", f"--env=NOTIFY_SOCKET={environment.get('NOTIFY_SOCKET', '')}",
        "--env=WATCHDOG_PID=1", "--entrypoint=python3", image, launcher(), *words,
    ]  # fmt: skip


def mapped(option: str, number: int) -> Iterator[str]:
    yield f"--{option}={number}:{number}:1"
    for first, count in ((0, number), (number + 1, COUNT - number - 1)):
        yield f"--{option}={first}:{FIRST + first}:{count}"


def reload(words: list[str], environment: Mapping[str, str]) -> list[str]:
    named = [word for word in shlex.split(environment["PODMAN_RUN"]) if word.startswith("--name=")]
    return [PODMAN, "exec", named[-1].partition("=")[2], "python3", launcher(), *words]


def launcher() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "vllm_launcher.py")


if __name__ == "__main__":
    keep_group()
    main(sys.argv[1:], os.environ)
