"""Which processes have to make way, how, and in which order: so that somebody serves all the while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from installer.base.changes import Change, Handover, Remove, Restart, Run
from installer.base.host import Host
from installer.base.language import tr
from installer.flow.roll import Drain, ReloadGateway, Renew, Undrain
from installer.flow.wanted import Wanted
from installer.spec.keys import PROBE
from installer.units import haproxy
from installer.units.gateway import config_file, is_ours
from installer.units.graph import Member, handle, members
from installer.units.haproxy import MemberState, NoGateway
from installer.units.keyring import TakeKeys, replicas
from installer.units.render import process_digest, render
from installer.units.systemd import MainProcess, hands_over, running_process, unit_properties


def running(want: Wanted, host: Host) -> Iterator[Change]:
    """What is due of the processes; members that the service has no more go last, when the others were proved."""
    front = running_process(host, handle(want.layout))
    wanted = {member.name for member in members(want.layout, want.target)}
    gone = [member for member in replicas(host, want.layout) if member.name not in wanted]
    if want.target.replicas:
        yield from _behind_a_gateway(want, host, front)
    elif front.is_gateway if front else gone:
        # They are ended by the unit itself, when the gateway is done and before its engine starts.
        yield Renew(want, handle(want.layout, want.target), Restart(want.layout.unit_name, alone=True))
    else:
        yield from _single(want, host, front)
    yield from _retired(gone, host)
    if not want.target.replicas and is_ours(host.read(config_file(want.layout)) or ""):
        yield Remove(config_file(want.layout))


def _single(want: Wanted, host: Host, process: MainProcess | None) -> Iterator[Change]:
    change = _due(handle(want.layout, want.target), want, host, process)
    if change:
        yield change


def _due(member: Member, want: Wanted, host: Host, process: MainProcess | None) -> Change | None:
    """The process has to make way when it was started from another unit; only keys are handed to it as it runs.

    What is still starting may put other keys there after us, and the watcher asks with the probe key that it was
    started with: then only a restart helps.
    """
    keys = frozenset((key.name, key.digest) for key in want.target.keys)
    if process is None or want.former:
        return Restart(member.name)
    can_take = process.is_up and not any(name == PROBE for name, _ in process.keys ^ keys)
    if process.digest != process_digest(want.target, want.layout, member.number):
        can_wait = can_take and want.target.settings.hold > 0 and not want.target.engine.image
        can_wait = can_wait and process.has_door == bool(member.number)
        return Handover(member.name) if can_wait and hands_over(host, member) else Restart(member.name)
    if process.keys != keys:
        return TakeKeys(want.layout) if can_take else Restart(member.name)
    if _is_unread(member, want, host):
        return Run(("systemctl", "daemon-reload"), tr("make systemd read the unit"))
    return None


def _is_unread(member: Member, want: Wanted, host: Host) -> bool:
    """Whether systemd would start another unit than the one that runs: of a change that came no further than that."""
    file = render(want.target, want.layout)[member.path]
    loaded = unit_properties(host, member.name, "NeedDaemonReload").get("NeedDaemonReload")
    return loaded == "yes" or host.read(member.path) != file.text or host.mode(member.path) != file.mode


# Behind a gateway


def _behind_a_gateway(want: Wanted, host: Host, front: MainProcess | None) -> Iterator[Change]:
    everyone = members(want.layout, want.target)
    if front is None or want.former:
        yield Restart(want.layout.unit_name, along=tuple(member.name for member in everyone))
    elif front.is_gateway:
        yield from _rolled(want, host, everyone)
        yield from _gateway(want, host, front)
    else:
        yield from _put_before(want, host, front, everyone)


def _put_before(want: Wanted, host: Host, engine: MainProcess, everyone: tuple[Member, ...]) -> Iterator[Change]:
    """The gateway takes the engine's place when those serve that have room beside it; the others follow."""
    gateway = handle(want.layout, want.target)
    first = [member for member in everyone if _has_room(member, want, engine)]
    for member in first:
        if _due(member, want, host, running_process(host, member)):
            yield Renew(want, member, Restart(member.name))
    yield Renew(want, gateway, Restart(gateway.name, alone=True))
    yield from (Renew(want, member, Restart(member.name)) for member in everyone if member not in first)


