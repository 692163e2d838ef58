"""What systemd says about a unit, and what shows on the host that it knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from installer.base.host import Host
from installer.spec.vendors import VARIABLES
from installer.units.graph import Member
from installer.units.keyring import live_keys
from installer.units.render import DIGEST_VARIABLE


@dataclass(frozen=True)
class MainProcess:
    pid: int
    digest: str
    keys: frozenset[tuple[str, str]]
    is_up: bool
    gpus: frozenset[str] = frozenset()  # those it was given by uuid
    is_gateway: bool = False
    has_door: bool = False  # for a gateway: one that an earlier version started has none


def running_process(host: Host, member: Member) -> MainProcess | None:
    """The unit's main process, as long as it is up or coming up."""
    shown = unit_properties(host, member.name, "MainPID", "ActiveState")
    pid = int(shown.get("MainPID") or 0)
    if not pid or shown["ActiveState"] not in ("active", "reloading", "activating"):
        return None
    environment = host.read(Path(f"/proc/{pid}/environ")) or ""
    variables = dict(pair.partition("=")[::2] for pair in environment.split("\0"))
    return MainProcess(
        pid, variables.get(DIGEST_VARIABLE, ""), live_keys(host, member.run_dir), shown["ActiveState"] != "activating",
        frozenset(uuid for name in VARIABLES for uuid in variables.get(name, "").split(",") if uuid),
        is_gateway="VLLM_CACHE_ROOT" not in variables, has_door="DOOR" in variables,
    )  # fmt: skip


def hands_over(host: Host, member: Member) -> bool:
    """Whether the running process would make way for a successor when the unit is reloaded.

    One that an earlier version of this tool started would not, and an admin may have put another ExecReload= there.
    """
    shown = unit_properties(host, member.name, "ExecReload").get("ExecReload", "")  # of several the last
    sockets = (member.control, *([member.layout.door(member.number)] if member.number else []))
    return "/vllm_launcher.py reload " in shown and all(map(host.is_socket, sockets))


def unit_properties(host: Host, unit: str, *names: str) -> dict[str, str]:
    if host.root != Path("/"):
        return {}
    shown = host.run("systemctl", "show", unit, "--property", ",".join(names), check=False).stdout
    return dict(line.partition("=")[::2] for line in shown.splitlines())


def has_user(host: Host, name: str) -> bool:
    return any(line.startswith(f"{name}:") for line in (host.read(Path("/etc/passwd")) or "").splitlines())
