"""What doctor and status look at: one service on this host, looked up once, and each replica of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.locks import Holder
from installer.checks import facts, preflight
from installer.checks.tenants import with_tenants
from installer.runtime.vllm_group import WAITING
from installer.runtime.vllm_member import BROKEN, ENDED, STARTING
from installer.spec import settings_file
from installer.spec.asked import load_settings
from installer.spec.facts import Facts
from installer.spec.problem import Problem
from installer.spec.records import load_state, managed, readable_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.units import haproxy, journal
from installer.units.api import Api, local_address
from installer.units.custody import Custody
from installer.units.gateway import certificate_of
from installer.units.graph import Member, handle, members
from installer.units.group import Standing, standing
from installer.units.haproxy import GatewayState
from installer.units.holding import Holding, holding
from installer.units.syntax import exec_line
from installer.units.systemd import unit_properties

PROPERTIES = (
    "LoadState", "LoadError", "FragmentPath", "ActiveState", "SubState", "Result", "StatusText", "NRestarts",
    "InvocationID", "MainPID", "NeedDaemonReload", "DropInPaths", "ActiveEnterTimestamp", "StateChangeTimestamp",
    "MemoryCurrent", "WatchdogTimestampMonotonic",
)  # fmt: skip
# What the supervisor says when another engine's turn has come, or has not.
BEGINNINGS = (
    "vllm-launcher: the next engine takes over: ", "vllm-launcher: starting again what ran before",
    "vllm-launcher: the change is not taken over: ",
)  # fmt: skip
ANSWER_WITHIN = 20.0
JOURNAL_LINES = 4000


@dataclass(frozen=True)
class Scene:
    host: Host
    layout: Layout
    state: State | None
    damage: InstallError | None  # why there is no state, although there should be one, or why it may not be written
    number: int = field(default=0, kw_only=True)  # of the replica that is looked at; 0 is the unit that people type
    whole: Scene | None = field(default=None, kw_only=True)  # which the replica is one of

    @property
    def service(self) -> str:
        return self.layout.service

    @cached_property
    def member(self) -> Member:
        target = self.state.proved if self.state else None
        return next((m for m in members(self.layout, target) if m.number == self.number), handle(self.layout, target))

    @property
    def has_api(self) -> bool:
        return not (self.state and self.state.proved) or self.state.proved.has_api

    @property
    def is_gateway(self) -> bool:
        """Whether the unit has no engine itself, but replicas that have one."""
        return self.number == 0 and bool(self.state and self.state.proved and self.state.proved.replicas)

    @cached_property
    def replicas(self) -> tuple[Scene, ...]:
        """Each looked at as a service of its own; none where the service is the engine itself."""
        found = members(self.layout, self.state.proved if self.state else None) if self.is_gateway else ()
        return tuple(replace(self, number=member.number, whole=self) for member in found)

    @property
    def parts(self) -> tuple[Scene, ...]:
        """By units: itself, and the replicas."""
        return (self, *self.replicas)

    @property
    def configuration(self) -> list[Path]:
        """What a gateway reads beside its unit."""
        owned = self.state.owned if self.state and self.is_gateway else ()
        return [Path(name) for name in owned if name.endswith(".haproxy.cfg")]

    @cached_property
    def gateway(self) -> GatewayState | None:
        """What the gateway says of its members; None without root, and where it says nothing."""
        if not (self.is_gateway and self.is_root and self.active in ("active", "reloading")):
            return None
        try:
            return haproxy.state(self.host, self.layout)
        except InstallError:
            return None

    @cached_property
    def under_way(self) -> Holder | None:
        """The change that somebody makes just now; what is half done then is no fault."""
        return self.host.lock_holder(self.layout.change_lock)

    @property
    def deploy(self) -> str:
        """The command that puts things back as they were asked for."""
        return f"sudo vllm-install deploy --service {self.service}"

    @property
    def is_root(self) -> bool:
        return os.geteuid() == 0

    @cached_property
    def settings(self) -> Settings:
        """What the service was proved with; else what its file says; else the defaults."""
        if self.state and self.state.proved:
            return self.state.proved.of(self.number).settings
        path = self.layout.settings_file
        try:
            return load_settings(self.service, settings_file.parse(self.host.read(path) or "", path), {}, {})
        except InstallError:
            return Settings(service=self.service)

    @cached_property
    def facts(self) -> Facts:
        if self.whole:
            return self.whole.facts
        return with_tenants(facts.gather(self.host, self.settings, self.layout), self.host, self.layout)

    @cached_property
    def problems(self) -> list[Problem]:
        """What deploy would refuse this host for, with the engine there is: a lost GPU makes no CPU service of it."""
        proved = self.state.proved if self.state else None
        settings = replace(self.settings, engine=proved.engine.kind) if proved else self.settings
        return preflight.problems(settings, self.facts, self.layout)

    @cached_property
    def unit(self) -> dict[str, str]:
        """What systemd knows of the unit; empty without systemd."""
        try:
            return unit_properties(self.host, self.member.name, *PROPERTIES)
        except InstallError:
            return {}

    @cached_property
    def unit_text(self) -> str | None:
        return self.host.read(self.member.path)

    @cached_property
    def command(self) -> list[str]:
        return exec_line(self.unit_text or "")

    @property
    def active(self) -> str:
        return self.unit.get("ActiveState", "")

    @cached_property
    def holding(self) -> Holding | None:
        """Callers who wait: while there are any, a question of ours would wait among them."""
        if self.is_gateway:
            said = self.gateway
            if said is None or said.down_for is None:
                return None
            return Holding(said.waiting, said.down_for, self.settings.hold)
        return holding(self.host, self.member)

    @property
    def serves(self) -> bool:
        """As far as systemd and the supervisor know; while it is handed over, the old engine serves."""
        does = self.active in ("active", "reloading") and self.holding is None and self.is_together
        return does and (not self.is_gateway or any(replica.serves for replica in self.replicas))

    @cached_property
    def standing(self) -> Standing | None:
        """How its group does; None of a service of one host, and where we may not look."""
        proved = self.state.proved if self.state else None
        is_member = proved is not None and proved.place is not None and not self.is_gateway
        return standing(self.host, self.member) if is_member and self.is_root else None

    @property
    def is_together(self) -> bool:
        """Whether no other host is missing, as far as can be told."""
        if self.standing is not None:
            return not self.standing.stage
        return not self.unit.get("StatusText", "").startswith((WAITING, BROKEN, STARTING, ENDED))

    @property
    def stage(self) -> str:
        """What the launcher said last, unless that is of a run that was stopped; of replicas how many serve."""
        if self.is_gateway and self.active != "inactive":
            return f"{sum(replica.serves for replica in self.replicas)} of {len(self.replicas)} replicas serve"
        return self.unit.get("StatusText", "") if self.active != "inactive" else ""

    @property
    def has_failed(self) -> bool:
        return self.active == "failed" or self.unit.get("SubState") == "auto-restart"

    @cached_property
    def probe_key(self) -> str | None:
        """None where we may not read it."""
        try:
            return self.host.word(self.layout.probe_key) or None
        except PermissionError:
            return None

    @property
    def custody(self) -> Custody:
        return Custody(self.host, self.member.name, self.layout.user)

    def api(self, timeout: float = ANSWER_WITHIN) -> Api:
        settings = self.settings
        certificate = certificate_of(self.host, self.member, settings)
        return Api(local_address(settings.host), settings.port, self.probe_key, timeout, self.custody, certificate)

    @cached_property
    def runs(self) -> list[list[str]]:
        """The journal's lines of the last runs of the service, the latest run first."""
        found: dict[str, list[str]] = {}
        for entry in journal.unit_entries(self.host, self.member.name, JOURNAL_LINES):
            if entry.run:
                found.setdefault(entry.run, []).append(entry.text)
        return list(reversed(found.values()))

    @property
    def last_start(self) -> list[str]:
        """Of the latest run what came since its engine began: in one that was handed over several have."""
        lines = self.runs[0] if self.runs else []
        return lines[
            max((at for at, line in enumerate(lines) if any(word in line for word in BEGINNINGS)), default=0) :
        ]

    def file(self, path: Path) -> str | None:
        """A file's text; None where it is not there or not for our eyes."""
        try:
            return self.host.read(path)
        except (OSError, Strange):
            return None


def look(service: str, host: Host) -> Scene:
    """The scene of a service that is ours, also where our record of it is damaged."""
    layout = Layout(service)
    try:
        state = load_state(host, layout)
    except InstallError as damage:
        return Scene(host, layout, readable_state(host, layout), damage)
    if state is None and not host.exists(layout.unit):
        managed(host, layout)  # which refuses, and names the services there are
    return Scene(host, layout, state, None)
