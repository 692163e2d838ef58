"""What is wrong with a service, root cause first: each finding with the line that shows it and the command that helps.

The order of CHECKS is the order of causes: what is found further up explains what is found further down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from installer.base.errors import InstallError
from installer.base.language import mark, tr
from installer.diagnosis import doctor_files as files
from installer.diagnosis import doctor_host as below
from installer.diagnosis import doctor_running as running
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.forms.venv import engines

Check = Callable[[Scene], Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    (mark("systemd"), below.check_systemd),
    (mark("the GPU's driver"), below.check_driver),
    (mark("device nodes"), below.check_nodes),
    (mark("the GPUs it was given"), below.check_gpus),
    (mark("disks"), below.check_disks),
    (mark("the record of the service"), files.check_record),
    (mark("the service's user"), files.check_account),
    (mark("drop-ins"), files.check_dropins),
    (mark("the unit"), files.check_unit),
    (mark("the engine"), files.check_engine),
    (mark("the probe key"), files.check_probe_key),
    (mark("settings"), files.check_settings),
    (mark("the model"), files.check_weights),
    (mark("keys"), files.check_keys),
    (mark("the port"), running.check_port),
    (mark("the kernel's log"), below.check_kernel),
    (mark("the journal"), running.check_journal),
    (mark("the host"), below.check_fitness),
    (mark("changes to the unit"), files.check_unit_edited),
    (mark("unfinished changes"), files.check_history),
    (mark("files beside the unit"), files.check_files),
)
AFTERWARDS: tuple[tuple[str, Check], ...] = ((mark("the service"), running.check_state),)
NOTES: tuple[tuple[str, Check], ...] = (
    (mark("what systemd has loaded"), running.check_manager),
    (mark("restarts"), running.check_restarts),
    (mark("slowness"), running.check_slowness),
    (mark("load"), running.check_load),
    (mark("the firewall"), below.check_firewall),
    (mark("room for upgrades"), below.check_space),
    (mark("the CUDA toolkit"), below.check_toolkit),
)


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
    if [finding.id for finding in found.findings if finding.severity == FAULT] != ["service-failed"]:
        return found
    deeper = _run(((mark("the engine's packages"), _check_import),), scene)
    return replace(found, findings=_in_order((*deeper.findings, *found.findings)))


def cause(scene: Scene) -> Finding | None:
    """Why a service does not serve, without the checks that take seconds; none while a change makes it so."""
    if scene.under_way:
        return None
    found = _run((*CHECKS, *AFTERWARDS), scene).findings
    return next((finding for finding in found if finding.severity == FAULT), None)


def _run(checks: tuple[tuple[str, Check], ...], scene: Scene) -> Diagnosis:
    """What cannot be looked at is said, and keeps nothing else from being looked at."""
    found: list[Finding] = []
    unseen: list[str] = []
    if not scene.is_root:
        unseen.append(tr("not run as root: keys in force, other users' processes, answers of the model"))
    for name, check in checks:
        try:
            found.extend(check(scene))
        except InstallError as error:
            unseen.append(tr("{what}: {why}", what=tr(name), why=error.message))
        except OSError as error:
            why = f"{error.strerror or error} {error.filename or ''}".rstrip()
            unseen.append(tr("{what}: {why}", what=tr(name), why=why))
    return Diagnosis(scene.service, _in_order(found), tuple(dict.fromkeys(unseen)))


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each once, the faults first; that the service failed is said only where nothing says why."""
    found: dict[str, Finding] = {}
    for finding in findings:
        found.setdefault(finding.id, finding)
    if len([each for each in found.values() if each.severity == FAULT]) > 1:
        found.pop("service-failed", None)
    return tuple(sorted(found.values(), key=lambda finding: finding.severity != FAULT))


def _check_import(scene: Scene) -> Iterator[Finding]:
    """Seconds of processor time: only where the service is down for a reason that is still unknown."""
    state = scene.state
    if not scene.has_failed or not scene.is_root or state is None or state.proved is None:
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
