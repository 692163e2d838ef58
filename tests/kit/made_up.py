"""A host made of files below a directory, to look for facts on."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

from installer.base.host import Host
from installer.base.layout import Layout
from installer.checks import facts
from installer.spec.facts import Facts
from installer.spec.settings import Settings

LAYOUT = Layout("qwen3vl")


class MadeUp:
    def __init__(self, root: Path) -> None:
        self.root = root
        for directory in ("proc", "etc", "usr/bin", "var/cache", "var/lib", "opt"):
            (root / directory).mkdir(parents=True)

    def file(self, path: str, text: str) -> Path:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def command(self, path: str, script: str) -> None:
        self.file(path, f"#!/bin/sh\n{script}\n").chmod(0o755)

    def python(self, path: str, version: str, real: str | None = None, prefix: str = "/usr") -> None:
        short = version.rpartition(".")[0]
        answer = f"{version}\\n{prefix}/include/python{short}\\n{real or path}\\n{prefix}\\n"
        self.command(path, f"printf '{answer}'")

    def process(self, pid: int, *words: str, unit: str = "", inode: int = 0) -> None:
        self.file(f"/proc/{pid}/cmdline", "\0".join(words) + "\0" if words else "")
        self.file(f"/proc/{pid}/comm", "short-name\n")
        self.file(f"/proc/{pid}/cgroup", f"0::{unit}\n")
        handles = self.root / f"proc/{pid}/fd"
        handles.mkdir()
        (handles / "3").symlink_to(f"socket:[{inode}]")

    def listens(self, address: str, port: int, inode: int) -> None:
        ip = ipaddress.ip_address(address)
        words = [ip.packed[i : i + 4] for i in range(0, len(ip.packed), 4)]
        text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
        row = f"   0: {text}:{port:04X} {'0' * len(text)}:0000 0A 0:0 00:0 0 0 0 {inode} 1 0 100 0\n"
        self.file("/proc/net/tcp6" if ip.version == 6 else "/proc/net/tcp", "  sl local rem st\n" + row)

    def gather(self, settings: Settings | None = None) -> Facts:
        return facts.gather(Host(self.root), settings or Settings(), LAYOUT)
