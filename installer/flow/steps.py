"""What a deploy consists of: each step compares the host with what is wanted and yields the changes that are due."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installer.adoption import former
from installer.airgap.bundle_file import Bundle
from installer.base.changes import Change, Handover, Remove, Restart, Run, Write
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import STATES, Layout
from installer.base.report import Report
from installer.forms.venv import engines
from installer.forms.venv.toolkit import CompileKernels
from installer.spec.former import Former
from installer.spec.keys import PROBE, Key
from installer.spec.records import ejected, readable_states, services
from installer.spec.settings_file import wanted
from installer.spec.state import State
from installer.spec.target import Target
from installer.units import soaking
from installer.units.graph import Member, members
from installer.units.keyring import TakeKeys, WriteUnit, held_in_unit
from installer.units.render import process_digest, render, runtime_dir, shared_units, unit
from installer.units.syntax import environment, exec_line, sandbox
from installer.units.systemd import hands_over, has_user, running_process, unit_properties
from installer.weights import inventory, models


@dataclass(frozen=True)
class Wanted:
    """What one deploy works towards."""

    target: Target
    layout: Layout
    probe_key: str
    bundle: Bundle | None = None  # which has the engine's packages and the weights
    former: Former | None = None  # the unit whose place this service takes
    environment: tuple[tuple[str, str], ...] = ()  # variables that come along from there
    held: tuple[Key, ...] | None = None  # the unit's keys when the change began; those of now if none began


def engine(want: Wanted, host: Host) -> Iterator[Change]:
    if not engines.is_complete(host, want.layout, want.target.engine.id):
        yield engines.InstallEngine(want.target.engine, want.target.settings, want.layout, want.bundle)


def weights(want: Wanted, host: Host) -> Iterator[Change]:
    yield from models.changes(want.target.model, host, want.target.settings, want.bundle)


def account(want: Wanted, host: Host) -> Iterator[Change]:
    path = want.layout.sysusers
    yield from _files(want, host, only=[path])
    if not has_user(host, want.layout.user):
        yield Run(("systemd-sysusers", str(path)), tr("create the user {user}", user=want.layout.user))


def kernels(want: Wanted, host: Host) -> Iterator[Change]:
    target, layout = want.target, want.layout
    if target.toolkit and target.toolkit.capabilities:
        text = unit(target, layout)
        change = CompileKernels(
            target.toolkit, target.engine.id, layout, tuple(sandbox(text)), tuple(environment(text).items())
        )
        if host.read(layout.kernels_stamp) != change.stamp:
            yield change


def settings_file(want: Wanted, host: Host) -> Iterator[Change]:
    path = want.layout.settings_file
    yield from _write(host, path, wanted(host.read(path), want.target.settings, path), host.mode(path) or 0o644)


def probe_key(want: Wanted, host: Host) -> Iterator[Change]:
    yield from _write(host, want.layout.probe_key, want.probe_key + "\n", 0o600, secret=True)


def adopted(want: Wanted, host: Host) -> Iterator[Change]:
    if want.former:
        yield from former.set_aside(want.former)
    if want.environment:
        yield former.drop_in(want.layout, want.environment)


def unit_files(want: Wanted, host: Host) -> Iterator[Change]:
    units = [member.path for member in members(want.layout)]
    others = [path for path in render(want.target, want.layout) if path not in (*units, want.layout.sysusers)]
    yield from _files(want, host, only=[*others, *units])


def ejection(want: Wanted, host: Host) -> Iterator[Change]:
    """Only one that was cut off leaves this beside a service of ours."""
    key = want.layout.ejected_probe_key
    if host.exists(key) and not (want.former and key in want.former.paths):  # else it was set aside with its unit
        yield Remove(key)


def enabled(want: Wanted, host: Host) -> Iterator[Change]:
    for member in members(want.layout):
        if want.former or not host.exists(member.wants_link):  # the link there may be the old unit's, and goes with it
            yield Run(("systemctl", "enable", member.name), tr("start the service at every boot"))


def running(want: Wanted, host: Host) -> Iterator[Change]:
    """The process has to make way when it was started from another unit; only keys are handed to it as it runs.

    What is still starting may put other keys there after us, and the watcher asks with the probe key that it was
    started with: then only a restart helps.
    """
    keys = frozenset((key.name, key.digest) for key in want.target.keys)
    for member in members(want.layout):
        process = running_process(host, member)
        if process is None or want.former:
            yield Restart(member.name)
            continue
        can_take = process.is_up and not any(name == PROBE for name, _ in process.keys ^ keys)
        if process.digest != process_digest(want.target, want.layout):
            can_wait = can_take and want.target.settings.hold > 0 and hands_over(host, member)
            yield Handover(member.name) if can_wait else Restart(member.name)
        elif process.keys != keys:
            yield TakeKeys(want.layout) if can_take else Restart(member.name)
        elif _is_unread(member, want, host):
            yield Run(("systemctl", "daemon-reload"), tr("make systemd read the unit"))


def _is_unread(member: Member, want: Wanted, host: Host) -> bool:
    """Whether systemd would start another unit than the one that runs: of a change that came no further than that."""
    file = render(want.target, want.layout)[member.path]
    loaded = unit_properties(host, member.name, "NeedDaemonReload").get("NeedDaemonReload")
    return loaded == "yes" or _differs(host, member.path, file.text, file.mode)


STEPS = (engine, weights, account, kernels, settings_file, probe_key, adopted, unit_files, ejection, enabled, running)


def plan(want: Wanted, host: Host) -> list[Change]:
    return [change for step in STEPS for change in step(want, host)]


# Looking at the host


def _files(want: Wanted, host: Host, only: list[Path]) -> Iterator[Change]:
    files = render(want.target, want.layout)
    for path in only:
        text, mode = files[path].text, files[path].mode
        if all(path != member.path for member in members(want.layout)):
            yield from _write(host, path, text, mode)
        elif _differs(host, path, text, mode):
            secret = any(key.plain for key in want.target.keys)
            held = held_in_unit(host, want.layout) if want.held is None else want.held
            yield WriteUnit(path, text, mode, secret, want.layout, held)


def _write(host: Host, path: Path, text: str, mode: int, *, secret: bool = False) -> Iterator[Change]:
    if _differs(host, path, text, mode):
        yield Write(path, text, mode, secret)


def _differs(host: Host, path: Path, text: str, mode: int) -> bool:
    return host.read(path) != text or host.mode(path) != mode


# Taking everything away again


def removal(layout: Layout, state: State, host: Host, *, weights: bool, engine: bool) -> Iterator[Change]:
    """Undo exactly what we made for this service, and what is shared once no other service is left."""
    others = [Layout(name) for name in services(host) if name != layout.service]
    let_go = ejected(host)
    shared = shared_units()
    before = state.former
    kept = before.paths if before and former.in_place(before, host, layout) else frozenset()
    yield from soaking.ending(layout, host)
    for member in reversed(members(layout)):
        if host.exists(member.path) and member.path not in kept:
            yield Run(("systemctl", "disable", "--now", member.name), tr("stop the service"))
    for path in (Path(name) for name in state.owned):
        if path not in shared and path not in kept and host.exists(path):
            yield Remove(path)
        elif path in shared and host.exists(path) and not (others or let_go):
            if path.suffix == ".service":  # not the slice, which would end whatever has just begun in it
                yield Run(("systemctl", "stop", path.name), tr("stop {unit}", unit=path.name), may_fail=True)
            yield RemoveUnused(path, without=layout.service)
    if before:
        yield from former.put_back(before, host, layout)
    for member in members(layout):
        if host.exists(member.drop_ins):
            yield Remove(member.drop_ins, only_if_empty=True)
    yield Run(("systemctl", "daemon-reload"), tr("make systemd forget the unit"))
    # As a pattern, so that a unit that did not fail is no error; with no name at all, every unit would be cleared.
    patterns = [f"{member.name[:-1]}[{member.name[-1]}]" for member in members(layout)]
    yield Run(("systemctl", "reset-failed", *patterns), tr("clear its failed state"))
    if before and not state.proved:
        yield from former.start_again(before)
    if state.owns_user and has_user(host, layout.user):
        yield Run(("userdel", layout.user), tr("remove the user {user}", user=layout.user))
        # Whether userdel takes the group along is the distribution's choice.
        yield Run(("groupdel", layout.user), tr("remove the group {group}", group=layout.user), may_fail=True)
    back_in_use = before is not None and before.ejected and not state.proved  # by the unit that was ours once
    if host.exists(layout.cache_dir) and not back_in_use:
        yield Remove(layout.cache_dir)
    if engine:
        yield from unused_programs(layout, others, host, without=layout.service)
        yield from (Remove(parent, only_if_empty=True) for parent in (layout.engines, layout.runtimes))
        if not (others or let_go) and host.exists(layout.wheel_cache):
            yield RemoveUnused(layout.wheel_cache, without=layout.service)  # it goes with the last service
    if weights:
        yield from _unused_weights(layout, state, others, host)
    yield Remove(layout.state_dir)
    for directory in (layout.settings_file.parent, STATES, layout.hub.parent, layout.opt):
        yield Remove(directory, only_if_empty=True)


@dataclass(frozen=True)
class RemoveUnused(Remove):
    """Remove what services share. Whether one needs it is looked at again: another may have claimed it meanwhile."""

    without: str = ""  # a service that is about to go, and needs nothing any more

    def apply(self, host: Host, report: Report) -> None:
        layout = Layout(self.without or "any")
        others = [Layout(name) for name in services(host) if name != self.without]
        if self.path.parent in (layout.engines, layout.runtimes):
            unused = {change.path for change in unused_programs(layout, others, host)}
        else:
            unused = set() if others or ejected(host) else {self.path}
        if self.path in unused:
            super().apply(host, report)


def unused_programs(layout: Layout, services: list[Layout], host: Host, *, without: str = "") -> Iterator[RemoveUnused]:
    """Engines and runtimes that none of these services, nor an ejected one, starts or could roll back to.

    Nothing is known to be unused while a service's record cannot be read.
    """
    states = readable_states(host, services)
    if states is None:
        return
    units = [host.read(member.path) or "" for service in services for member in members(service)]
    used = {Path(word) for text in (*units, *ejected(host).values()) for word in exec_line(text)[:2]}
    for state in states:
        used |= {layout.engines / engine / "any" for engine in state.engines}
        used |= {runtime_dir(layout) / "any"} if state.pending else set()
    for parent in (layout.engines, layout.runtimes):
        for path in host.children(parent):
            if not any(path in program.parents for program in used):
                yield RemoveUnused(path, without=without)


def _unused_weights(layout: Layout, state: State, others: list[Layout], host: Host) -> Iterator[Change]:
    """With the last service all weights go; before that, what this one served and no other needs."""
    if not others and not ejected(host):
        yield from (Remove(path) for path in (layout.hub, layout.builtin_models) if host.exists(path))
    else:
        mine = [target.model.path for target in (state.proved, state.previous) if target]
        for folder in sorted({path.parents[1] for path in mine if layout.hub in path.parents}):
            if change := inventory.unneeded(folder, host, without=layout.service):
                yield change
