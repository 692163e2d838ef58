"""What a deploy consists of: each step compares the host with what is wanted and yields the changes that are due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from installer.adoption import former
from installer.base.changes import Change, Remove, Run, Write
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import ADVISORIES, STATES, USAGE, Layout
from installer.base.report import Report
from installer.flow.running import running
from installer.flow.wanted import Wanted
from installer.forms.podman import images
from installer.forms.venv import engines
from installer.forms.venv.toolkit import CompileKernels
from installer.spec.records import ejected, readable_states, services
from installer.spec.settings_file import wanted
from installer.spec.state import State
from installer.units import alarm, authority, soaking
from installer.units.graph import Member, handle, members, on_disk
from installer.units.keyring import WriteUnit, held_in_unit, replicas
from installer.units.render import render, runtime_dir, shared_units, unit
from installer.units.syntax import environment, exec_line, sandbox
from installer.units.systemd import has_user
from installer.weights import inventory, models


def engine(want: Wanted, host: Host) -> Iterator[Change]:
    if want.target.engine.image:
        if not images.is_complete(want.target.engine, host, want.layout):
            yield images.bring(want.target.engine, want.target.settings, want.layout, host, want.bundle)
    elif not engines.is_complete(host, want.layout, want.target.engine.id):
        yield engines.InstallEngine(want.target.engine, want.target.settings, want.layout, want.bundle)


def weights(want: Wanted, host: Host) -> Iterator[Change]:
    settings = want.target.settings
    yield from models.changes(want.target.model, host, settings, want.bundle, want.caches)
    for given, adapter in zip(settings.lora, want.target.adapters, strict=True):
        carrier = want.bundle.of_adapter(adapter.model.id) if want.bundle else None
        yield from models.changes(adapter.model, host, settings.of_adapter(given), carrier, want.caches)


def account(want: Wanted, host: Host) -> Iterator[Change]:
    path = want.layout.sysusers
    yield from _files(want, host, only=[path])
    if not has_user(host, want.layout.user):
        yield Run(("systemd-sysusers", str(path)), tr("create the user {user}", user=want.layout.user))


def kernels(want: Wanted, host: Host) -> Iterator[Change]:
    target, layout = want.target, want.layout
    if target.toolkit and target.toolkit.capabilities:
        text = unit(target, layout, members(layout, target)[0].number)
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


def certificate(want: Wanted, host: Host) -> Iterator[Change]:
    yield from authority.due(want.target.settings, want.layout, host)


def adopted(want: Wanted, host: Host) -> Iterator[Change]:
    if want.former:
        yield from former.set_aside(want.former)
    if want.environment:
        folder = want.layout.replicas_drop_ins if want.target.replicas else handle(want.layout).drop_ins
        yield former.drop_in(folder, want.environment)


def unit_files(want: Wanted, host: Host) -> Iterator[Change]:
    """Those that start something come last, and the one that people type at the very end."""
    files = [path for path in render(want.target, want.layout) if path != want.layout.sysusers]
    yield from _files(want, host, only=sorted(files, key=lambda path: (_is_unit(path, want), path == want.layout.unit)))


def _is_unit(path: Path, want: Wanted) -> bool:
    return path.parent == want.layout.unit.parent and want.layout.has_unit(path.name)


def told(want: Wanted, host: Host) -> Iterator[Change]:
    yield from alarm.due(want.target, want.layout, runtime_dir(want.layout), host)


def ejection(want: Wanted, host: Host) -> Iterator[Change]:
    """Only one that was cut off leaves this beside a service of ours."""
    key = want.layout.ejected_probe_key
    if host.exists(key) and not (want.former and key in want.former.paths):  # else it was set aside with its unit
        yield Remove(key)


def enabled(want: Wanted, host: Host) -> Iterator[Change]:
    """The unit that people type, which brings up the others."""
    unit = handle(want.layout)
    if want.former or not host.exists(unit.wants_link):  # the link there may be the old unit's, and goes with it
        yield Run(("systemctl", "enable", unit.name), tr("start the service at every boot"))


STEPS = (
    engine, weights, account, kernels, settings_file, probe_key, certificate, adopted, unit_files, told, ejection,
    enabled, running,
)  # fmt: skip


def plan(want: Wanted, host: Host) -> list[Change]:
    return [change for step in STEPS for change in step(want, host)]


# Looking at the host


def _files(want: Wanted, host: Host, only: list[Path]) -> Iterator[Change]:
    files = render(want.target, want.layout)
    for path in only:
        text, mode = files[path].text, files[path].mode
        if all(path != member.path for member in members(want.layout, want.target)):
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
    is_last = not (others or ejected(host))
    yield from soaking.ending(layout, host)
    yield from alarm.ending(layout, host)
    units = (handle(layout), *replicas(host, layout))
    yield from _files_gone(layout, state, units, host, is_last=is_last)
    yield from _units_forgotten(layout, units, host)
    if state.former and not state.proved:
        yield from former.start_again(state.former)
    yield from _account_gone(layout, state, host)
    if engine:
        yield from unused_programs(layout, others, host, without=layout.service)
        yield from (Remove(parent, only_if_empty=True) for parent in (layout.engines, layout.runtimes))
        if is_last and host.exists(layout.wheel_cache):
            yield RemoveUnused(layout.wheel_cache, without=layout.service)
    if weights:
        yield from _unused_weights(layout, state, others, host)
    yield Remove(layout.state_dir)
    if is_last:
        yield from (Remove(path) for path in (authority.AUTHORITY, ADVISORIES) if host.exists(path))
    if state.owns_sysusers:
        yield Remove(layout.sysusers.parent, only_if_empty=True)
    for directory in (layout.settings_file.parent, STATES, USAGE, layout.hub.parent, layout.opt):
        yield Remove(directory, only_if_empty=True)


def _files_gone(
    layout: Layout, state: State, units: Sequence[Member], host: Host, *, is_last: bool
) -> Iterator[Change]:
    """What runs is stopped first; a unit that is what it was before an adoption is left alone."""
    before, shared = state.former, shared_units()
    kept = before.paths if before and former.in_place(before, host, layout) else frozenset()
    for each in units:
        if host.exists(each.path) and each.path not in kept:
            yield _stop(each)
        if each.number and host.exists(door := layout.door(each.number)):
            yield Remove(door)
    for path in (Path(name) for name in state.owned):
        if path not in shared and path not in kept and host.exists(path):
            yield Remove(path)
        elif path in shared and host.exists(path) and is_last:
            if path.suffix == ".service":  # not the slice, which would end whatever has just begun in it
                yield Run(("systemctl", "stop", path.name), tr("stop {unit}", unit=path.name), may_fail=True)
            yield RemoveUnused(path, without=layout.service)
    if before:
        yield from former.put_back(before, host, layout)


def _units_forgotten(layout: Layout, units: Sequence[Member], host: Host) -> Iterator[Change]:
    for folder in (*(each.drop_ins for each in units), layout.replicas_drop_ins):
        if host.exists(folder):
            yield Remove(folder, only_if_empty=True)
    yield Run(("systemctl", "daemon-reload"), tr("make systemd forget the unit"))
    # As a pattern, so that a unit that did not fail is no error; with no name at all, every unit would be cleared.
    patterns = [f"{member.name[:-1]}[{member.name[-1]}]" for member in units]
    yield Run(("systemctl", "reset-failed", *patterns), tr("clear its failed state"))


def _account_gone(layout: Layout, state: State, host: Host) -> Iterator[Change]:
    """The user with all that was its own, unless the unit that was ours once is back and goes on with that."""
    if state.owns_user and has_user(host, layout.user):
        yield Run(("userdel", layout.user), tr("remove the user {user}", user=layout.user))
        # Whether userdel takes the group along is the distribution's choice.
        yield Run(("groupdel", layout.user), tr("remove the group {group}", group=layout.user), may_fail=True)
    back_in_use = state.former is not None and state.former.ejected and not state.proved
    for path in (layout.cache_dir, layout.limits_file, layout.usage_dir):
        if host.exists(path) and not back_in_use:
            yield Remove(path)


def _stop(member: Member) -> Run:
    if member.number:
        return Run(("systemctl", "stop", member.name), tr("stop {unit}", unit=member.name))
    return Run(("systemctl", "disable", "--now", member.name), tr("stop the service"))


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
            images.let_go(self.path, host)
            super().apply(host, report)


def unused_programs(layout: Layout, services: list[Layout], host: Host, *, without: str = "") -> Iterator[RemoveUnused]:
    """Engines and runtimes that none of these services, nor an ejected one, starts or could roll back to.

    Nothing is known to be unused while a service's record cannot be read.
    """
    states = readable_states(host, services)
    if states is None:
        return
    texts = [host.read(each.path) or "" for of in services for each in (handle(of), *on_disk(host, of))]
    texts += ejected(host).values()
    used = {Path(word) for text in texts for word in exec_line(text)[:2]}
    for state in states:
        used |= {layout.engines / engine / "any" for engine in state.engines}
        used |= {runtime_dir(layout) / "any"} if state.pending else set()
    for parent in (layout.engines, layout.runtimes):
        for path in host.children(parent):
            in_image = any(f"sha256:{path.name}" in text for text in texts)
            if not in_image and not any(path in program.parents for program in used):
                yield RemoveUnused(path, without=without)


def _unused_weights(layout: Layout, state: State, others: list[Layout], host: Host) -> Iterator[Change]:
    """With the last service all weights go; before that, what this one served and no other needs."""
    if not others and not ejected(host):
        yield from (Remove(path) for path in (layout.hub, layout.builtin_models) if host.exists(path))
    else:
        mine = [model.path for target in (state.proved, state.previous) if target for model in target.read]
        for folder in sorted({path.parents[1] for path in mine if layout.hub in path.parents}):
            if change := inventory.unneeded(folder, host, without=layout.service):
                yield change
