"""One host of a group, as whoever drives a change asks it: what it is, and each step of a change of all hosts.

A change has been claimed here before anything is changed, and is marked as done here before that is answered. So what
is written on this host says enough for anybody who comes later, also when nobody else is left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import group as checks
from installer.flow import converge, rotate
from installer.flow.transaction import changing
from installer.group import carry, ssh
from installer.spec import keys
from installer.spec.group import Group, load_group, of_data, save_group
from installer.spec.record import of_record
from installer.spec.records import load_state, managed, services
from installer.spec.settings import FIELDS, to_text
from installer.spec.state import State
from installer.units import haproxy, keyring, monitoring
from installer.units.graph import members
from installer.units.group import standing
from installer.units.render import generation
from installer.units.systemd import unit_properties


@dataclass(frozen=True)
class Ran:
    """How a verb ended here."""

    code: int
    out: str = ""
    message: str = ""
    hint: str = ""


Run = Callable[[Sequence[str], str, Mapping[str, str]], Ran]


@dataclass(frozen=True)
class Look:
    """What a host says of itself and of the service."""

    machine: str
    arch: str
    tool: str
    clock: float
    group: Group | None = None
    served: bool = False  # the service was proved here
    pending: str | None = None  # a change of this host that was cut off
    engine: str = ""
    model: str = ""
    generation: str = ""
    keys: tuple[str, ...] = ()
    gateway: bool = False  # it answers for other hosts, and they for it
    active: str = ""
    stage: str = ""  # what it waits for, where it is one of the hosts of one model
    damage: str = ""


@dataclass(frozen=True)
class Watch:
    """How a host is watched."""

    key: str  # the digest of that with which its own Prometheus reads; empty where it is not watched
    together: bool  # a service of it knows another host's


class Member:
    """`run` is what runs a verb of ours on this host."""

    def __init__(self, service: str, host: Host, report: Report, run: Run) -> None:
        self.layout, self.host, self.report, self._run = Layout(service), host, report, run

    def answer(self, request: Mapping[str, Any]) -> Any:
        """What one of its steps comes to, as JSON can hold it."""
        given = dict(request)
        step = given.pop("do")
        if step not in STEPS:
            raise Refused(tr("this version of vllm-install does not know what it is asked: {what}", what=step))
        return STEPS[step](self, **given)

    def look(self) -> dict[str, Any]:
        return dataclasses.asdict(self._look())

    def _look(self) -> Look:
        seen = Look(ssh.machine_id(self.host), os.uname().machine, carry.digest(), time.time())
        try:
            group, state = load_group(self.host, self.layout), load_state(self.host, self.layout)
        except InstallError as error:
            return dataclasses.replace(seen, damage=error.message)
        active = unit_properties(self.host, self.layout.unit_name, "ActiveState").get("ActiveState", "")
        seen = dataclasses.replace(seen, group=group, active=active)
        if state is None:
            return seen
        seen = dataclasses.replace(seen, pending=state.unfinished)
        if state.proved is None:
            return seen
        parts = generation(state.proved, self.layout)
        engine = members(self.layout, state.proved)[0]
        return dataclasses.replace(
            seen,
            served=True,
            stage=standing(self.host, engine).stage if state.proved.place else "",
            engine=state.proved.engine.id,
            model=f"{state.proved.model.id}@{state.proved.model.commit or 'local'}",
            generation=hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16],
            gateway=bool(state.proved.settings.gateway_hosts),
            keys=tuple(k for k in keyring.in_record(state.proved.keys) if not _is_its_own(keys.parse(k))),
        )

    def reach(self, machines: Mapping[str, str]) -> dict[str, str]:
        """What keeps this host from reaching others, each with its machine-id; those that it reaches are missing."""
        found = {}
        for name, machine in machines.items():
            try:
                there = (
                    ssh.machine_id(self.host) if ssh.is_here(name, self.host) else ssh.machine_there(name, self.host)
                )
            except InstallError as error:
                found[name] = error.message
            else:
                if there != machine:
                    found[name] = LEADS_ASTRAY
        return found

    def addresses(self) -> list[str]:
        return checks.addresses(self.host)

    def group_key(self) -> str:
        """For a host that comes to the others: they know each other by it."""
        return self.host.read(self.layout.group_key) or ""

    def linked(self, addresses: list[str]) -> None:
        """That the gateway of this host reaches those of others."""
        if missing := haproxy.reaches(self.host, self.layout, addresses):
            told = ", ".join(f"{address} ({check or '-'})" for address, check in missing.items())
            raise Refused(
                tr("its gateway does not reach that of {hosts}", hosts=told),
                tr("let the hosts reach one another at GROUP_PORT: {hosts}", hosts=", ".join(missing)),
            )

    def claim(self, group: dict[str, Any], key: str | None = None) -> None:
        """Write down what is about to be changed, and keep what there is."""
        wanted = of_data(group)
        assert wanted.change is not None, "a change is claimed"
        now = load_group(self.host, self.layout)
        if now and now.id != wanted.id:
            raise Refused(tr("{service} is of another group of hosts here", service=self.layout.service))
        text = self.host.read(self.layout.state_file)
        state = load_state(self.host, self.layout)
        first = state is None or state.proved is None
        if text is not None and not first:
            settings = self.host.read(self.layout.settings_file)
            self.host.write(self.layout.before_group, json.dumps({"record": text, "settings": settings}))
        if key is not None:
            self.host.write(self.layout.group_key, key, 0o600)
        change = dataclasses.replace(wanted.change, first=first)
        save_group(self.host, self.layout, dataclasses.replace(wanted, change=change))

    def run(self, words: list[str], text: str = "", environment: dict[str, str] | None = None) -> dict[str, Any]:
        return dataclasses.asdict(self._run(words, text, environment or {}))

    def switch(self, words: list[str], text: str = "", environment: dict[str, str] | None = None) -> dict[str, Any]:
        """The verb that is the change, and that it is done."""
        ran = self._run(words, text, environment or {})
        group = load_group(self.host, self.layout)
        if ran.code == 0 and group and group.change:
            done = dataclasses.replace(group.change, done=True)
            save_group(self.host, self.layout, dataclasses.replace(group, change=done))
        return dataclasses.asdict(ran)

    def undo(self) -> None:
        """As it was when the change was claimed; done twice, nothing happens the second time."""
        group = load_group(self.host, self.layout)
        if group is None or group.change is None:
            return
        change, (before, settings) = group.change, self._before()
        if before is None and not change.first:
            raise Refused(tr("{path} is not there any more", path=self.layout.before_group))
        with changing(self.layout, f"undo {change.what}", self.host):
            if before is not None or load_state(self.host, self.layout) is not None:
                converge.go_back(before, settings, change.what, self.host, self.layout, self.report)
        if before and before.proved and change.of_keys:
            rotate.take_keys(self.layout.service, before.proved.keys, self.host, self.report)

    def _before(self) -> tuple[State | None, str | None]:
        """The record and the settings file as they were."""
        text = self.host.read(self.layout.before_group)
        if text is None:
            return None, None
        kept = json.loads(text)
        return of_record(kept["record"], self.layout.service)[1], kept["settings"]

    def end(self, of: str, group: dict[str, Any] | None) -> None:
        """The change is over, and this is the record from now on; none where there is no group any more."""
        now = load_group(self.host, self.layout)
        if now and now.id != of:
            return
        if group is not None:
            save_group(self.host, self.layout, of_data(group))
            self.host.remove(self.layout.before_group)
            return
        for path in (self.layout.group_file, self.layout.before_group, self.layout.group_key):
            self.host.remove(path)
        if not self.host.exists(self.layout.state_file):
            self.host.remove_empty_dir(self.layout.state_dir)
            self.host.remove_empty_dir(self.layout.state_dir.parent)

    def rest(self) -> None:
        """Out of the group the service stops when it has finished what it was asked, and starts at no boot."""
        self.host.systemctl("disable", "--now", self.layout.unit_name)

    def wishes(self) -> dict[str, str]:
        """What is set here, by the names in file and environment; which GPUs it has is a host's own."""
        state = managed(self.host, self.layout)
        if state.proved is None:
            raise converge.never_proved(self.layout)
        chosen = {name: about for name, about in FIELDS.items() if name != "gpus"}
        return {about.names[0]: to_text(name, getattr(state.proved.settings, name)) for name, about in chosen.items()}

    def take_keys(self, held: list[str]) -> None:
        """Those of the other hosts, by their digests."""
        own = [key for key in rotate.list_keys(self.layout.service, self.host) if _is_its_own(key)]
        wanted = keys.in_order([*map(keys.parse, held), *own])
        rotate.take_keys(self.layout.service, wanted, self.host, self.report)

    def watch(self) -> dict[str, Any]:
        key, held = (
            monitoring.key(self.host),
            [keyring.unit_keys(self.host, Layout(name)) for name in services(self.host)],
        )
        return dataclasses.asdict(Watch(key.digest if key else "", any(monitoring.others(each) for each in held)))

    def read_by(self, readers: dict[str, str | None]) -> None:
        """Whose Prometheus reads here, by its key's digest; by nobody's where hosts do not answer for one another."""
        state = load_state(self.host, self.layout)
        if state is None or state.proved is None:
            return
        held = rotate.list_keys(self.layout.service, self.host)
        wanted = monitoring.read_by(held, readers if state.proved.settings.gateway_hosts else {})
        rotate.take_keys(self.layout.service, wanted, self.host, self.report)

    def leave(self) -> bool:
        """Nothing of ours stays on a host that has no service of ours."""
        if is_bare := not services(self.host):
            carry.take_away(self.host)
        return is_bare


def _is_its_own(key: keys.Key) -> bool:
    """No matter of the other hosts."""
    return key.name == keys.PROBE or monitoring.watches(key)


LEADS_ASTRAY = "leads astray"  # the name is another host's there
STEPS: dict[str, Callable[..., Any]] = {
    "look": Member.look,
    "reach": Member.reach,
    "addresses": Member.addresses,
    "group_key": Member.group_key,
    "linked": Member.linked,
    "claim": Member.claim,
    "run": Member.run,
    "switch": Member.switch,
    "undo": Member.undo,
    "end": Member.end,
    "rest": Member.rest,
    "wishes": Member.wishes,
    "take_keys": Member.take_keys,
    "watch": Member.watch,
    "read_by": Member.read_by,
    "leave": Member.leave,
}
