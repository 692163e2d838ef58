"""What podman is told when a unit starts: whom it runs as, and nothing of the host that is not meant for it."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

from installer.runtime import vllm_container
from tests.kit.boot.surroundings import REPO

LAUNCHER = REPO / "installer/runtime/vllm_launcher.py"
USER = pwd.getpwuid(os.getuid())
UNIT = {
    "PODMAN_RUN": "--name=q --read-only '--volume=/a b:/a b' sha256:12", "USER": USER.pw_name, "PATH": "/bin",
    "HOME": "/var/cache/q", "NOTIFY_SOCKET": "/run/systemd/notify", "HOLD": "3", "LISTEN_FDS": "1",
    "INVOCATION_ID": "1",
}  # fmt: skip


def test_a_start_is_podmans_with_the_launcher_inside() -> None:
    words = vllm_container.run(["launch", "--api-key", "sha256:1", "--", "serve", "/m"], UNIT)
    assert words[:3] == ["/usr/bin/podman", "run", f"--user={USER.pw_uid}:{USER.pw_gid}"]
    inside = ["sha256:12", str(LAUNCHER), "launch", "--api-key", "sha256:1", "--", "serve", "/m"]
    assert words[words.index("--entrypoint=python3") + 1 :] == inside
    assert {"--name=q", "--read-only", "--volume=/a b:/a b"} <= set(words)
    passed = {word.removeprefix("--env=") for word in words if word.startswith("--env=")}
    assert passed == {"USER", "HOLD", "HOME=/var/cache/q", "NOTIFY_SOCKET=/run/systemd/notify", "WATCHDOG_PID=1"}


def test_every_user_of_the_image_but_one_is_nobody_on_the_host() -> None:
    found = {}
    for word in vllm_container.mapped("uidmap", 990):
        first, outside, count = map(int, word.removeprefix("--uidmap=").split(":"))
        found |= {first + n: outside + n for n in range(count)}
    assert found.pop(990) == 990
    assert sorted(found) == [*range(990), *range(991, 65536)]
    assert all(outside == vllm_container.FIRST + inside for inside, outside in found.items())


def test_a_reload_tells_the_one_that_runs() -> None:
    words = vllm_container.reload(["reload", "--api-key", "sha256:1"], UNIT)
    assert words == ["/usr/bin/podman", "exec", "q", "python3", str(LAUNCHER), "reload", "--api-key", "sha256:1"]


def test_podman_reads_nothing_from_a_home_that_the_service_writes(tmp_path: Path) -> None:
    shown = tmp_path / "podman"
    shown.write_text('#!/bin/sh\necho "$HOME $HOLD"\n')
    shown.chmod(shown.stat().st_mode | stat.S_IXUSR)
    script = f"from installer.runtime import vllm_container as c; c.PODMAN = {str(shown)!r}; c.main([], c.os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=UNIT, cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout == "/root 3\n"
