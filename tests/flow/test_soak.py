"""A change that is watched on: what counts as bad, and that a fault or a cut at any point leads to a proper end."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from installer.base.changes import Remove, Restart, Write
from installer.base.errors import Exit, InstallError, Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.flow import deploy, eject, prove, rotate, soak, soak_rules, steps, watched
from installer.flow.prove import NotProved
from installer.flow.rotate import Rotation
from installer.flow.soak_rules import Seen, fault, looked
from installer.flow.transaction import changing
from installer.flow.wanted import Wanted
from installer.flow.watched import Watched
from installer.spec.records import Damaged, load_state, save_state
from installer.spec.settings import Settings
from installer.spec.soak import BY_HAND, CONFIRMED, ENDED, ROLLED_BACK, STUCK, Requests, Soak
from installer.spec.state import State
from installer.spec.target import Replica, Target
from installer.units import soaking
from installer.units.custody import Custody
from installer.units.graph import Member
from tests.flow import test_transaction
from tests.flow.test_transaction import LAYOUT, REPORT, Proofs, deployed, files, record
from tests.kit.targets import PROBE_KEY, target, with_settings

host, proofs, want = test_transaction.host, test_transaction.proofs, test_transaction.want
UP = Seen("boot", 100.0, "active", "running", "success", "0", "run", 10, 0, Requests(5, 0), "6.1", "NVRM 580")
BEGUN = soak_rules.begun("upgrade", 60, "2026-01-02T03:04:05Z", Requests(1000, 10), UP)


def seen(**changed: object) -> Seen:
    return dataclasses.replace(UP, **changed)  # type: ignore[arg-type]


# What counts


def test_only_time_in_which_the_service_runs_counts() -> None:
    now = looked(BEGUN, seen(at=130.0))
    assert now.watched == 30.0
    now = looked(now, seen(at=150.0, active="activating"))
    assert (now.watched, now.at) == (30.0, 150.0)
    now = looked(now, seen(at=160.0))
    assert now.watched == 40.0
    assert looked(now, seen(at=165.0, active="inactive")).watched == 40.0


@pytest.mark.parametrize("at", [5.0, 160.0, 1e9])
def test_a_reboot_is_no_fault_and_the_time_before_the_first_look_does_not_count(at: float) -> None:
    """In a container the clock of another boot goes on, so that nothing can be made of it."""
    before = looked(BEGUN, seen(at=130.0))
    after = seen(boot="other", at=at, run="next", pid=4, requests=Requests(1, 0))
    assert fault(before, after) == ""
    now = looked(before, after)
    assert (now.watched, now.notes) == (30.0, ())
    assert looked(now, dataclasses.replace(after, at=at + 5)).watched == 35.0


def test_a_kernel_and_a_driver_that_changed_are_named_once() -> None:
    after = seen(boot="other", kernel="6.2", driver="")
    assert fault(BEGUN, after) == ""
    now = looked(looked(BEGUN, after), after)
    assert now.notes == (
        "the kernel changed from 6.1 to 6.2",
        "the GPU driver changed from NVRM 580 to none",
    )


@pytest.mark.parametrize(
    ("changed", "bad"),
    [
        ({}, False),
        ({"run": "other"}, False),  # by hand
        ({"run": "other", "restarts": 1}, True),
        ({"run": "other", "restarts": 1, "active": "activating"}, True),
        ({"restarts": 1}, False),  # before the change, by a run that a handover went on with
        ({"active": "activating", "sub": "auto-restart"}, True),
        ({"active": "activating", "run": "other"}, False),
        ({"active": "inactive", "sub": "dead", "pid": 0}, False),  # stopped by hand
        ({"active": "deactivating"}, False),
        ({"active": "failed", "result": "exit-code", "status": "78"}, True),
        ({"active": "failed", "result": "start-limit-hit"}, True),
        ({"boot": "other", "run": "other", "restarts": 1}, True),
        ({"boot": "other", "active": "failed", "run": ""}, True),
    ],
)
def test_which_ends_are_the_services_own(changed: dict[str, object], bad: bool) -> None:
    assert bool(fault(BEGUN, seen(**changed))) == bad


def test_a_restart_is_still_told_by_the_run_before_a_start_that_never_came_up() -> None:
    """Of which the run is another one already at the look before."""
    now = looked(BEGUN, seen(active="activating", run="other"))
    assert fault(now, seen(run="other", restarts=1, active="active"))


@pytest.mark.parametrize(
    ("before", "after", "bad"),
    [
        ((1000, 10), (100, 3), False),  # 3 % where it was 1 %, but of few
        ((1000, 10), (100, 9), False),
        ((1000, 10), (100, 10), True),
        ((1000, 10), (1000, 40), False),  # 4 % is no more than twice as often and 2 % more
        ((1000, 10), (1000, 41), True),
        ((1000, 300), (100, 60), False),  # it was like that before
        ((1000, 300), (100, 70), True),
        ((0, 0), (1000, 10), False),
        ((0, 0), (100, 10), True),
    ],
)
def test_how_many_failures_are_worse(before: tuple[int, int], after: tuple[int, int], bad: bool) -> None:
    soak = dataclasses.replace(BEGUN, before=Requests(*before), counted=Requests())
    assert bool(fault(soak, seen(requests=Requests(*after)))) == bad


def test_what_fails_is_told_with_both_rates() -> None:
    assert (
        fault(BEGUN, seen(requests=Requests(105, 50))) == "50 of 100 requests failed, 50%; before the change it was 1%"
    )


def test_another_process_counts_from_nothing() -> None:
    now = looked(BEGUN, seen(requests=Requests(25, 2)))
    assert now.after == Requests(20, 2)
    now = looked(now, seen(pid=11, requests=Requests(30, 5)))
    assert now.after == Requests(50, 7)
    now = looked(now, seen(pid=11, requests=None))
    assert now.after == Requests(50, 7)
    now = looked(now, seen(pid=11, requests=Requests(31, 5)))
    assert now.after == Requests(51, 7)
    assert looked(now, seen(pid=11, requests=Requests(3, 0))).after == Requests(54, 7), "its counters began anew"
    assert looked(now, seen(pid=11, boot="other", requests=Requests(40, 6))).after == Requests(91, 13)


# Replicas


TWO = (seen(run="a", pid=11, requests=Requests(5, 0)), seen(run="b", pid=12, requests=Requests(7, 1)))
BEHIND = seen(requests=None, replicas=TWO)
BOTH = soak_rules.begun("upgrade", 60, "2026-01-02T03:04:05Z", Requests(1000, 10), BEHIND)


def of_two(one: dict[str, object], two: dict[str, object], **changed: object) -> Seen:
    first, second = TWO
    replicas = (dataclasses.replace(first, **one), dataclasses.replace(second, **two))  # type: ignore[arg-type]
    return dataclasses.replace(BEHIND, replicas=replicas, **changed)  # type: ignore[arg-type]


def test_what_replicas_answer_is_added_up_each_from_where_it_was() -> None:
    now = looked(BOTH, of_two({"requests": Requests(25, 2)}, {"requests": Requests(9, 1)}))
    assert now.after == Requests(22, 2)
    now = looked(now, of_two({"pid": 21, "requests": Requests(3, 0)}, {"requests": Requests(10, 1)}))
    assert now.after == Requests(26, 2), "the one that was restarted counts from nothing"
    now = looked(now, of_two({"pid": 21, "requests": None}, {"requests": Requests(11, 2)}))
    assert now.after == Requests(27, 3)
    assert [look.counted for look in now.replicas] == [Requests(3, 0), Requests(11, 2)]


def test_rates_are_those_of_all_together() -> None:
    soak = dataclasses.replace(BOTH, before=Requests(1000, 10))
    assert fault(soak, of_two({"requests": Requests(65, 5)}, {"requests": Requests(67, 6)})) == (
        "10 of 120 requests failed, 8%; before the change it was 1%"
    )
    assert not fault(soak, of_two({"requests": Requests(65, 5)}, {"requests": Requests(667, 6)}))


@pytest.mark.parametrize(
    ("one", "two", "whole", "number"),
    [
        ({}, {}, {}, None),
        ({"run": "other"}, {}, {}, None),  # by hand
        ({}, {"run": "other", "restarts": 1}, {}, 2),
        ({"active": "failed", "result": "exit-code", "status": "1"}, {}, {}, 1),
        ({}, {"active": "activating", "sub": "auto-restart"}, {}, 2),
        ({"active": "inactive"}, {"active": "inactive"}, {"active": "inactive"}, None),
        ({}, {}, {"run": "other", "restarts": 1}, 0),  # the gateway itself
        ({}, {}, {"active": "failed"}, 0),
    ],
)
def test_an_end_of_any_of_them_is_one_of_the_service(
    one: dict[str, object], two: dict[str, object], whole: dict[str, object], number: int | None
) -> None:
    now = of_two(one, two, **whole)
    assert bool(fault(BOTH, now)) == (number is not None)
    if number is not None:
        assert soak_rules.ended(BOTH, now)[0] == number
        assert fault(BOTH, now).startswith(f"replica {number}: ") == (number > 0)


def test_time_counts_while_any_of_them_is_up() -> None:
    assert looked(BOTH, of_two({"active": "activating"}, {}, at=130.0)).watched == 30.0
    assert looked(BOTH, of_two({"active": "failed"}, {"active": "failed"}, at=130.0)).watched == 0.0
    assert looked(BOTH, of_two({}, {}, at=130.0, active="inactive")).watched == 0.0


def test_what_is_remembered_of_them_is_read_again(host: Host) -> None:
    save_state(host, LAYOUT, State(LAYOUT.service, soak=BOTH))
    assert state_of(host) == BOTH


def test_why_one_of_them_ended_stands_in_its_own_journal(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def failure(member: Member, host: Host, what: str, run: str) -> NotProved:
        asked.append((member.name, run))
        return NotProved(what)

    monkeypatch.setattr(prove, "failure", failure)
    save_state(host, LAYOUT, State(LAYOUT.service, soak=BOTH))
    bad = soak._judged(BOTH, of_two({}, {"active": "failed"}), host, LAYOUT, REPORT)
    assert asked == [("qwen3vl@2.service", "b")]
    assert bad is not None
    assert bad.bad.startswith("replica 2: it does not run any more")
    save_state(host, LAYOUT, State(LAYOUT.service, soak=BOTH))
    soak._judged(BOTH, dataclasses.replace(BEHIND, active="failed"), host, LAYOUT, REPORT)
    assert asked[1:] == [("qwen3vl.service", "run")]


def test_a_replica_that_only_starts_is_still_known_by_the_run_before() -> None:
    """By which it shows later that it was started again."""
    now = looked(BOTH, of_two({"run": "c", "pid": 3}, {"active": "activating", "run": "d", "pid": 4, "requests": None}))
    assert [(each.run, each.pid) for each in now.replicas] == [("c", 3), ("b", 4)]
    assert now.replicas[1].counted == BOTH.replicas[1].counted


def test_each_of_them_is_looked_at_where_it_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: list[tuple[str, int]] = []

    def said(host: Host, unit: Member) -> Requests:
        asked.append((unit.name, unit.port))
        return Requests(5, unit.number)

    monkeypatch.setattr(soak_rules, "_answered", said)
    monkeypatch.setattr(soak_rules, "unit_properties", lambda *_: {"ActiveState": "active", "MainPID": "7"})
    made = dataclasses.replace(target(), replicas=(Replica(1, 8101), Replica(2, 8102)))
    both = [("qwen3vl@1.service", 8101), ("qwen3vl@2.service", 8102)]
    seen = soak_rules.observe(host, LAYOUT, made)
    assert (seen.requests, [each.requests for each in seen.replicas]) == (None, [Requests(5, 1), Requests(5, 2)])
    assert asked == both, "not the gateway, through which one of them would answer for itself"
    assert soak_rules.answered(host, LAYOUT, made) == Requests(10, 3)
    assert soak_rules.observe(host, LAYOUT, target()).requests == Requests(5, 0)
    assert asked == [*both, *both, ("qwen3vl.service", 8000)]


COUNTED = 'http_requests_total{handler="/v1/x",status="2xx"} 97.0\nhttp_requests_total{status="5xx"} 3.0\n'


class Metrics(BaseHTTPRequestHandler):
    """A service as it counts; to the probe key alone."""

    said: tuple[int, str] = (200, COUNTED)

    def do_GET(self) -> None:
        is_known = (self.path, self.headers["Authorization"]) == ("/metrics", f"Bearer {PROBE_KEY}")
        status, text = self.said if is_known else (401, COUNTED)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


def test_a_look_sees_what_systemd_counts_and_what_the_service_counts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    shown = {"ActiveState": "active", "SubState": "running", "Result": "success", "ExecMainStatus": "9",
             "InvocationID": "run", "MainPID": "7", "NRestarts": "2"}  # fmt: skip
    custodies: list[tuple[str, str]] = []

    def custody(_: Host, unit: str, user: str) -> Custody:
        """This process stands for the unit's."""
        custodies.append((unit, user))
        return Custody(Host(), "")

    monkeypatch.setattr(soak_rules, "Custody", custody)
    monkeypatch.setattr(soak_rules, "unit_properties", lambda _, __, *asked: {name: shown[name] for name in asked})
    host.write(LAYOUT.probe_key, f"{PROBE_KEY}\n")
    host.write(Path("/proc/sys/kernel/random/boot_id"), "boot\n")
    host.write(Path("/proc/sys/kernel/osrelease"), "6.1\n")
    host.write(Path("/proc/driver/nvidia/version"), "NVRM 580\nGCC 12\n")
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = target(Settings(host="0.0.0.0", port=server.server_port))
        before, now = time.clock_gettime(time.CLOCK_BOOTTIME), soak_rules.observe(host, LAYOUT, made)
        assert before <= now.at <= time.clock_gettime(time.CLOCK_BOOTTIME)
        assert dataclasses.replace(now, at=100.0) == Seen(
            "boot", 100.0, "active", "running", "success", "9", "run", 7, 2, Requests(100, 3), "6.1", "NVRM 580"
        )
        assert soak_rules.answered(host, LAYOUT, made) == Requests(100, 3)
        monkeypatch.setattr(Metrics, "said", (503, COUNTED))
        assert soak_rules.observe(host, LAYOUT, made).requests is None
        shown["ActiveState"] = "deactivating"
        custodies.clear()
        assert (soak_rules.observe(host, LAYOUT, made).requests, custodies) == (None, []), "it is not asked any more"
        server.shutdown()
    assert soak_rules.answered(host, LAYOUT, made) is None
    assert custodies == [("qwen3vl.service", LAYOUT.user)]