def _has_room(member: Member, want: Wanted, engine: MainProcess) -> bool:
    """Whether it can start while the single engine runs: on other GPUs, or on the processor if it is not the last."""
    if want.target.engine.kind == "cpu":
        return member.number < len(want.target.replicas)
    mine = {gpu.uuid for replica in want.target.replicas if replica.number == member.number for gpu in replica.gpus}
    return bool(mine and engine.gpus) and mine.isdisjoint(engine.gpus)


def _rolled(want: Wanted, host: Host, everyone: tuple[Member, ...]) -> Iterator[Change]:
    """One member after the other, those that serve last; keys are handed to all of them at once.

    One that failed is back before the next makes way for the undoing, and one that was left out comes back.
    """
    seen, processes = _seen(want, host), {member: running_process(host, member) for member in everyone}
    due = {member: _due(member, want, host, process) for member, process in processes.items()}
    anew = {member: change for member, change in due.items() if isinstance(change, Restart | Handover)}
    yield from (Undrain(member) for member in everyone if member not in anew and _is_out(member, seen))
    for member in sorted(anew, key=lambda member: _serves(member, processes[member], seen)):
        yield from _renewed(member, want, anew[member], seen)
    yield from dict.fromkeys(change for change in due.values() if isinstance(change, TakeKeys | Run))


def _renewed(
    member: Member, want: Wanted, how: Restart | Handover, seen: Mapping[int, MemberState]
) -> Iterator[Change]:
    """The only one is handed over, if it can be, while callers wait; of several one is missed by nobody."""
    waits = isinstance(how, Handover) and len(want.target.replicas) == 1
    is_out = _is_out(member, seen)
    drains = member.number in seen and not is_out and not waits
    if drains:
        yield Drain(member, want.target.settings.drain)
    yield Renew(want, member, how if waits else Restart(member.name))
    if is_out or drains:
        yield Undrain(member)


def _seen(want: Wanted, host: Host) -> Mapping[int, MemberState]:
    """The members that the gateway knows, as far as it can be asked."""
    try:
        return haproxy.state(host, want.layout).members
    except NoGateway:
        return {}


def _is_out(member: Member, seen: Mapping[int, MemberState]) -> bool:
    """Left out of the balance, as by a change that failed or was cut off."""
    return member.number in seen and seen[member.number].is_out


def _serves(member: Member, process: MainProcess | None, seen: Mapping[int, MemberState]) -> bool:
    """Whether somebody would miss it: it is up, and the gateway asks it, or cannot say."""
    return process is not None and process.is_up and (member.number not in seen or seen[member.number].is_up)


def _gateway(want: Wanted, host: Host, front: MainProcess) -> Iterator[Change]:
    """Started anew where its unit differs, while callers wait; told of members that came, or before some go."""
    layout = want.layout
    if front.digest != process_digest(want.target, layout):
        yield Renew(want, handle(layout, want.target), Restart(layout.unit_name, alone=True))
    elif not _has_read(want, host):
        yield ReloadGateway(layout)


def _has_read(want: Wanted, host: Host) -> bool:
    """Whether systemd and HAProxy go by what is wanted: it lies there, and they have read it since."""
    layout, files = want.layout, render(want.target, want.layout)
    config = config_file(layout)
    lies = all(host.read(path) == files[path].text for path in (config, layout.unit))
    return lies and haproxy.has_read(host, layout, config) and not _is_unread(handle(layout), want, host)


def _retired(gone: list[Member], host: Host) -> Iterator[Change]:
    for member in gone:
        yield Run(("systemctl", "stop", member.name), tr("stop {unit}", unit=member.name))
        if host.exists(door := member.layout.door(member.number)):
            yield Remove(door)
        if host.exists(member.drop_ins):
            yield Remove(member.drop_ins, only_if_empty=True)
        yield Remove(member.path)  # last: by it a rerun knows of the others
    if gone:
        yield Run(("systemctl", "daemon-reload"), tr("make systemd forget the unit"))
