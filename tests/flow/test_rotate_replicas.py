"""Keys of a service with replicas: in force on all of them or on none, whatever each of them is at just then."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.report import Report
from installer.flow import prove, roll, rotate, transaction
from installer.flow.prove import NotProved, Silent
from installer.flow.rotate import Rotated, Rotation
from installer.flow.steps import Wanted
from installer.spec import keys
from installer.spec.keys import Key, digest
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Replica
from installer.units import keyring
from installer.units.graph import Member, handle, members
from installer.units.holding import Holding
from installer.units.render import unit, with_keys
from tests.flow import test_transaction
from tests.flow.test_transaction import LAYOUT, REPORT, record
from tests.kit.targets import KEYS, PROBE_KEY, target

host = test_transaction.host
MADE = dataclasses.replace(
    target(dataclasses.replace(Settings(), replicas=2), kind="cpu"), replicas=(Replica(1, 8101), Replica(2, 8102))
)
ONE, TWO = members(LAYOUT, MADE)
GATEWAY = handle(LAYOUT, MADE)
GATEWAY_TEXT = "[Service]\nExecStart=/usr/bin/python3 /opt/vllm-install/runtime/x/vllm_gateway.py run --port 8000\n"
UP, DOWN = {"MainPID": "1", "ActiveState": "active"}, {"MainPID": "0", "ActiveState": "inactive"}
STARTING = {"MainPID": "1", "ActiveState": "activating"}
GUEST = digest("sk-guest-7d1c0b52a9-Qm3XzTg")


@dataclasses.dataclass
class Service:
    """Two replicas behind a gateway: what each does, how each answers, and who was asked."""

    host: Host
    does: dict[str, dict[str, str]]
    faults: dict[str, Exception] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)
    opened: list[str | None] = dataclasses.field(default_factory=list)  # with which key, beside the probe's
    held: dict[str, Holding] = dataclasses.field(default_factory=dict)

    def shows(self, host: Host, name: str, *properties: str) -> dict[str, str]:
        """As systemd, what it is asked for."""
        return {each: self.does[name][each] for each in properties}

    def keys_in_force(self, want: Wanted, host: Host, accepted: str | None, doors: list[Member]) -> None:
        assert want.probe_key == PROBE_KEY
        for door in doors:
            self.opened.append(accepted)
            self.asked.append(door.name)
            if door.name in self.faults:
                raise self.faults[door.name]

    def set_guest(self) -> str:
        shown: list[Rotated] = []
        rotation = Rotation("guest", "sk-guest-7d1c0b52a9-Qm3XzTg")
        rotate.set_key(LAYOUT.service, rotation, self.host, REPORT, shown.append)
        return shown[0].service

    def revoke_guest(self) -> None:
        rotate.revoke_key(LAYOUT.service, "guest", self.host, REPORT)

    def held_by(self, member: Member) -> set[str]:
        """The keys of its unit; those in force with it are the same, if it has any."""
        unit = {key.digest for key in keyring.keys_in(self.host.read(member.path) or "")}
        if (text := self.host.read(member.run_dir / "keys")) is not None:
            assert {line.split()[2] for line in text.splitlines()} == unit
        return unit

    def knows_guest(self) -> bool:
        """All that there is of it agrees."""
        proved = record(self.host).proved
        assert proved is not None
        held = {key.digest for key in proved.keys}
        assert all(self.held_by(member) == held for member in (ONE, TWO) if self.host.exists(member.path))
        assert record(self.host).rekeying is None
        return GUEST in held


@pytest.fixture
def service(host: Host, monkeypatch: pytest.MonkeyPatch) -> Service:
    for member in (ONE, TWO):
        host.write(member.path, unit(MADE, LAYOUT, member.number))
        host.make_dir(member.run_dir)
    host.write(GATEWAY.path, GATEWAY_TEXT)
    host.make_dir(GATEWAY.run_dir)
    host.write(LAYOUT.probe_key, f"{PROBE_KEY}\n")
    owned = {str(each.path): ("0",) for each in (ONE, TWO, GATEWAY)}
    save_state(host, LAYOUT, State(LAYOUT.service, owned, proved=MADE))
    service = Service(host, {each.name: UP for each in (ONE, TWO, GATEWAY)})
    monkeypatch.setattr(rotate, "unit_properties", service.shows)
    monkeypatch.setattr(rotate, "holding", lambda _, member: service.held.get(member.name))
    monkeypatch.setattr(prove, "keys_in_force", service.keys_in_force)
    return service


def test_a_key_is_set_and_revoked_on_all(service: Service) -> None:
    assert service.set_guest() == rotate.SERVES
    assert service.knows_guest()
    assert service.asked == [ONE.name, TWO.name, GATEWAY.name], "each directly, then as clients do"
    assert service.opened == ["sk-guest-7d1c0b52a9-Qm3XzTg"] * 3
    service.opened.clear()
    service.revoke_guest()
    assert service.opened == [None] * 3
    assert not service.knows_guest()
    assert service.host.read(GATEWAY.path) == GATEWAY_TEXT
    assert service.host.children(GATEWAY.run_dir) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_replica_that_is_down_takes_the_keys_at_its_next_start(service: Service, is_there: bool) -> None:
    service.does[ONE.name] = DOWN
    if not is_there:
        service.host.remove(ONE.run_dir)
    assert service.set_guest() == rotate.SERVES
    assert service.knows_guest()
    assert service.asked == [TWO.name, GATEWAY.name]


def test_a_replica_that_starts_or_drains_has_them_before_it_answers(service: Service) -> None:
    service.does[ONE.name] = STARTING
    assert service.set_guest() == rotate.SERVES
    assert service.knows_guest()
    assert ONE.name not in service.asked
    service.does[ONE.name] = {"MainPID": "1", "ActiveState": "deactivating"}
    service.revoke_guest()
    assert not service.knows_guest()


@pytest.mark.parametrize(
    ("one", "two", "outcome"),
    [(DOWN, DOWN, rotate.STOPPED), (STARTING, STARTING, rotate.STARTS), (STARTING, DOWN, rotate.STARTS)],
)
def test_where_none_serves_none_is_asked(
    service: Service, one: dict[str, str], two: dict[str, str], outcome: str
) -> None:
    service.does |= {ONE.name: one, TWO.name: two}
    assert service.set_guest() == outcome
    assert service.knows_guest()
    assert service.asked == []


@pytest.mark.parametrize("which", [ONE, TWO, GATEWAY])
def test_a_new_key_that_one_does_not_prove_goes_from_all(service: Service, which: Member) -> None:
    service.faults[which.name] = Silent("no answer within 10 s")
    with pytest.raises(InstallError, match="no answer within 10 s; the keys are as they were"):
        service.set_guest()
    assert not service.knows_guest()


@pytest.mark.parametrize("which", [ONE, TWO, GATEWAY])
def test_a_revocation_stays_on_all_where_one_says_nothing(service: Service, which: Member) -> None:
    service.set_guest()
    service.asked.clear()
    service.faults[which.name] = Silent("no answer within 10 s")
    with pytest.raises(NotProved, match="keys revoke guest is in force and stays so"):
        service.revoke_guest()
    assert not service.knows_guest()
    assert {ONE.name, TWO.name} <= set(service.asked), "who is silent keeps nobody else from being asked"


def test_one_that_does_not_heed_it_counts_more_than_one_that_is_silent(service: Service) -> None:
    service.set_guest()
    service.faults |= {ONE.name: Silent("no answer"), TWO.name: NotProved("200 instead of 401")}
    with pytest.raises(InstallError, match="200 instead of 401; the keys are as they were"):
        service.revoke_guest()
    assert service.knows_guest()


def test_one_whose_engine_ended_as_it_was_asked_says_nothing_of_the_others(service: Service) -> None:
    service.faults[ONE.name] = Silent("no answer")
    holds = iter([None, Holding(1, 0, 1)])
    service.held = Ending(holds)
    assert service.set_guest() == rotate.SERVES
    assert service.knows_guest()


class Ending(dict[str, Holding]):
    """The first replica serves when it is looked at first, and holds its callers from then on."""

    def __init__(self, holds: object) -> None:
        super().__init__()
        self.holds = holds

    def get(self, name: str, default: object = None) -> Holding | None:  # type: ignore[override]
        return next(self.holds) if name == ONE.name else None  # type: ignore[call-overload]


def test_a_launcher_that_may_bring_the_old_keys_is_waited_for_and_else_all_go_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.does[TWO.name] = {"MainPID": "7", "ActiveState": "activating"}
    service.host.write(Path("/proc/7/cmdline"), "python\0/opt/vllm_launcher.py\0launch")
    monkeypatch.setattr(rotate, "TAKES_UP", 0)
    with pytest.raises(InstallError, match=r"qwen3vl@2\.service did not take the new keys; the keys are as they were"):
        service.set_guest()
    assert not service.knows_guest()
    service.host.remove(Path("/proc/7"))
    service.set_guest()
    service.host.write(Path("/proc/7/cmdline"), "python\0/opt/vllm_launcher.py\0launch")
    with pytest.raises(InstallError, match=r"did not take the new keys; the keys are as they were"):
        service.revoke_guest()


@pytest.mark.parametrize(("gateway", "runs"), [("failed", False), ("activating", False), ("reloading", True)])
def test_without_a_gateway_that_runs_they_are_proved_directly(service: Service, gateway: str, runs: bool) -> None:
    service.does[GATEWAY.name] = {"ActiveState": gateway}
    assert service.set_guest() == rotate.SERVES
    assert service.asked == [ONE.name, TWO.name, *([GATEWAY.name] if runs else [])]


def test_while_a_change_is_under_way_nobody_is_asked(service: Service) -> None:
    with transaction.changing(LAYOUT, "set-context 1024", service.host):
        assert service.set_guest() == rotate.STARTS
    assert service.knows_guest()
    assert service.asked == []


def test_while_one_engine_becomes_two_the_old_one_has_the_keys_as_well(service: Service) -> None:
    """Its unit is the gateway's already, its process goes on to the end of what it has begun."""
    service.host.write(LAYOUT.run_dir / "keys", f"default inference {KEYS[0].digest} -\n")
    service.set_guest()
    assert GUEST in (service.host.read(LAYOUT.run_dir / "keys") or "")
    now = keyring.unit_keys(service.host, LAYOUT)
    service.host.write(GATEWAY.path, with_keys(unit(dataclasses.replace(MADE, replicas=()), LAYOUT), now))
    service.revoke_guest()
    assert GUEST not in (service.host.read(LAYOUT.run_dir / "keys") or "")
    assert {key.digest for key in keyring.keys_in(service.host.read(GATEWAY.path) or "")} == service.held_by(ONE)


