"""One service on one screen, readable without root; and the list of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from installer.diagnosis import doctor
from installer.diagnosis.finding import Finding
from installer.errors import InstallError
from installer.host import Host
from installer.look import load, scene
from installer.look.load import GpuUse, Sample
from installer.look.scene import Scene
from installer.report import size
from installer.state import Event, services
from installer.steps import unit_keys, wants_link

SHOWN_CHANGES = 5


@dataclass(frozen=True)
class Status:
    """What docs/status-schema.json describes; a program may rely on these names."""

    service: str
    active: str
    ready: bool
    stage: str
    problem: Finding | None  # why it does not serve, as far as that can be told at once
    since: str
    pid: int
    restarts: int
    memory: int | None
    enabled: bool
    model: str | None
    commit: str | None
    engine: str | None
    vllm_version: str | None
    context: int | None
    kv_tokens: int | None
    address: str | None
    listening: bool
    gpus: tuple[GpuUse, ...]
    load: Sample | None  # needs root: /metrics answers to a key only
    keys: tuple[str, ...]
    pending: str | None
    last_changes: tuple[Event, ...]  # the newest first


def status(service: str, host: Host) -> Status:
    return of(scene.look(service, host))


def all_services(host: Host) -> list[Status]:
    return [status(service, host) for service in services(host)]


def of(scene: Scene) -> Status:
    if scene.damage:
        raise scene.damage
    state, shown, host = scene.state, scene.unit, scene.host
    target = state.proved if state else None
    settings = target.settings if target else None
    memory = shown.get("MemoryCurrent", "")
    ready = scene.active == "active"
    measured = load.sample(scene.api(load.ANSWER_WITHIN)) if ready and scene.probe_key else None
    calibration = state.calibration if state else None
    return Status(
        service=scene.service,
        active=f"{scene.active or 'unknown'} ({shown.get('SubState', '')})",
        ready=ready,
        stage=shown.get("StatusText", ""),
        problem=None if ready else doctor.cause(scene),
        since=shown.get("ActiveEnterTimestamp", ""),
        pid=int(shown.get("MainPID") or 0),
        restarts=int(shown.get("NRestarts") or 0),
        memory=int(memory) if memory.isdigit() else None,
        enabled=host.exists(wants_link(scene.layout)),
        model=target.model.id if target else None,
        commit=target.model.commit if target else None,
        engine=target.engine.kind if target else None,
        vllm_version=target.engine.vllm_version if target else None,
        context=settings.max_model_len if settings else None,
        kv_tokens=(measured.cache_tokens if measured else None) or (calibration.tokens if calibration else None),
        address=f"http://{settings.host}:{settings.port}" if settings else None,
        listening=ready and _listens(scene),
        gpus=load.gpus(host, target.engine.kind if target else None),
        load=measured,
        keys=_keys(scene),
        pending=state.pending if state else None,
        last_changes=tuple(reversed(state.history[-SHOWN_CHANGES:])) if state else (),
    )


def _listens(scene: Scene) -> bool:
    from installer.checks.processes import listener

    return listener(scene.host, scene.settings.host, scene.settings.port) is not None


def _keys(scene: Scene) -> tuple[str, ...]:
    """As the unit has them: that is their one source of truth."""
    try:
        held = unit_keys(scene.host, scene.layout)
    except InstallError as error:
        return (error.message,)
    return tuple(f"{k.name} ({k.digest[:8]}…)" + (f" until {k.expiry}" if k.expiry else "") for k in held)


def lines(status: Status) -> list[tuple[str, str]]:
    """The screen, as label and text."""
    problem = status.problem
    return [
        ("service", f"{status.service}: {status.active}" + (f", {status.stage}" if status.stage else "")),
        *([("because", problem.cause), ("seen", problem.evidence), ("do", problem.commands[0])] if problem else []),
        ("since", f"{status.since or '-'}; restarts by systemd: {status.restarts}; pid {status.pid or '-'}"),
        ("at boot", "started" if status.enabled else "not started"),
        ("model", f"{status.model or '-'}" + (f" at {status.commit[:12]}" if status.commit else "")),
        ("engine", f"vLLM {status.vllm_version} ({status.engine})" if status.engine else "-"),
        ("context", f"{status.context} tokens" if status.context else "chosen by vLLM"),
        ("KV cache", f"{status.kv_tokens} tokens" if status.kv_tokens else "-"),
        ("listens on", f"{status.address or '-'}" + ("" if status.listening else " (nobody listens)")),
        ("memory", size(status.memory) if status.memory else "-"),
        *((f"GPU {number}", gpu_line(gpu)) for number, gpu in enumerate(status.gpus)),
        *([("load", load_line(status.load))] if status.load else []),
        ("keys", ", ".join(status.keys) or "-"),
        *_change_lines(status.last_changes),
        *([("unfinished", f"{status.pending} was cut off; run it again")] if status.pending else []),
    ]


def _change_lines(changes: tuple[Event, ...]) -> list[tuple[str, str]]:
    shown = [f"{change.when} {change.who}: {change.what}: {change.outcome}" for change in changes]
    return [("" if number else "changes", line) for number, line in enumerate(shown or ["-"])]


def gpu_line(gpu: GpuUse) -> str:
    busy = f", {gpu.busy} % busy" if gpu.busy is not None else ""
    return f"{gpu.name}: {size(gpu.memory_used)} of {size(gpu.memory_total)}{busy}"


def load_line(load: Sample) -> str:
    figures = [
        f"{load.running:g} running" if load.running is not None else "",
        f"{load.waiting:g} waiting" if load.waiting is not None else "",
        f"cache {load.cache_used:.0%} full" if load.cache_used is not None else "",
    ]
    return ", ".join(filter(None, figures)) or "-"
