"""What is wrong with a service, root cause first: each finding with the line that shows it and the command that helps.

The order of CHECKS is the order of causes: what is found further up explains what is found further down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from installer.diagnosis import doctor_files as files
from installer.diagnosis import doctor_host as below
from installer.diagnosis import doctor_running as running
from installer.diagnosis.finding import FAULT, Finding
from installer.engine import engines
from installer.errors import InstallError
from installer.language import tr
from installer.look.scene import Scene

Check = Callable[[Scene], Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("systemd", below.check_systemd),
    ("the GPU's driver", below.check_driver),
    ("device nodes", below.check_nodes),
    ("disks", below.check_disks),
    ("the record of the service", files.check_record),
    ("the service's user", files.check_account),
    ("the unit", files.check_unit),
    ("drop-ins", files.check_dropins),
    ("the engine", files.check_engine),
    ("the probe key", files.check_probe_key),
    ("settings", files.check_settings),
    ("the model", files.check_weights),
    ("keys", files.check_keys),
    ("the port", running.check_port),
    ("the kernel's log", below.check_kernel),
    ("the journal", running.check_journal),
    ("the host", below.check_fitness),
    ("changes to the unit", files.check_unit_edited),
    ("unfinished changes", files.check_history),
    ("files beside the unit", files.check_files),
)
AFTERWARDS: tuple[tuple[str, Check], ...] = (("the service", running.check_state),)
NOTES: tuple[tuple[str, Check], ...] = (
    ("what systemd has loaded", running.check_manager),
    ("restarts", running.check_restarts),
    ("slowness", running.check_slowness),
    ("load", running.check_load),
    ("the firewall", below.check_firewall),
    ("room for upgrades", below.check_space),
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
    if [finding.id for finding in found.findings if finding.severity == FAULT] != ["service-failed"]:
        return found
    deeper = _run((("the engine's packages", _check_import),), scene)
    return replace(found, findings=_in_order((*deeper.findings, *found.findings)))


def cause(scene: Scene) -> Finding | None:
    """Why a service does not serve, without the checks that take seconds."""
    found = _run((*CHECKS, *AFTERWARDS), scene).findings
    return next((finding for finding in found if finding.severity == FAULT), None)


def _run(checks: tuple[tuple[str, Check], ...], scene: Scene) -> Diagnosis:
    """What cannot be looked at is said, and keeps nothing else from being looked at."""
    found: list[Finding] = []
    unseen = [] if scene.is_root else ["not run as root: keys in force, other users' processes, answers of the model"]
    for name, check in checks:
        try:
            found.extend(check(scene))
        except InstallError as error:
            unseen.append(f"{name}: {error.message}")
        except OSError as error:
            unseen.append(f"{name}: {error.strerror or error} {error.filename or ''}".rstrip())
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