def test_the_one_that_was_handed_over_with_other_keys_gets_those_of_now(service: Service) -> None:
    service.set_guest()
    service.host.write(TWO.run_dir / "keys", f"default inference {KEYS[0].digest} -\n")
    roll.keys_of_now(service.host, LAYOUT, REPORT)
    assert service.knows_guest()


def test_one_that_somebody_edited_gets_what_the_first_has(service: Service) -> None:
    stale = (*KEYS, Key("leaked", digest("sk-leaked")))
    service.host.write(TWO.path, with_keys(service.host.read(TWO.path) or "", stale))
    service.set_guest()
    assert service.knows_guest()


def test_what_others_made_of_that_name_is_not_touched(service: Service) -> None:
    theirs = unit(MADE, LAYOUT, 2)
    service.host.write(Path("/etc/systemd/system/qwen3vl@7.service"), theirs)
    service.host.write(Path("/run/qwen3vl@7/keys"), "theirs")
    service.set_guest()
    assert service.host.read(Path("/etc/systemd/system/qwen3vl@7.service")) == theirs
    assert service.host.read(Path("/run/qwen3vl@7/keys")) == "theirs"


@pytest.mark.parametrize("how_far", [0, 1, 2, 3])
def test_a_change_that_was_cut_off_is_undone_on_all(service: Service, how_far: int) -> None:
    service.host.at(TWO.path).chmod(0o600)
    change = rotating(service)
    change.claim()
    transaction.apply(list(change.changes)[:how_far], service.host, REPORT)
    with keyring.locked(service.host, LAYOUT, Report()) as state:
        assert state is not None
        assert state.rekeying is None
    assert not service.knows_guest()
    assert service.host.mode(TWO.path) == 0o600


def rotating(service: Service) -> rotate._Rekeying:
    def edit(held: tuple[Key, ...]) -> tuple[Key, ...]:
        return keys.in_order([*held, Key("guest", GUEST)])

    return rotate._Rekeying(rotate._Edits("set-apikey guest", edit, edit), LAYOUT, service.host, REPORT)


def test_a_leaked_key_goes_also_where_a_unit_is_gone(service: Service) -> None:
    service.set_guest()
    service.host.remove(ONE.path)
    service.revoke_guest()
    assert GUEST not in service.held_by(TWO)
    service.host.remove(TWO.path)
    with pytest.raises(Refused, match=r"qwen3vl@1\.service is not there"):
        service.set_guest()


def test_a_replica_whose_unit_is_gone_and_that_runs_on_loses_it_too(service: Service) -> None:
    service.set_guest()
    service.host.remove(ONE.path)
    service.revoke_guest()
    assert GUEST not in (service.host.read(ONE.run_dir / "keys") or "")