# Changes


class Looks:
    """What each look sees; the last one goes on."""

    def __init__(self) -> None:
        self.next = [UP]

    def observe(self, host: Host, layout: Layout, target: Target) -> Seen:
        """What is proved, or about to be, of the service that is meant."""
        assert (layout, target.settings.service, host.exists(layout.state_file)) == (LAYOUT, LAYOUT.service, True)
        return self.next.pop(0) if len(self.next) > 1 else self.next[0]

    def answered(self, host: Host, layout: Layout, target: Target) -> Requests:
        """Of what serves before the change."""
        assert (layout, target) == (LAYOUT, record(host).proved)
        return Requests(1000, 10)


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr(soak_rules, "observe", looks.observe)
    monkeypatch.setattr(soak_rules, "answered", looks.answered)
    monkeypatch.setattr(soaking, "check_tool", lambda: None)
    return looks


def change(want: Wanted, host: Host, seconds: int = 60) -> Watched:
    """A change of files alone, and what watches it."""
    made = [change for change in steps.plan(want, host) if isinstance(change, Write)]
    made += [*watched.beginning(seconds, made, want, record(host)), Restart(LAYOUT.unit_name)]
    transaction = Watched("set PORT=8001", want, made, record(host), host, REPORT)
    transaction.seconds = seconds
    return transaction


