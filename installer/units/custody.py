"""Whether it is the service itself that listens where a key is about to be sent; anybody can listen on a port."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.spec.facts import Process
from installer.units.processes import SYSTEMD, as_address, handles, listening, of_unit, owner

DYNAMIC = range(61184, 65520)  # uids that systemd gives to units with DynamicUser=, and nobody else


@dataclass(frozen=True)
class Custody:
    """Who may listen: root looks for the unit's processes; others see only whose user's socket it is.

    Who listens is looked at before a connection is opened, and again with it open, before the key is sent: where one
    socket listened at both times, nobody else did in between, and the connection is to it.
    """

    host: Host
    unit: str  # "" for processes of our own user
    user: str = ""  # the unit's

    def sockets(self, address: str, port: int) -> dict[str, int]:
        """inode -> uid of what listens there now."""
        return listening(self.host, as_address(address), port)

    def objection(self, address: str, port: int, before: dict[str, int] | None = None) -> str:
        """Why no key may be sent there; "" where nothing speaks against it."""
        now = self.sockets(address, port)
        if not now:
            return tr("nothing listens on port {port}", port=port)
        if before is not None and before != now:
            return tr("another one listens on port {port} than a moment ago", port=port)
        holder = self._stranger(now)
        if holder is None:
            return ""
        ours = self.unit or tr("this command")
        return tr("port {port} is held by {holder}, not by {unit}", port=port, holder=holder, unit=ours)

    def stranger(self, address: str, port: int) -> Process | None:
        """Who listens there instead of the service; None where it is the service, or nobody."""
        return self._stranger(self.sockets(address, port))

    def _stranger(self, sockets: dict[str, int]) -> Process | None:
        """Given what listens: a look at the kernel's tables takes longer than all the rest."""
        named = {f"socket:[{inode}]": uid for inode, uid in sockets.items()}
        if not self.unit or os.geteuid() != 0:
            wanted = {os.geteuid()} if not self.unit else self._uids()
            strange = {name: uid for name, uid in named.items() if uid not in wanted}
        else:
            held = {handle for pid in of_unit(self.host, self.unit) for handle in handles(self.host, pid)}
            strange = {name: uid for name, uid in named.items() if name not in held and not self._is_kept(name, uid)}
        return owner(self.host, strange) if strange else None

    def _is_kept(self, name: str, uid: int) -> bool:
        """By systemd, while the unit has no process that could hold it: its user made it, and nobody else has it."""
        return uid in self._uids() and owner(self.host, {name: uid}).pid == SYSTEMD

    def _uids(self) -> set[int]:
        """The user's, and the one that systemd made up for a unit such as a gateway, for as long as that runs."""
        lines = [line.split(":") for line in (self.host.read(Path("/etc/passwd")) or "").splitlines()]
        named = {int(line[2]) for line in lines if line[0] == self.user and line[2].isdigit()}
        shown = self.host.output("systemctl", "show", self.unit, "--property=UID", "--value").strip()
        return named | ({int(shown)} if shown.isdecimal() and int(shown) in DYNAMIC else set())
