"""One service on one screen, readable without root; and the list of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from installer.host import Host
from installer.layout import Layout
from installer.report import size
from installer.state import Event, State, managed, services
from installer.steps import unit_properties, wants_link


@dataclass(frozen=True)
class Status:
    service: str
    active: str
    stage: str
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
    address: str | None
    keys: tuple[str, ...]
    pending: str | None
    last_change: Event | None


def status(service: str, host: Host) -> Status:
    layout = Layout(service)
    return _status(layout, managed(host, layout), host)


def all_services(host: Host) -> list[Status]:
    return [status(service, host) for service in services(host)]


def _status(layout: Layout, state: State, host: Host) -> Status:
    shown = unit_properties(
        host, layout.unit_name,
        "ActiveState", "SubState", "StatusText", "ActiveEnterTimestamp", "MainPID", "NRestarts", "MemoryCurrent",
    )  # fmt: skip
    memory = shown.get("MemoryCurrent", "")
    target = state.proved
    settings = target.settings if target else None
    return Status(
        service=layout.service,
        active=f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', '')})",
        stage=shown.get("StatusText", ""),
        since=shown.get("ActiveEnterTimestamp", ""),
        pid=int(shown.get("MainPID") or 0),
        restarts=int(shown.get("NRestarts") or 0),
        memory=int(memory) if memory.isdigit() else None,
        enabled=host.exists(wants_link(layout)),
        model=target.model.id if target else None,
        commit=target.model.commit if target else None,
        engine=target.engine.kind if target else None,
        vllm_version=target.engine.vllm_version if target else None,
        context=settings.max_model_len if settings else None,
        address=f"http://{settings.host}:{settings.port}" if settings else None,
        keys=tuple(f"{key.name} ({key.digest[:8]}…)" for key in target.keys) if target else (),
        pending=state.pending,
        last_change=state.history[-1] if state.history else None,
    )


def lines(status: Status) -> list[tuple[str, str]]:
    """The screen, as label and text."""
    last = status.last_change
    return [
        ("service", f"{status.service}: {status.active}" + (f", {status.stage}" if status.stage else "")),
        ("since", f"{status.since or '-'}; restarts by systemd: {status.restarts}; pid {status.pid or '-'}"),
        ("at boot", "started" if status.enabled else "not started"),
        ("model", f"{status.model or '-'}" + (f" at {status.commit[:12]}" if status.commit else "")),
        ("engine", f"vLLM {status.vllm_version} ({status.engine})" if status.engine else "-"),
        ("context", f"{status.context} tokens" if status.context else "chosen by vLLM"),
        ("listens on", status.address or "-"),
        ("memory", size(status.memory) if status.memory else "-"),
        ("keys", ", ".join(status.keys) or "-"),
        ("last change", f"{last.when} {last.what}: {last.outcome}" if last else "-"),
        *([("unfinished", f"{status.pending} was cut off; run it again")] if status.pending else []),
    ]
