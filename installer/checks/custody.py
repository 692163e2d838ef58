"""Whether it is the service itself that listens where a key is about to be sent; anybody can listen on a port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installer.checks.processes import Process, as_address, describe, handles, listening, pids, read
from installer.host import Host
from installer.language import tr


@dataclass(frozen=True)
class Custody:
    """Who may listen: root looks for the unit's processes; others see only whose user's socket it is.

    Asked with the connection open and before the key is sent: whoever listens then has listened since it was made,
    because nobody can take over a port from somebody who listens there.
    """

    host: Host
    unit: str  # "" for processes of our own user
    user: str = ""  # the unit's

    def objection(self, address: str, port: int) -> str:
        """Why no key may be sent there; "" where none speaks against it."""
        if not self._sockets(address, port):
            return tr("nothing listens on port {port}", port=port)
        return self.stranger(address, port)

    def stranger(self, address: str, port: int) -> str:
        """Who listens there instead of the service; "" where it is the service, or nobody."""
        sockets = self._sockets(address, port)
        if not self.unit or os.geteuid() != 0:
            wanted = os.geteuid() if not self.unit else self._uid()
            strange = [inode for inode, uid in sockets.items() if uid != wanted]
        else:
            held = {handle for pid in self._pids() for handle in handles(self.host, pid)}
            strange = [inode for inode in sockets if f"socket:[{inode}]" not in held]
        if not strange:
            return ""
        return tr(
            "port {port} is held by {holder}, not by {unit}",
            port=port,
            holder=self._holder(f"socket:[{strange[0]}]"),
            unit=self.unit or tr("this command"),
        )

    def _sockets(self, address: str, port: int) -> dict[str, int]:
        return listening(self.host, as_address(address.partition("%")[0]), port)

    def _pids(self) -> Iterator[int]:
        """The unit's processes, by the control group that systemd keeps them in."""
        shown = self.host.run("systemctl", "show", self.unit, "--property=ControlGroup", "--value", check=False)
        group = shown.stdout.strip()
        for pid in pids(self.host) if group else ():
            places = [line.split(":", 2)[-1] for line in read(self.host, pid, "cgroup").splitlines()]
            if any(place == group or place.startswith(f"{group}/") for place in places):
                yield pid

    def _uid(self) -> int:
        """-1, which nobody has, where there is no such user."""
        lines = [line.split(":") for line in (self.host.read(Path("/etc/passwd")) or "").splitlines()]
        return next((int(line[2]) for line in lines if line[0] == self.user and line[2].isdigit()), -1)

    def _holder(self, handle: str) -> Process:
        found = (pid for pid in pids(self.host) if handle in handles(self.host, pid))
        pid = next(found, None)
        return describe(self.host, pid) if pid else Process(0, "unknown")
