"""What systemd, the record and the disks say of each service, as rows: what vLLM says of itself it says on /metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from installer.base.layout import USAGE, Layout
from installer.checks.facts import probe_disk
from installer.diagnosis.scene import Scene
from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row
from installer.runtime import vllm_certificate
from installer.spec.state import State
from installer.units.gateway import certificate_files
from installer.units.keyring import unit_keys
from installer.units.systemd import unit_properties

P = "vllm_install_"
ENGINE = (
    Family(f"{P}active", "1 while systemd holds the unit of an engine for active."),
    Family(f"{P}ready", "1 while the engine serves."),
    Family(f"{P}result", "How the last run of the unit ended, in systemd's word."),
    Family(f"{P}restarts_total", "Restarts of the unit by systemd since it was started by hand.", "counter"),
    Family(f"{P}starting_seconds", "How long the present start has taken; 0 where none is under way."),
    Family(f"{P}start_limit_seconds", "How long a start may take."),
    Family(f"{P}waiting_callers", "Callers who wait until the engine serves."),
    Family(f"{P}watchdog_age_seconds", "Since when the watcher of the engine has said nothing."),
)
WHOLE = (
    Family(f"{P}service_info", "A service: its model, and the engine that serves it."),
    Family(f"{P}members", "Engines of a service."),
    Family(f"{P}members_up", "Engines of a service that serve."),
    Family(f"{P}fallback", "1 while another server answers in the place of a service; only where one is named."),
    Family(f"{P}changed_timestamp_seconds", "When a service was changed last, and how."),
    Family(f"{P}rolled_back_timestamp_seconds", "When a change of a service was taken back last."),
    Family(
        f"{P}key_expires_timestamp_seconds",
        "When a key ends; only of those that do, and not of old ones that are kept for a while.",
    ),
    Family(f"{P}certificate_expires_timestamp_seconds", "When the certificate of a service ends."),
)
DISKS = (
    Family(f"{P}disk_free_bytes", "What is free where weights, engines and usage lie."),
    Family(f"{P}disk_size_bytes", "The size of that file system."),
)
SPANS = {"y": 31557600, "month": 2629800, "w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 0.001}
CLOCKS = ("TimeoutStartUSec", "InactiveExitTimestampMonotonic", "WatchdogTimestampMonotonic")


def of_service(moment: Moment) -> Iterator[Row]:
    """Of one that its record cannot be read for: what systemd knows."""
    scene = moment.services[0]
    engines = scene.replicas or (scene,)
    for engine in engines:
        yield from _engine(engine)
    yield from _whole(scene, engines)
    if scene.state:
        yield from _changes(scene.service, scene.state)
    yield from _ends(scene)


def _engine(scene: Scene) -> Iterator[Row]:
    labels = {"service": scene.service, "member": str(scene.number)}
    shown = scene.unit | unit_properties(scene.host, scene.member.name, *CLOCKS)
    yield Row(f"{P}active", labels, scene.active in ("active", "reloading"))
    yield Row(f"{P}ready", labels, scene.serves)
    if result := shown.get("Result"):
        yield Row(f"{P}result", {**labels, "result": result}, 1)
    yield Row(f"{P}restarts_total", labels, int(shown.get("NRestarts") or 0))
    yield Row(f"{P}starting_seconds", labels, _starting(scene, shown.get(CLOCKS[1], "")))
    if (limit := seconds(shown.get(CLOCKS[0], ""))) is not None:
        yield Row(f"{P}start_limit_seconds", labels, limit)
    yield Row(f"{P}waiting_callers", labels, scene.holding.waiting if scene.holding else 0)
    if scene.serves and (age := _age(shown.get(CLOCKS[2], ""))) is not None:
        yield Row(f"{P}watchdog_age_seconds", labels, age)


def _starting(scene: Scene, began: str) -> float:
    if scene.holding:
        return float(scene.holding.longest)
    return (_age(began) or 0.0) if scene.active == "activating" else 0.0


def _age(monotonic: str) -> float | None:
    """Of a moment that systemd names in microseconds since the boot; 0 is none."""
    told = int(monotonic) if monotonic.isdecimal() else 0
    return max(0.0, time.clock_gettime(time.CLOCK_MONOTONIC) - told / 1e6) if told else None


def seconds(span: str) -> float | None:
    """As systemd writes a span; None where there is no end."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(month|min|ms|y|w|d|h|s)", span)
    return sum(float(number) * SPANS[unit] for number, unit in parts) if parts else None


def _whole(scene: Scene, engines: tuple[Scene, ...]) -> Iterator[Row]:
    labels = {"service": scene.service}
    up = sum(engine.serves for engine in engines)
    yield Row(f"{P}members", labels, len(engines))
    yield Row(f"{P}members_up", labels, up)
    proved = scene.state.proved if scene.state else None
    if proved is None:
        return
    form = "replicas" if proved.replicas else "sole"
    about = {"model": proved.settings.model_id, "engine": proved.engine.kind, "form": form}
    yield Row(f"{P}service_info", labels | about, 1)
    if proved.settings.fallback_url:
        yield Row(f"{P}fallback", labels, not up)


def _changes(service: str, state: State) -> Iterator[Row]:
    for event in state.history[-1:]:
        yield Row(f"{P}changed_timestamp_seconds", {"service": service, "how": event.what}, at(event.when))
    back = [event for event in state.history if event.was_taken_back]
    for event in back[-1:]:
        yield Row(f"{P}rolled_back_timestamp_seconds", {"service": service}, at(event.when))


def at(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()


def _ends(scene: Scene) -> Iterator[Row]:
    """Keys and certificates; last, for what others wrote is read for them."""
    for key in unit_keys(scene.host, scene.layout):
        if key.expiry and not key.is_grace:
            labels = {"service": scene.service, "key": key.name}
            yield Row(f"{P}key_expires_timestamp_seconds", labels, at(key.expiry))
    if files := certificate_files(scene.settings, scene.layout):
        yield _certificate(scene, files)


def _certificate(scene: Scene, files: tuple[Path, Path]) -> Row:
    """One that cannot serve today has ended, whenever that was."""
    name, labels = f"{P}certificate_expires_timestamp_seconds", {"service": scene.service}
    try:
        found = vllm_certificate.look(*(str(scene.host.at(path)) for path in files))
    except vllm_certificate.Unfit as unfit:
        return Row(name, labels, 0, note=str(unfit))
    return Row(name, labels, found.expires)


def of_disks(moment: Moment) -> Iterator[Row]:
    any_service = Layout("any")
    for what, path in (("weights", any_service.hub), ("engines", any_service.opt), ("usage", USAGE)):
        disk = probe_disk(moment.host, path)
        yield Row(f"{P}disk_free_bytes", {"what": what}, disk.free)
        yield Row(f"{P}disk_size_bytes", {"what": what}, disk.total)


SERVICES = Source("services", (*ENGINE, *WHOLE), of_service, each=True)
HOST = Source("disks", DISKS, of_disks)
