"""Whether a service that was changed is worse than before: what a look at it sees, and what is made of that."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from installer.base.host import Host
from installer.base.language import english, tr
from installer.base.layout import Layout
from installer.families.vllm.requests import read_requests
from installer.spec.settings import Settings
from installer.spec.soak import Requests, Soak
from installer.spec.vendors import VENDORS
from installer.units.api import Api, NoAnswer, local_address
from installer.units.custody import Custody
from installer.units.graph import handle
from installer.units.systemd import unit_properties

ANSWER_WITHIN = 5.0
# So few requests that failed are no rate, and so much more often than before is worse.
FEW, TIMES, MORE = 10, 2.0, 0.02
LOOKED_AT = ("ActiveState", "SubState", "Result", "ExecMainStatus", "InvocationID", "MainPID", "NRestarts")


@dataclass(frozen=True)
class Seen:
    boot: str
    at: float  # seconds of CLOCK_BOOTTIME
    active: str
    sub: str
    result: str
    status: str  # how the main process ended
    run: str
    pid: int
    restarts: int  # by systemd itself, since somebody started it
    requests: Requests | None
    kernel: str
    driver: str


def observe(host: Host, layout: Layout, settings: Settings) -> Seen:
    shown = unit_properties(host, handle(layout).name, *LOOKED_AT)
    active = shown.get("ActiveState", "")
    return Seen(
        boot=host.word(Path("/proc/sys/kernel/random/boot_id")),
        at=time.clock_gettime(time.CLOCK_BOOTTIME),
        active=active,
        sub=shown.get("SubState", ""),
        result=shown.get("Result", ""),
        status=shown.get("ExecMainStatus", ""),
        run=shown.get("InvocationID", ""),
        pid=int(shown.get("MainPID") or 0),
        restarts=int(shown.get("NRestarts") or 0),
        requests=answered(host, layout, settings) if active == "active" else None,
        kernel=host.word(Path("/proc/sys/kernel/osrelease")),
        driver=_driver(host),
    )


def _driver(host: Host) -> str:
    """As it names itself, on its first line."""
    said = (host.word(Path(vendor.driver)) for vendor in VENDORS if vendor.driver)
    return ", ".join(text.splitlines()[0] for text in said if text)


def answered(host: Host, layout: Layout, settings: Settings) -> Requests | None:
    """As the service counts; None where it does not say."""
    custody = Custody(host, handle(layout).name, layout.user)
    api = Api(local_address(settings.host), settings.port, host.word(layout.probe_key), ANSWER_WITHIN, custody)
    try:
        answer = api.ask("GET", "/metrics")
    except NoAnswer:
        return None
    return read_requests(answer.body.decode(errors="replace")) if answer.status == 200 else None


def begun(what: str, seconds: int, since: str, before: Requests | None, seen: Seen) -> Soak:
    return Soak(
        what=what, seconds=seconds, since=since, boot=seen.boot, at=seen.at, run=seen.run, pid=seen.pid,
        before=before or Requests(), counted=seen.requests or Requests(), kernel=seen.kernel, driver=seen.driver,
    )  # fmt: skip


def looked(soak: Soak, seen: Seen) -> Soak:
    """What is known after this look. The time in which the service or the host is down does not count."""
    passed = seen.at - soak.at if seen.boot == soak.boot and seen.active == "active" else 0.0
    new = _new_requests(soak, seen)
    return replace(
        soak, boot=seen.boot, at=seen.at, watched=soak.watched + passed,
        run=seen.run if seen.active == "active" else soak.run, pid=seen.pid, counted=seen.requests or soak.counted,
        after=Requests(soak.after.answered + new.answered, soak.after.failed + new.failed),
        kernel=seen.kernel, driver=seen.driver, notes=(*soak.notes, *_changed(soak, seen)),
    )  # fmt: skip


def _new_requests(soak: Soak, seen: Seen) -> Requests:
    """Another process counts from nothing."""
    if seen.requests is None:
        return Requests()
    old = soak.counted if seen.pid == soak.pid and seen.boot == soak.boot else Requests()
    answered, failed = seen.requests.answered - old.answered, seen.requests.failed - old.failed
    return seen.requests if min(answered, failed) < 0 else Requests(answered, failed)


def _changed(soak: Soak, seen: Seen) -> list[str]:
    """What may be to blame beside the change; in English, as the record has it."""
    notes = []
    if seen.kernel != soak.kernel:
        notes.append(tr("the kernel changed from {before} to {now}", before=soak.kernel, now=seen.kernel))
    if seen.driver != soak.driver:
        before, now = soak.driver or tr("none"), seen.driver or tr("none")
        notes.append(tr("the GPU driver changed from {before} to {now}", before=before, now=now))
    return [english(note) for note in notes]


def fault(soak: Soak, seen: Seen) -> str:
    """Why the change is to go back, of a soak before this look; "" where nothing speaks against it.

    Who restarts the service by hand, or the host, did not say that it is bad: systemd counts its own restarts only, and
    begins anew with each start by somebody else.
    """
    if seen.active == "failed":
        return tr("it does not run any more ({result}, exit status {status})", result=seen.result, status=seen.status)
    if seen.sub == "auto-restart" or (seen.restarts > 0 and seen.run != soak.run):
        return tr("it ended by itself, and systemd had to start it again")
    now = looked(soak, seen).after
    if now.failed >= FEW and now.share > TIMES * soak.before.share + MORE:
        return tr(
            "{failed} of {answered} requests failed, {share}; before the change it was {before}",
            failed=now.failed, answered=now.answered, share=f"{now.share:.0%}", before=f"{soak.before.share:.0%}",
        )  # fmt: skip
    return ""
