"""One service as it is now, looked at without root as far as that goes; and all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.checks.placement import chosen_by_hand
from installer.checks.tenants import visible_devices
from installer.diagnosis import doctor, scene
from installer.diagnosis.finding import Finding
from installer.diagnosis.scene import Scene
from installer.look import load
from installer.look import soak as soaking
from installer.look.load import GpuUse, Sample
from installer.look.soak import SoakView
from installer.spec.group import load_group
from installer.spec.keys import Key
from installer.spec.model import Model
from installer.spec.records import services
from installer.spec.settings import Settings
from installer.spec.state import Event
from installer.spec.target import Target
from installer.spec.toolkit import Toolkit
from installer.units.api import local_address
from installer.units.graph import handle
from installer.units.holding import Holding
from installer.units.keyring import unit_keys

SHOWN_CHANGES = 5


@dataclass(frozen=True)
class MemberStatus:
    """One of several replicas behind a gateway."""

    number: int
    unit: str
    active: str
    ready: bool
    stage: str
    holding: Holding | None  # needs root
    since: str
    pid: int
    restarts: int
    memory: int | None
    address: str
    gpus: tuple[str, ...]  # their uuids
    gpus_by_hand: str | None  # what an admin set for it, which wins over our choice
    gateway: str | None  # needs root: what the gateway holds it for, UP or another word of HAProxy's
    load: Sample | None  # needs root


@dataclass(frozen=True)
class GroupView:
    """This host among those that serve one model together."""

    hosts: tuple[str, ...]  # by their addresses, the head first
    names: tuple[str, ...]  # by which they are reached over ssh, in the same order; none where it was set up by hand
    rank: int
    complete: bool | None  # needs root
    stage: str | None  # needs root: what it waits for
    lost: str | None  # needs root: why all had to start anew the last time

    @property
    def words(self) -> str:
        """All of them in a line."""
        head, *others = self.names or self.hosts
        return tr("one model on {head} (head), {others}", head=head, others=", ".join(others))


@dataclass(frozen=True)
class Status:
    """What docs/status-schema.json describes; a program may rely on these names."""

    service: str
    active: str
    ready: bool
    stage: str
    holding: Holding | None  # needs root: callers who wait until it serves
    problem: Finding | None  # why it does not serve, as far as that can be told at once
    since: str
    pid: int
    restarts: int
    memory: int | None
    enabled: bool
    model: str | None
    commit: str | None
    adapters: tuple[str, ...]  # by the names that clients ask for, with commit or directory
    engine: str | None
    engine_family: str | None
    vllm_version: str | None
    toolkit: Toolkit | None  # of a CUDA engine
    context: int | None
    kv_tokens: int | None
    address: str | None
    listening: bool
    gpus: tuple[GpuUse, ...]
    gpus_by_hand: str | None  # what an admin set, which wins over our choice
    load: Sample | None  # needs root: /metrics answers to a key only
    keys: tuple[str, ...]
    pending: str | None
    soak: SoakView | None  # of the last change, if it was made with --soak
    under_way: str | None  # the command that changes it now, with its pid
    under_way_for: int | None  # seconds
    last_changes: tuple[Event, ...]  # the newest first
    members: tuple[MemberStatus, ...]  # the replicas behind a gateway; none where the service is the engine itself
    group: GroupView | None  # of hosts that serve one model together

    @property
    def is_dead(self) -> bool:
        """As systemctl has it: what is on its way up or down is not; where systemd is not there nothing runs."""
        return self.active.partition(" ")[0] in ("inactive", "failed", "unknown")


def status(service: str, host: Host) -> Status:
    seen = scene.look(service, host)
    if seen.damage and not seen.state:
        raise seen.damage
    return of(seen)


def all_services(host: Host) -> list[Status]:
    """One whose record is damaged too: what is wrong stands as its problem."""
    return [of(scene.look(service, host)) for service in services(host)]


def of(scene: Scene) -> Status:
    state, shown, host = scene.state, scene.unit, scene.host
    target = state.proved if state else None
    settings = target.settings if target else None
    ready = scene.serves
    replicas = _members(scene)
    measured = load.together(each.load for each in replicas) if replicas else _measured(scene)
    calibration = state.calibration if state else None
    return Status(
        service=scene.service,
        active=_active(scene),
        ready=ready,
        stage=scene.stage,
        holding=scene.holding,
        problem=None if ready and not scene.damage else doctor.cause(scene),
        since=_since(scene),
        pid=int(shown.get("MainPID") or 0),
        restarts=int(shown.get("NRestarts") or 0),
        memory=_memory(*scene.parts),
        enabled=host.exists(handle(scene.layout).wants_link),
        model=target.model.id if target else None,
        commit=target.model.commit if target else None,
        adapters=tuple(f"{each.model.id}={_whence(each.model)}" for each in target.adapters) if target else (),
        engine=target.engine.kind if target else None,
        engine_family=target.engine.family if target else None,
        vllm_version=target.engine.vllm_version if target else None,
        toolkit=target.toolkit if target else None,
        context=settings.max_model_len if settings else None,
        kv_tokens=(measured.cache_tokens if measured else None)
        or (calibration.tokens * max(1, len(replicas)) if calibration else None),
        address=_address(settings) if settings else None,
        listening=scene.has_api and (ready or scene.holding is not None or bool(replicas)) and _listens(scene),
        gpus=load.gpus(host, target.engine.kind if target else None, target.gpus if target else ()),
        gpus_by_hand=_by_hand(scene, target),
        load=measured,
        keys=_keys(scene),
        pending=None if scene.under_way or not state else state.unfinished,
        soak=soaking.view(state.soak) if state and state.soak else None,
        under_way=scene.under_way.command if scene.under_way else None,
        under_way_for=scene.under_way.seconds if scene.under_way else None,
        last_changes=tuple(reversed(state.history[-SHOWN_CHANGES:])) if state else (),
        members=replicas,
        group=_group(scene, target),
    )


def _whence(model: Model) -> str:
    return f"{model.repo}@{model.commit}" if model.commit else str(model.path)


def _group(scene: Scene, target: Target | None) -> GroupView | None:
    if target is None or target.place is None:
        return None
    seen = next((part.standing for part in reversed(scene.parts) if part.standing), None)
    hosts, rank, names = target.settings.group_hosts, target.place.rank, _names(scene)
    if seen is None:
        return GroupView(hosts, names, rank, None, None, None)
    return GroupView(hosts, names, rank, not seen.waits, seen.stage or None, seen.lost or None)


def _names(scene: Scene) -> tuple[str, ...]:
    with suppress(InstallError, OSError):  # a record that cannot be read is what `hosts` says
        group = load_group(scene.host, scene.layout)
        return tuple(peer.name for peer in group.peers) if group else ()
    return ()


def _address(settings: Settings) -> str:
    return f"{'https' if settings.has_tls else 'http'}://{settings.host}:{settings.port}"


def _active(scene: Scene) -> str:
    return f"{scene.active} ({scene.unit.get('SubState', '')})" if scene.active else "unknown"


def _since(scene: Scene) -> str:
    return scene.unit.get("ActiveEnterTimestamp" if scene.serves else "StateChangeTimestamp", "")


def _memory(*parts: Scene) -> int | None:
    """Of all that systemd knows it of."""
    figures = [part.unit.get("MemoryCurrent", "") for part in parts]
    return sum(int(each) for each in figures if each.isdigit()) if any(map(str.isdigit, figures)) else None


def _measured(scene: Scene) -> Sample | None:
    can_be_asked = scene.serves and scene.has_api and scene.probe_key
    return load.sample(scene.api(load.ANSWER_WITHIN)) if can_be_asked else None


def _members(scene: Scene) -> tuple[MemberStatus, ...]:
    """All are asked at once: one that hangs is waited for as long as all of them."""
    if not scene.replicas:
        return ()
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(_member, scene.replicas))


def _member(scene: Scene) -> MemberStatus:
    gateway = scene.whole.gateway if scene.whole else None
    known = gateway.members.get(scene.number) if gateway else None
    proved = scene.state.proved if scene.state else None
    return MemberStatus(
        number=scene.number,
        unit=scene.member.name,
        active=_active(scene),
        ready=scene.serves,
        stage=scene.stage,
        holding=scene.holding,
        since=_since(scene),
        pid=int(scene.unit.get("MainPID") or 0),
        restarts=int(scene.unit.get("NRestarts") or 0),
        memory=_memory(scene),
        address=f"http://{scene.member.host}:{scene.member.port}",
        gpus=tuple(gpu.uuid for gpu in (proved.of(scene.number).gpus if proved else ())),
        gpus_by_hand=_by_hand(scene, proved),
        gateway=known.status if known else None,
        load=_measured(scene),
    )


def _by_hand(scene: Scene, target: Target | None) -> str | None:
    if target is None:
        return None
    chosen = chosen_by_hand(
        target.settings, visible_devices(scene.host, scene.layout, scene.number), target.engine.kind
    )
    return "=".join(chosen) if chosen else None


def _listens(scene: Scene) -> bool:
    """The service itself: somebody else on its port is nobody."""
    return not scene.custody.objection(local_address(scene.settings.host), scene.settings.port)


def _keys(scene: Scene) -> tuple[str, ...]:
    """As the unit has them: that is their one source of truth."""
    try:
        held = unit_keys(scene.host, scene.layout)
    except InstallError as error:
        return (error.message,)
    return tuple(f"{k.name} ({k.digest[:8]}…)" + (_ending(k) if k.expiry else "") for k in held)


def _ending(key: Key) -> str:
    return tr(" expired at {time}", time=key.expiry) if key.is_over else tr(" until {expiry}", expiry=key.expiry)
