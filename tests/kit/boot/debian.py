"""A newer Debian than this host may be, for what only that one has: its /usr in a machine, in place of this host's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.kit.boot.machine import MachineFailed
from tests.kit.boot.surroundings import REPO

SUITE = "trixie"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "podman", "crun", "ca-certificates")
# What podman needs beyond a machine's usual rights: a fuse device is looked for, keyrings and BPF are used.
NSPAWN = ("--capability=all", "--system-call-filter=@keyring bpf", "--bind=/dev/fuse")


def debian13() -> Path:
    """Its root, made once and kept."""
    root = REPO / "build/debian13"
    if root.exists():
        return root
    fresh = root.with_name(f"{root.name}.{os.getpid()}")
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(fresh)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        raise MachineFailed(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr}")
    fresh.rename(root)
    return root
