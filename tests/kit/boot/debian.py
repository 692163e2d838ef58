"""A Debian with nothing on it but what makes it boot, and what is asked for; made once, kept in build/debian."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.kit.boot.surroundings import REPO, in_own_mounts

WITHIN = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    sh -euc "$2"
"""


def debian(suite: str, *packages: str) -> Path:
    """The root directory of that release, for copies of it."""
    root = REPO / "build/debian" / "-".join((suite, *packages))
    if not root.exists():
        part = root.with_name(f"{root.name}.part")
        subprocess.run(["rm", "-rf", part], check=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        made = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(('systemd', *packages))}"]
        subprocess.run([*made, suite, str(part)], check=True, stdin=subprocess.DEVNULL)
        part.rename(root)
    return root


def copy(system: Path, root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", system, root], check=True)


def run_in(root: Path, script: str) -> str:
    """What a script says in a system that is not booted, but reaches the network as this host does."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    command = in_own_mounts(WITHIN, root, script)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
