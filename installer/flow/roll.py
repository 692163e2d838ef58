"""Changes of one member while the others serve: it leaves the balance, is changed and proved, and comes back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from installer.base.changes import Change, Handover, Restart
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.flow.prove import Apart, NotProved
from installer.flow.wanted import Wanted
from installer.units import haproxy, keyring
from installer.units.graph import Member
from installer.units.haproxy import NoGateway

GRACE = 5  # seconds more than a member takes to finish what it answers, before it is ended by a restart


@dataclass(frozen=True)
class Drain:
    """The gateway sends it nothing new; what it answers is finished, or cut off by the restart as at any stop."""

    member: Member
    seconds: int

    def describe(self) -> str:
        return tr("let {unit} finish its answers, while the others take the requests", unit=self.member.name)

    def to_json(self) -> dict[str, object]:
        return {"kind": "drain", "unit": self.member.name, "seconds": self.seconds}

    def apply(self, host: Host, report: Report) -> None:
        try:
            left = haproxy.drain(host, self.member.layout, self.member.number, self.seconds + GRACE)
        except NoGateway as error:  # without it nobody asks the member, and a stop finishes what was begun
            report.warn(str(error))
            return
        if left:
            report.warn(tr("{unit} still answers {count} requests", unit=self.member.name, count=left))


@dataclass(frozen=True)
class Undrain:
    """The gateway asks it again, and sees that it is up: only then is it the next one's turn."""

    member: Member

    def describe(self) -> str:
        return tr("let the gateway ask {unit} again", unit=self.member.name)

    def to_json(self) -> dict[str, object]:
        return {"kind": "undrain", "unit": self.member.name}

    def apply(self, host: Host, report: Report) -> None:
        try:
            is_up = haproxy.ready(host, self.member.layout, self.member.number)
        except NoGateway as error:  # one that starts anew asks everybody, and is asked by the proof in the end
            report.warn(str(error))
            return
        if not is_up:
            raise NotProved(
                tr("{unit} serves, but the gateway does not see it", unit=self.member.name),
                f"journalctl -u {self.member.layout.unit_name} -n 50",
            )


@dataclass(frozen=True)
class Renew:
    """Start a unit anew, and see by itself that it serves before anything else is changed."""

    want: Wanted
    member: Member
    how: Restart | Handover

    @property
    def is_gateway(self) -> bool:
        return bool(self.want.target.replicas) and not self.member.number

    def describe(self) -> str:
        return tr("{change}, and see that it serves", change=self.how.describe())

    def to_json(self) -> dict[str, object]:
        return {**self.how.to_json(), "proved": True}

    def apply(self, host: Host, report: Report) -> None:
        back = self.want.is_way_back
        start = prove.started_by([self.how], host, is_first=self.want.is_first, is_way_back=back)
        self.how.apply(host, report)
        if self.is_gateway:  # which holds whoever asks until a member is up
            prove.wait_until_ready(self.member, host, report, start)
        else:
            self._see_it_serves(host, report, start)
        if start.since:
            keys_of_now(host, self.want.layout, report)

    def _see_it_serves(self, host: Host, report: Report, start: prove.Start) -> None:
        try:
            prove.serves(self.want, self.member, host, report, start)
        except Apart:
            if not start.is_way_back:
                raise


@dataclass(frozen=True)
class ReloadGateway:
    """New requests go by the configuration on disk; those under way are not touched. Garbage is refused."""

    layout: Layout

    def describe(self) -> str:
        return tr("let the gateway read its configuration")

    def to_json(self) -> dict[str, object]:
        return {"kind": "reload", "unit": self.layout.unit_name}

    def apply(self, host: Host, report: Report) -> None:
        host.systemctl("daemon-reload")
        host.systemctl("reload", "--job-mode=ignore-dependencies", self.layout.unit_name)


def keys_of_now(host: Host, layout: Layout, report: Report) -> None:
    """A handover puts those keys into force that the unit had when it began; one may have been revoked since."""
    with keyring.locked(host, layout, report):
        asked = keyring.in_force(keyring.held_in_unit(host, layout))
        if any(keyring.live_keys(host, unit.run_dir) != asked for unit in keyring.key_units(host, layout)):
            keyring.PutInForce(layout).put(host)


def without_handover(change: Change) -> Change | None:
    """The same by a restart, where it was a handover."""
    if isinstance(change, Handover):
        return Restart(change.unit)
    if isinstance(change, Renew) and isinstance(change.how, Handover):
        return dataclasses.replace(change, how=Restart(change.how.unit))
    return None
