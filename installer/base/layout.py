"""Every path on the host, as a property of the service; nothing is computed at import time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOCKS = Path("/run/vllm-install")
STATES = Path("/var/lib/vllm-install")  # below it, one directory for each service


@dataclass(frozen=True)
class Layout:
    """Absolute host paths for one service. `Host` maps them below its root."""

    service: str

    # one service
    @property
    def unit_name(self) -> str:
        return f"{self.service}.service"

    @property
    def unit(self) -> Path:
        return Path("/etc/systemd/system") / self.unit_name

    @property
    def settings_file(self) -> Path:
        return Path("/etc/vllm-install") / f"{self.service}.env"

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
    def cache_dir(self) -> Path:
        return Path("/var/cache") / self.service

    @property
    def run_dir(self) -> Path:
        return Path("/run") / self.service

    @property
    def control(self) -> Path:
        """The socket by which a running supervisor hands over to its successor."""
        return self.run_dir / "control"

    @property
    def holding(self) -> Path:
        """How many callers wait; there while the engine does not serve."""
        return self.run_dir / "holding"

    @property
    def change_lock(self) -> Path:
        """Held by a change of the service from its beginning to its proof, which may take minutes."""
        return LOCKS / f"{self.service}.change"

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
