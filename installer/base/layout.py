"""The paths of a service, and those that services share; what only one module touches is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path("/run/vllm-install")
UNITS = Path("/etc/systemd/system")
STATES = Path("/var/lib/vllm-install")  # below it, one directory for each service
SENDER = "vllm-notify"  # with an @ no service can have the name of a unit of it
USAGE = Path("/var/lib/vllm-usage")  # the same; apart from the other, which is root's alone
ADVISORIES = STATES / "advisories.json"  # known flaws, where somebody brought a newer list than ours
MONITOR = Path("/etc/vllm-install/monitor")  # there while Prometheus is to watch the host
FIGURES = Path("/var/lib/prometheus/node-exporter/vllm-install.prom")  # what node-exporter is to say of us


@dataclass(frozen=True)
class Layout:
    """Absolute host paths for one service. `Host` maps them below its root."""

    service: str

    # one service
    @property
    def unit_name(self) -> str:
        return f"{self.service}.service"

    def member_name(self, number: int) -> str:
        """The unit of a replica."""
        return f"{self.service}@{number}.service"

    def door(self, number: int) -> Path:
        """The socket by which the gateway asks a replica: where root alone can put one."""
        return LOCKS / f"{self.service}@{number}.sock"

    @property
    def replicas_drop_ins(self) -> Path:
        """What stands there is for all replicas."""
        return UNITS / f"{self.service}@.service.d"

    def number_of(self, unit_name: str) -> int | None:
        """Of the replica whose unit that is, 0 for the unit that people type; None of a unit that is not the service's.

        Those of other instances are an admin's own, if he made any.
        """
        found = re.fullmatch(rf"{re.escape(self.service)}(?:@([1-9][0-9]?))?\.service", unit_name)
        return int(found[1] or 0) if found else None

    def has_unit(self, unit_name: str) -> bool:
        return self.number_of(unit_name) is not None

    @property
    def unit(self) -> Path:
        return UNITS / self.unit_name

    @property
    def settings_file(self) -> Path:
        return Path("/etc/vllm-install") / f"{self.service}.env"

    @property
    def limits_file(self) -> Path:
        """What each key may use at most; names and numbers only, for the service reads it."""
        return Path("/etc/vllm-install") / f"{self.service}.limits"

    @property
    def usage_dir(self) -> Path:
        """What each key has used: the service's own directory, which systemd makes."""
        return USAGE / self.service

    @property
    def usage_file(self) -> Path:
        return self.usage_dir / "usage"

    @property
    def sysusers(self) -> Path:
        return Path("/etc/sysusers.d") / f"vllm-install-{self.service}.conf"

    @property
    def user(self) -> str:
        return f"vllm-{self.service}"

    @property
    def state_dir(self) -> Path:
        return STATES / self.service

    @property
    def state_file(self) -> Path:
        return self.state_dir / "state.json"

    @property
    def group_file(self) -> Path:
        """The record of the group of hosts that this one serves with."""
        return self.state_dir / "group.json"

    @property
    def before_group(self) -> Path:
        """Record and settings of the service as they were when the change of the group began that is under way."""
        return self.state_dir / "before.json"

    @property
    def group_key(self) -> Path:
        """By which the hosts of one model know each other, where GROUP_KEY_FILE names no other file."""
        return self.state_dir / "group-key"

    @property
    def probe_key(self) -> Path:
        return self.state_dir / "probe-key"

    @property
    def kernels_stamp(self) -> Path:
        """Which kernels were compiled into the cache; not in the cache, where the service could write it."""
        return self.state_dir / "kernels"

    @property
    def ejected_probe_key(self) -> Path:
        """Where the watcher's key lies once the service is let go, and its state directory with it."""
        return Path("/etc") / f"{self.user}.probe-key"

    @property
    def told_file(self) -> Path:
        """What an admin was told of the service, so that nobody is told twice."""
        return self.state_dir / "told.json"

    @property
    def message(self) -> Path:
        """What the unit that sends it is given, and nobody else may read."""
        return LOCKS / f"{self.service}.message"

    @property
    def told_lock(self) -> Path:
        """Held by whoever tells somebody."""
        return LOCKS / f"{self.service}.told"

    @property
    def cache_dir(self) -> Path:
        return Path("/var/cache") / self.service

    @property
    def run_dir(self) -> Path:
        return Path("/run") / self.service

    @property
    def change_lock(self) -> Path:
        """Held by a change of the service from its beginning to its proof, which may take minutes."""
        return LOCKS / f"{self.service}.change"

    @property
    def group_lock(self) -> Path:
        """Held on every host of a group while somebody changes the group, for as long as he can be heard."""
        return LOCKS / f"{self.service}.group"

    @property
    def keys_lock(self) -> Path:
        """Held for a moment by whoever writes the unit or the record: a key can be revoked while a change runs."""
        return LOCKS / f"{self.service}.keys"

    # shared by all services on the host
    @property
    def opt(self) -> Path:
        return Path("/opt/vllm-install")

    @property
    def engines(self) -> Path:
        return self.opt / "engines"

    @property
    def wheel_cache(self) -> Path:
        """uv's cache: beside the engines, because hard links do not cross file systems."""
        return self.opt / "cache"

    @property
    def runtimes(self) -> Path:
        return self.opt / "runtime"

    @property
    def hub(self) -> Path:
        return Path("/var/cache/vllm-install/hub")

    @property
    def builtin_models(self) -> Path:
        return Path("/var/cache/vllm-install/builtin")

    @property
    def shared_lock(self) -> Path:
        """Held while something is changed or claimed that several services use."""
        return LOCKS / "shared"

    @property
    def engines_lock(self) -> Path:
        """Held while an engine is built."""
        return LOCKS / "engines"
