"""What is wrong with a service, root cause first: each finding with the line that shows it and the command that helps.

The order of CHECKS is the order of causes: what is found further up explains what is found further down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from installer.base.errors import InstallError
from installer.base.language import mark, tr
from installer.diagnosis import doctor_files as files
from installer.diagnosis import doctor_gateway as gateway
from installer.diagnosis import doctor_gpus as gpus
from installer.diagnosis import doctor_host as below
from installer.diagnosis import doctor_monitor as monitor
from installer.diagnosis import doctor_running as running
from installer.diagnosis import doctor_settings as settings
from installer.diagnosis import doctor_unit as unit
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.forms.venv import engines

Check = Callable[[Scene], Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    (mark("systemd"), below.check_systemd),
    (mark("the GPU's driver"), below.check_driver),
    (mark("device nodes"), below.check_nodes),
    (mark("the state of the GPUs"), gpus.check_state),
    (mark("the GPUs it was given"), below.check_gpus),
    (mark("the GPUs it was given"), below.check_choice),
    (mark("disks"), below.check_disks),
    (mark("the gateway"), below.check_haproxy),
    (mark("the record of the service"), files.check_record),
    (mark("the service's user"), files.check_account),
    (mark("drop-ins"), unit.check_dropins),
    (mark("the unit"), unit.check_unit),
    (mark("the engine"), files.check_engine),
    (mark("the engine"), files.check_runtime),
    (mark("the probe key"), files.check_probe_key),
    (mark("settings"), settings.check_settings),
    (mark("the model"), files.check_weights),
    (mark("keys"), settings.check_keys),
    (mark("keys"), settings.check_same_keys),
    (mark("the port"), running.check_port),
    (mark("the kernel's log"), gpus.check_kernel),
    (mark("the kernel's log"), below.check_kernel),
    (mark("the journal"), running.check_journal),
    (mark("the host"), below.check_fitness),
    (mark("changes to the unit"), unit.check_unit_edited),
    (mark("unfinished changes"), files.check_history),
    (mark("files beside the unit"), files.check_files),
)
AFTERWARDS: tuple[tuple[str, Check], ...] = (
    (mark("the service"), running.check_state),
    (mark("the gateway"), gateway.check_gateway),
    (mark("the gateway"), gateway.check_replica),
    (mark("the gateway"), gateway.check_others),
    (mark("the gateway"), gateway.check_certificate),
)
NOTES: tuple[tuple[str, Check], ...] = (
    (mark("what systemd has loaded"), running.check_manager),
    (mark("restarts"), running.check_restarts),
    (mark("slowness"), running.check_slowness),
    (mark("disks"), below.check_low),
    (mark("what Prometheus reads"), monitor.check_scrape_key),
    (mark("what Prometheus reads"), monitor.check_figures),
    (mark("whoever is told"), monitor.check_telling),
    (mark("load"), running.check_load),
    (mark("the watcher"), monitor.check_watcher),
    (mark("targets"), monitor.check_targets),
    (mark("refused requests"), monitor.check_refusals),
    (mark("the firewall"), below.check_firewall),
    (mark("room for upgrades"), below.check_space),
    (mark("known flaws"), files.check_advisories),
    (mark("the CUDA toolkit"), below.check_toolkit),
)
# Of a service with replicas these look at each unit, and those at each that has an engine; the others at the whole.
OF_EACH_UNIT = (
    unit.check_dropins, unit.check_unit, unit.check_unit_edited, running.check_port, running.check_journal,
    running.check_state, running.check_manager, running.check_restarts,
)  # fmt: skip
OF_EACH_ENGINE = (
    below.check_choice, files.check_runtime, gateway.check_replica, running.check_slowness, running.check_load,
    monitor.check_watcher, monitor.check_targets,
)  # fmt: skip
FAILED = "service-failed"
NO_CAUSE = (FAILED, "gateway-", "replica-")  # how findings are called that explain no unit's failure


@dataclass(frozen=True)
class Diagnosis:
    service: str
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...]  # what could not be looked at, and why

    @property
    def is_healthy(self) -> bool:
        return not any(finding.severity == FAULT for finding in self.findings)


def diagnose(scene: Scene) -> Diagnosis:
    found = _run((*CHECKS, *AFTERWARDS, *NOTES), scene)
    if scene.under_way:
        return replace(found, findings=tuple(replace(finding, severity=NOTE) for finding in found.findings))
    if {finding.id for finding in found.findings if finding.severity == FAULT} != {FAILED}:
        return found
    deeper = _run(((mark("the engine's packages"), _check_import),), scene).findings
    others = [finding for finding in found.findings if not deeper or finding.id != FAILED]
    return replace(found, findings=_in_order((*deeper, *others)))


def cause(scene: Scene) -> Finding | None:
    """Why a service does not serve, without the checks that take seconds; none while a change makes it so."""
    if scene.under_way:
        return None
    found = _run((*CHECKS, *AFTERWARDS), scene).findings
    return next((finding for finding in found if finding.severity == FAULT), None)


def _run(checks: tuple[tuple[str, Check], ...], scene: Scene) -> Diagnosis:
    """What cannot be looked at is said, and keeps nothing else from being looked at."""
    found: dict[tuple[int, str], Finding] = {}
    unseen: list[str] = []
    if not scene.is_root:
        unseen.append(tr("not run as root: keys in force, other users' processes, answers of the model"))
    for name, check, part in ((name, each, part) for name, each in checks for part in _parts(each, scene)):
        try:
            for finding in check(part):
                found.setdefault((part.number, finding.id), _of(part, finding))
        except InstallError as error:
            unseen.append(tr("{what}: {why}", what=tr(name), why=error.message))
        except OSError as error:
            why = f"{error.strerror or error} {error.filename or ''}".rstrip()
            unseen.append(tr("{what}: {why}", what=tr(name), why=why))
    return Diagnosis(scene.service, _in_order(_causes(found)), tuple(dict.fromkeys(unseen)))


def _parts(check: Check, scene: Scene) -> tuple[Scene, ...]:
    if check in OF_EACH_UNIT:
        return scene.parts
    return (scene.replicas or (scene,)) if check in OF_EACH_ENGINE else (scene,)


def _of(part: Scene, finding: Finding) -> Finding:
    """Which replica it is about."""
    named = tr("{what}: {why}", what=part.member.stem, why=finding.cause)
    return replace(finding, cause=named) if part.number else finding


def _causes(found: dict[tuple[int, str], Finding]) -> list[Finding]:
    """That a unit failed is said only where nothing says why, of it or of the whole service."""
    explained = {
        number
        for (number, name), finding in found.items()
        if finding.severity == FAULT and not name.startswith(NO_CAUSE)
    }
    return [finding for (number, name), finding in found.items() if name != FAILED or not explained & {0, number}]


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The faults first."""
    return tuple(sorted(findings, key=lambda finding: finding.severity != FAULT))


def _check_import(scene: Scene) -> Iterator[Finding]:
    """Seconds of processor time: only where the service is down for a reason that is still unknown."""
    state = scene.state
    has_failed = any(part.has_failed for part in scene.parts)
    if not has_failed or not scene.is_root or state is None or state.proved is None:
        return
    engine = state.proved.engine
    if engines.is_complete(scene.host, scene.layout, engine.id):
        why = engines.import_error(engine, scene.host, scene.layout)
        if why:
            yield Finding(
                "import-failed",
                tr("the engine cannot be imported"),
                why.splitlines()[-1],
                (f"sudo rm -r {scene.layout.engines / engine.id} && {scene.deploy}",),
            )
