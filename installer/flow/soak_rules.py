"""Whether a service that was changed is worse than before: what a look at it sees, and what is made of that."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from installer.base.host import Host
from installer.base.language import english, tr
from installer.base.layout import Layout
from installer.families.known import family_counting
from installer.spec.soak import Look, Requests, Soak
from installer.spec.target import Target
from installer.spec.vendors import VENDORS
from installer.units.api import Api, NoAnswer, local_address
from installer.units.custody import Custody
from installer.units.graph import Member, handle, members
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
    replicas: tuple[Seen, ...] = ()  # those behind a gateway, of which the rest is said then

    @property
    def is_up(self) -> bool:
        return self.active == "active" and (not self.replicas or any(replica.is_up for replica in self.replicas))


def observe(host: Host, layout: Layout, target: Target) -> Seen:
    if not target.replicas:
        return _observe(host, handle(layout, target))
    replicas = tuple(_observe(host, member) for member in members(layout, target))
    return replace(_observe(host, handle(layout)), replicas=replicas)


def _observe(host: Host, unit: Member) -> Seen:
    shown = unit_properties(host, unit.name, *LOOKED_AT)
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
        requests=_answered(host, unit) if active == "active" and unit.port else None,
        kernel=host.word(Path("/proc/sys/kernel/osrelease")),
        driver=_driver(host),
    )


def _driver(host: Host) -> str:
    """As it names itself, on its first line."""
    said = (host.word(Path(vendor.driver)) for vendor in VENDORS if vendor.driver)
    return ", ".join(text.splitlines()[0] for text in said if text)


def answered(host: Host, layout: Layout, target: Target) -> Requests | None:
    """As the service counts, or its replicas together; None where it does not say."""
    found = [said for member in members(layout, target) if (said := _answered(host, member))]
    return _sum(found) if found else None


def _sum(parts: Iterable[Requests]) -> Requests:
    counts = [(part.answered, part.failed) for part in parts]
    return Requests(sum(answered for answered, _ in counts), sum(failed for _, failed in counts))


def _answered(host: Host, unit: Member) -> Requests | None:
    custody = Custody(host, unit.name, unit.layout.user)
    api = Api(local_address(unit.host), unit.port, host.word(unit.layout.probe_key), ANSWER_WITHIN, custody)
    try:
        answer = api.ask("GET", "/metrics")
    except NoAnswer:
        return None
    text = answer.body.decode(errors="replace")
    return family_counting(text).metrics.requests(text) if answer.status == 200 else None


def begun(what: str, seconds: int, since: str, before: Requests | None, seen: Seen) -> Soak:
    return Soak(
        what=what, seconds=seconds, since=since, boot=seen.boot, at=seen.at, run=seen.run, pid=seen.pid,
        before=before or Requests(), counted=seen.requests or Requests(), kernel=seen.kernel, driver=seen.driver,
        replicas=tuple(Look(each.run, each.pid, each.requests or Requests()) for each in seen.replicas),
    )  # fmt: skip


def looked(soak: Soak, seen: Seen) -> Soak:
    """What is known after this look. The time in which the service or the host is down does not count."""
    passed = seen.at - soak.at if seen.boot == soak.boot and seen.is_up else 0.0
    same_boot = seen.boot == soak.boot
    of_all: list[tuple[Soak | Look, Seen]] = [(soak, seen), *zip(soak.replicas, seen.replicas, strict=False)]
    new = [_new_requests(before, now, same_boot=same_boot) for before, now in of_all]
    return replace(
        soak, boot=seen.boot, at=seen.at, watched=soak.watched + passed,
        run=seen.run if seen.active == "active" else soak.run, pid=seen.pid, counted=seen.requests or soak.counted,
        after=_sum([soak.after, *new]),
        kernel=seen.kernel, driver=seen.driver, notes=(*soak.notes, *_changed(soak, seen)),
        replicas=tuple(_look(before, now) for before, now in zip(soak.replicas, seen.replicas, strict=False)),
    )  # fmt: skip


def _look(before: Look, now: Seen) -> Look:
    return Look(now.run if now.active == "active" else before.run, now.pid, now.requests or before.counted)


def _new_requests(before: Soak | Look, seen: Seen, *, same_boot: bool) -> Requests:
    """Another process counts from nothing."""
    if seen.requests is None:
        return Requests()
    old = before.counted if seen.pid == before.pid and same_boot else Requests()
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
    if why := ended(soak, seen)[1]:
        return why
    now = looked(soak, seen).after
    if now.failed >= FEW and now.share > TIMES * soak.before.share + MORE:
        return tr(
            "{failed} of {answered} requests failed, {share}; before the change it was {before}",
            failed=now.failed, answered=now.answered, share=f"{now.share:.0%}", before=f"{soak.before.share:.0%}",
        )  # fmt: skip
    return ""


def ended(soak: Soak, seen: Seen) -> tuple[int, str]:
    """Which ended by itself, a replica by its number or 0 for the unit that people type, and how; or no words."""
    if why := _how_it_ended(soak, seen):
        return 0, why
    for number, (before, now) in enumerate(zip(soak.replicas, seen.replicas, strict=False), 1):
        if why := _how_it_ended(before, now):
            return number, tr("replica {number}: {why}", number=number, why=why)
    return 0, ""


def _how_it_ended(before: Soak | Look, seen: Seen) -> str:
    if seen.active == "failed":
        return tr("it does not run any more ({result}, exit status {status})", result=seen.result, status=seen.status)
    if seen.sub == "auto-restart" or (seen.restarts > 0 and seen.run != before.run):
        return tr("it ended by itself, and systemd had to start it again")
    return ""