@pytest.fixture
def before(host: Host, want: Wanted, proofs: Proofs) -> dict[str, str]:
    """A service that is watched since its port became 8001; what was there before."""
    before = deployed(want, host)
    change(with_settings(want, port=8001), host).run()
    return before


def state_of(host: Host) -> Soak:
    found = record(host).soak
    assert found is not None
    return found


def is_watched(host: Host) -> bool:
    return any(host.exists(path) for path in soaking.paths(LAYOUT))


def look(host: Host) -> None:
    soak.look("qwen3vl", host, REPORT)


def port(host: Host) -> int:
    proved = record(host).proved
    assert proved is not None
    return proved.settings.port


def test_what_is_watched_is_on_the_record(host: Host, before: dict[str, str]) -> None:
    begun = state_of(host)
    assert (begun.what, begun.seconds, begun.outcome) == ("set PORT=8001", 60, "")
    assert (begun.before, begun.counted, begun.run) == (Requests(1000, 10), Requests(5, 0), "run")
    assert (begun.boot, begun.kernel, begun.driver) == ("boot", "6.1", "NVRM 580")
    assert all(host.exists(path) for path in soaking.paths(LAYOUT))
    assert not set(map(str, soaking.paths(LAYOUT))) & record(host).owned.keys()


@pytest.mark.parametrize("phase", ["apply", "prove", "remember"])
def test_a_change_that_fails_is_not_watched(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    before = deployed(want, host)
    going = change(with_settings(want, port=8001), host)
    reach = getattr(going, phase)

    def fail() -> None:
        reach() if phase == "apply" else None
        raise NotProved("it broke")

    monkeypatch.setattr(going, phase, fail)
    with pytest.raises(InstallError, match="it broke"):
        going.run()
    assert (record(host).soak, is_watched(host)) == (None, False)
    assert files(host) == before


def test_nothing_is_watched_where_nothing_changes(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    other = with_settings(want, port=8001)
    some = [Restart(LAYOUT.unit_name)]
    assert watched.beginning(60, [], other, record(host)) == []
    assert watched.beginning(60, list(some), want, record(host)) == [], "what serves stays the same"
    assert watched.beginning(None, list(some), other, record(host)) == []
    assert watched.beginning(60, list(some), other, record(host)) != []


def test_nobody_watches_a_service_that_is_gone(host: Host, before: dict[str, str]) -> None:
    changes = steps.removal(LAYOUT, record(host), host, weights=False, engine=False)
    assert {change.path for change in changes if isinstance(change, Remove)} >= set(soaking.paths(LAYOUT))


def test_nobody_is_to_watch_with_a_tool_that_others_can_change(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise Refused("it can be changed by others than root")

    deployed(want, host)
    monkeypatch.setattr(soaking, "check_tool", refuse)
    other, some = with_settings(want, port=8001), [Restart(LAYOUT.unit_name)]
    assert watched.beginning(None, list(some), other, record(host)) == []
    with pytest.raises(Refused, match="by others than root"):
        watched.beginning(60, list(some), other, record(host))


def test_during_a_soak_other_changes_are_refused(host: Host, want: Wanted, before: dict[str, str]) -> None:
    further = with_settings(want, port=8002)
    with pytest.raises(Refused, match="qwen3vl is being watched after: set PORT=8001") as caught:
        watched.beginning(None, [Restart(LAYOUT.unit_name)], further, record(host))
    assert "soak qwen3vl --end" in caught.value.hint
    assert "rollback qwen3vl" in caught.value.hint
    with pytest.raises(Refused, match="is being watched"):
        eject.eject("qwen3vl", host, REPORT)
    assert watched.beginning(None, [], further, record(host)) == [], "what changes nothing is open"
    soak.end("qwen3vl", host, REPORT)
    assert watched.beginning(None, [Restart(LAYOUT.unit_name)], further, record(host)) == []


def test_keys_are_changed_during_a_soak_and_stay_changed(
    host: Host, before: dict[str, str], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotate, "unit_properties", lambda *_: {"MainPID": "0", "ActiveState": "inactive"})
    rotate.set_key("qwen3vl", Rotation("guest", "sk-guest-7d1c0b52a9-Qm3XzTg"), host, REPORT, lambda _: None)
    assert state_of(host).is_running
    looks.next = [seen(active="failed")]
    look(host)
    proved = record(host).proved
    assert proved is not None
    assert (proved.settings.port, "guest" in {key.name for key in proved.keys}) == (8000, True)


def test_a_rollback_by_hand_ends_it(host: Host, before: dict[str, str]) -> None:
    deploy.rollback("qwen3vl", host, REPORT, lambda _: None)
    assert (port(host), state_of(host).outcome, is_watched(host)) == (8000, BY_HAND, False)
    assert soak.verdict(state_of(host)) == Exit.NOT_PROVED
    deploy.rollback("qwen3vl", host, REPORT, lambda _: None)
    assert (port(host), record(host).soak) == (8001, None), "what was is no news of this generation"


def test_it_is_confirmed_by_hand(host: Host, before: dict[str, str]) -> None:
    soak.end("qwen3vl", host, REPORT)
    assert (port(host), state_of(host).outcome, is_watched(host)) == (8001, ENDED, False)
    assert record(host).history[-1].outcome == ENDED
    with pytest.raises(Refused, match="no change of qwen3vl is watched"):
        soak.end("qwen3vl", host, REPORT)


def test_of_a_service_that_was_never_watched_there_is_nothing_to_show(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    with pytest.raises(Refused, match="no change of qwen3vl is watched"):
        soak.of("qwen3vl", host)


# Turns of the timer


def test_what_stays_good_is_confirmed_by_another_proof(
    host: Host, before: dict[str, str], looks: Looks, proofs: Proofs
) -> None:
    looks.next = [seen(at=130.0), seen(at=161.0)]
    asked = len(proofs.asked)
    look(host)
    assert (state_of(host).watched, state_of(host).outcome, len(proofs.asked)) == (30.0, "", asked)
    look(host)
    assert (state_of(host).outcome, is_watched(host), len(proofs.asked)) == (CONFIRMED, False, asked + 1)
    assert (record(host).history[-1].what, record(host).history[-1].outcome) == ("soak of set PORT=8001", CONFIRMED)
    assert soak.verdict(state_of(host)) == Exit.DONE


def test_a_service_that_was_stopped_is_neither_confirmed_nor_started(
    host: Host, before: dict[str, str], looks: Looks, proofs: Proofs
) -> None:
    save_state(host, LAYOUT, dataclasses.replace(record(host), soak=dataclasses.replace(BEGUN, watched=61.0)))
    asked = len(proofs.asked)
    looks.next = [seen(active="inactive")]
    look(host)
    assert (state_of(host).outcome, len(proofs.asked)) == ("", asked)


def test_what_turns_bad_goes_back(host: Host, before: dict[str, str], looks: Looks, proofs: Proofs) -> None:
    looks.next = [seen(run="other", restarts=1)]
    look(host)
    assert (port(host), is_watched(host)) == (8000, False)
    settings = str(LAYOUT.settings_file)[1:]
    now = files(host)
    assert now.pop(settings).replace("\nPORT=8000\n", "\n#PORT=8000\n") == before.pop(settings)
    assert now == before
    over = state_of(host)
    assert (over.outcome, over.bad) == (ROLLED_BACK, "it ended by itself, and systemd had to start it again")
    assert record(host).history[-1].outcome == f"rolled back: {over.bad}"
    assert soak.verdict(over) == Exit.NOT_PROVED
    assert proofs.asked[-1][0].target.settings.port == 8000, "what it went back to is proved"


def test_of_what_the_service_said_a_line_is_kept(
    host: Host, before: dict[str, str], looks: Looks, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = NotProved(f"it died: \x1b[2J{'x' * 9000}\nin lines")
    asked: list[object] = []
    monkeypatch.setattr(prove, "failure", lambda *words: asked.append(words[3]) or said)
    looks.next = [seen(active="failed", run="")]
    look(host)
    assert asked == ["run"], "the one that was there at the look before"
    bad = state_of(host).bad
    assert (bad[:16], len(bad), bad.isprintable()) == ("it died: \\x1b[2J", 400, True)


def test_what_hangs_in_the_end_goes_back(host: Host, before: dict[str, str], looks: Looks, proofs: Proofs) -> None:
    looks.next = [seen(at=170.0)]
    proofs.faults = [NotProved("no answer within 120 s\nor thereabouts")]
    look(host)
    assert (port(host), state_of(host).outcome, state_of(host).bad) == (8000, ROLLED_BACK, "no answer within 120 s")


@pytest.mark.parametrize("now", [UP, seen(active="failed")])
def test_what_was_found_bad_is_not_judged_again(host: Host, before: dict[str, str], looks: Looks, now: Seen) -> None:
    """The restart by which it is undone leaves no trace of what was wrong."""
    looks.next = [now]
    save_state(host, LAYOUT, dataclasses.replace(record(host), soak=dataclasses.replace(BEGUN, bad="it hung")))
    look(host)
    assert (port(host), state_of(host).bad) == (8000, "it hung")


class Killed(BaseException):
    """Nothing of ours runs after it, but what a process leaves behind."""


def test_cut_off_anywhere_the_next_turn_goes_on(
    host: Host, before: dict[str, str], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each file that is written or removed, and each command that is run."""
    snapshot = {path: host.read(path) or "" for path in every_file(host)}
    bad = seen(run="other", restarts=1)
    cuts = 0
    while True:
        restore(host, snapshot)
        looks.next = [bad]
        if not cut(host, monkeypatch, cuts):
            break
        looks.next = [UP]
        for _ in range(3):
            look(host)
        found = state_of(host)
        if found.is_running:  # it was cut off before the verdict was written down
            assert (port(host), found.bad, is_watched(host)) == (8001, "", True), cuts
        else:
            assert (port(host), found.outcome, is_watched(host), record(host).pending) == (
                8000,
                ROLLED_BACK,
                False,
                None,
            )
        cuts += 1
    assert cuts > 15


def every_file(host: Host) -> list[Path]:
    return [Path("/") / path.relative_to(host.root) for path in sorted(host.root.rglob("*")) if path.is_file()]


def restore(host: Host, snapshot: dict[Path, str]) -> None:
    for path in set(every_file(host)) - snapshot.keys():
        host.remove(path)
    for path, text in snapshot.items():
        if host.read(path) != text:
            host.write(path, text)


def cut(host: Host, monkeypatch: pytest.MonkeyPatch, number: int) -> bool:
    """Whether there is so late a point to be cut off at."""
    left = number

    def reach() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    with monkeypatch.context() as patch:
        for name in ("write", "remove", "run"):
            real = getattr(Host, name)
            patch.setattr(Host, name, lambda self, *args, real=real, **more: (reach(), real(self, *args, **more))[1])
        try:
            look(host)
        except Killed:
            return True
        return False


def test_a_way_back_that_fails_is_tried_again_and_then_no_more(
    host: Host, before: dict[str, str], looks: Looks, proofs: Proofs
) -> None:
    looks.next = [seen(run="other", restarts=1)]
    for number in range(1, soak.TRIES):
        proofs.faults = [NotProved("the old one does not come up")]
        with pytest.raises(InstallError, match="is back as it was"):
            look(host)
        assert (state_of(host).tries, state_of(host).is_running, is_watched(host)) == (number, True, True)
    proofs.faults = [NotProved("the old one does not come up"), NotProved("nor does this one")]
    look(host)
    over = state_of(host)
    assert (over.outcome, is_watched(host), port(host)) == (STUCK, False, 8001)
    assert over.bad.startswith("it ended by itself, and systemd had to start it again; the old one does not come up")
    assert soak.verdict(over) == Exit.NOT_RESTORED


def test_an_edit_by_hand_is_no_more_overwritten_than_by_others(
    host: Host, before: dict[str, str], looks: Looks
) -> None:
    host.write(LAYOUT.unit, f"{host.read(LAYOUT.unit)}# by hand\n")
    looks.next = [seen(active="failed")]
    for _ in range(soak.TRIES - 1):
        with pytest.raises(Refused, match="was edited by hand"):
            look(host)
    look(host)
    assert state_of(host).outcome == STUCK
    assert (host.read(LAYOUT.unit) or "").endswith("# by hand\n")


def test_while_somebody_changes_the_service_nothing_is_judged(host: Host, before: dict[str, str], looks: Looks) -> None:
    looks.next = [seen(active="failed")]
    with changing(LAYOUT, "rollback", host):
        look(host)
        assert state_of(host) == dataclasses.replace(state_of(host), bad="", watched=0.0)
        assert is_watched(host)


def test_a_timer_without_a_soak_takes_itself_away(host: Host, want: Wanted, before: dict[str, str]) -> None:
    save_state(host, LAYOUT, dataclasses.replace(record(host), soak=None))
    look(host)
    assert not is_watched(host)


def test_what_is_uninstalled_meanwhile_stays_so(
    host: Host, before: dict[str, str], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = list(steps.removal(LAYOUT, record(host), host, weights=False, engine=False))
    assert gone[: len(list(soaking.ending(LAYOUT, host)))] == list(soaking.ending(LAYOUT, host))

    def vanish(*_: object) -> Seen:
        host.remove(LAYOUT.state_dir)
        return seen(active="inactive")

    monkeypatch.setattr(soak_rules, "observe", vanish)
    look(host)
    assert load_state(host, LAYOUT) is None
    look(host)
    assert not is_watched(host)


@pytest.mark.parametrize("text", ["{", '{"version": 99, "owned": {}}'])
def test_a_record_that_cannot_be_used_is_left_alone(host: Host, before: dict[str, str], text: str) -> None:
    host.write(LAYOUT.state_file, text)
    with pytest.raises(Damaged):
        look(host)
    assert (host.read(LAYOUT.state_file), is_watched(host)) == (text, True)


# Waiting


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    timer = ["active"]
    monkeypatch.setattr(soak, "POLL", 0.0)
    monkeypatch.setattr(soak, "unit_properties", lambda *_: {"ActiveState": timer[0]})
    return timer


def test_who_waits_is_told_how_it_ends(host: Host, before: dict[str, str], looks: Looks, quick: list[str]) -> None:
    looks.next = [seen(active="failed", result="exit-code", status="78")]
    waiting = soak.wait("qwen3vl", host)
    assert next(waiting).is_running
    look(host)
    assert [each.outcome for each in waiting] == [ROLLED_BACK]


def test_nobody_waits_for_a_timer_that_does_not_run(host: Host, before: dict[str, str], quick: list[str]) -> None:
    quick[0] = "inactive"
    with pytest.raises(Refused, match=r"vllm-soak@qwen3vl\.timer does not run") as caught:
        list(itertools.islice(soak.wait("qwen3vl", host), 3))
    assert caught.value.hint == "sudo systemctl enable --now vllm-soak@qwen3vl.timer"


def test_what_it_does_is_in_the_journal_of_the_service(
    host: Host, before: dict[str, str], looks: Looks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bin/logger"
    program.write_text(f"#!/bin/sh\ncat >>{tmp_path}/said\n")
    program.chmod(0o755)
    monkeypatch.setattr(Host, "which", lambda self, name: Path(name))
    looks.next = [seen(active="failed", result="exit\ncode")]
    look(host)
    said = (tmp_path / "said").read_text().splitlines()
    assert said.count("OBJECT_SYSTEMD_UNIT=qwen3vl.service") == 2
    assert "MESSAGE=soak: set PORT=8001: rolled back" in said
    assert all(line.startswith(("MESSAGE=soak: ", "PRIORITY=", "OBJECT_SYSTEMD_UNIT=")) for line in said)
