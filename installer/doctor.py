"""What is wrong with a service, root cause first: each finding with the line that shows it and the command that helps.

The order of CHECKS is the order of causes: what is found further up explains what is found further down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from installer import doctor_files as files
from installer import doctor_host as below
from installer import doctor_running as running
from installer import engines
from installer.errors import InstallError
from installer.finding import FAULT, Finding
from installer.scene import Scene

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
    return _diagnose(scene, (*CHECKS, *AFTERWARDS, *NOTES))


def cause(scene: Scene) -> Finding | None:
    """Why a service does not serve, without the checks that take seconds."""
    found = _diagnose(scene, CHECKS).findings
    return next((finding for finding in found if finding.severity == FAULT), None)


def _diagnose(scene: Scene, checks: tuple[tuple[str, Check], ...]) -> Diagnosis:
    found: dict[str, Finding] = {}
    unseen = [] if scene.is_root else ["not run as root: keys in force, other users' processes, answers of the model"]
    for name, check in checks:
        try:
            for finding in check(scene):
                found.setdefault(finding.id, finding)
        except InstallError as error:
            unseen.append(f"{name}: {error.message}")
        except OSError as error:
            unseen.append(f"{name}: {error.strerror or error} {error.filename or ''}".rstrip())
    faults = [finding for finding in found.values() if finding.severity == FAULT]
    if [finding.id for finding in faults] == ["service-failed"]:
        found = {finding.id: finding for finding in (*_check_import(scene), *found.values())}
    elif len(faults) > 1:
        found.pop("service-failed", None)  # the others say why
    ordered = sorted(found.values(), key=lambda finding: finding.severity != FAULT)
    return Diagnosis(scene.service, tuple(ordered), tuple(dict.fromkeys(unseen)))


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
                "the engine cannot be imported",
                why.splitlines()[-1],
                (f"sudo rm -r {scene.layout.engines / engine.id} && {scene.deploy}",),
            )
