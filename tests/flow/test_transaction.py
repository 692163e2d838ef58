"""A fault at each point of each change: what is recorded, what is put back, and what the user is told."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from installer.adoption import former
from installer.base.changes import Change, Handover, Remove, Restart, Write
from installer.base.errors import Exit, InstallError, Interrupted, Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.locks import Busy
from installer.base.report import Described, Report
from installer.flow import (
    alarm,
    converge,
    deploy,
    eject,
    fit,
    limit,
    ownership,
    prove,
    roll,
    rotate,
    steps,
    transaction,
)
from installer.flow import running as processes
from installer.flow.converge import Convergence, settled
from installer.flow.prove import NotProved, Silent, Start
from installer.flow.rotate import Rotated, Rotation
from installer.flow.steps import RemoveUnused
from installer.flow.transaction import apply as run_changes
from installer.flow.wanted import Wanted
from installer.forms.venv.engines import InstallEngine
from installer.model.builtin import MakeBuiltin
from installer.spec.calibration import Calibration
from installer.spec.former import Former
from installer.spec.group import Group, Peer, save_group
from installer.spec.keys import Key, digest
from installer.spec.records import load_state, save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.values import BUILTIN
from installer.units import keyring
from installer.units.authority import IssueCertificate
from installer.units.gateway import config_file
from installer.units.holding import Holding
from installer.units.keyring import unit_keys
from installer.units.render import process_digest, render, shared_units, with_keys
from installer.units.systemd import MainProcess
from installer.weights import inventory
from installer.weights.models import Download
from tests.flow.test_steps import apply, recorded, tree
from tests.kit.targets import DEFAULT_KEY, KEYS, PROBE_KEY, replicated, wanted, with_settings

LAYOUT = Layout("qwen3vl")
REPORT = Report()
PHASES = ("claim", "apply", "prove", "remember")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A bare host whose programs do nothing and succeed."""
    for name in ("systemctl", "userdel", "groupdel", "journalctl"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setattr("installer.base.host.PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    host = Host(tmp_path / "root")
    host.write(Path("/etc/passwd"), f"{LAYOUT.user}:x:990:990::/:/usr/sbin/nologin\n")
    for path in ("/var/lib", "/var/cache", "/opt", "/etc/systemd/system", "/etc/sysusers.d"):
        host.make_dir(Path(path))
    return host


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> Proofs:
    proofs = Proofs()
    monkeypatch.setattr(prove, "serving", proofs.serving)
    return proofs


class Proofs:
    """The proof of a host without a service: what it says, first to last; then that all is well."""

    def __init__(self) -> None:
        self.faults: list[Exception] = []
        self.asked: list[tuple[Wanted, Start]] = []

    def serving(self, want: Wanted, host: Host, report: Report, start: Start = prove.NOT_WATCHED) -> None:
        assert (type(want), type(host)) == (Wanted, Host)
        assert isinstance(report, Report)
        self.asked.append((want, start))
        if self.faults:
            raise self.faults.pop(0)


class Faulty(Convergence):
    """Ends with `fault` when it comes to the phase `at`."""

    at, fault = "", Exception()

    def claim(self) -> None:
        self.reach("claim")
        super().claim()

    def apply(self) -> None:
        super().apply()
        self.reach("apply")

    def prove(self) -> None:
        self.reach("prove")
        super().prove()

    def remember(self) -> None:
        self.reach("remember")
        super().remember()

    def reach(self, phase: str) -> None:
        if phase == self.at:
            raise self.fault


@pytest.fixture
def want(host: Host) -> Wanted:
    """What a deploy works towards, with its engine and its weights on the host."""
    want = wanted(dataclasses.replace(Settings(), model=BUILTIN), kind="cpu")
    apply([*steps.engine(want, host), *steps.weights(want, host)], host)
    return want


def attempt(want: Wanted, host: Host, at: str = "", fault: Exception | None = None) -> Faulty:
    """A change to what is wanted, of files alone: what else a deploy does needs a machine."""
    files = [change for change in steps.plan(want, host) if isinstance(change, Write)]
    state = load_state(host, LAYOUT) or State(LAYOUT.service)
    change = Faulty("set PORT=8001", want, [*files, Restart(LAYOUT.unit_name)], state, host, REPORT)
    change.at, change.fault = at, fault or InstallError("it broke", "mend it", Exit.ENGINE)
    return change


def failure(change: Convergence) -> InstallError:
    with pytest.raises(InstallError) as caught:
        change.run()
    return caught.value


def record(host: Host) -> State:
    state = load_state(host, LAYOUT)
    assert state is not None
    return state


def deployed(want: Wanted, host: Host) -> dict[str, str]:
    """A host with the service proved; what lies on it but for the record."""
    recorded(want, steps.plan(want, host), host)
    host.write(LAYOUT.settings_file, f"# the admin's own words\n{host.read(LAYOUT.settings_file)}")
    return files(host)


def files(host: Host) -> dict[str, str]:
    return {path: text for path, text in tree(host).items() if not path.endswith("state.json")}


# A first deploy


def test_what_went_well_is_remembered_as_proved(host: Host, want: Wanted, proofs: Proofs) -> None:
    attempt(want, host).run()
    state = record(host)
    assert state.proved is not None
    assert (state.pending, state.proved.settings, state.previous) == (None, want.target.settings, None)
    assert [(event.what, event.outcome) for event in state.history] == [("set PORT=8001", "proved")]
    assert [start.is_first for _, start in proofs.asked] == [True]


def test_before_the_first_change_the_record_says_what_will_be_ours(host: Host, want: Wanted, proofs: Proofs) -> None:
    change = attempt(want, host)
    change.claim()
    state = record(host)
    assert (state.pending, state.pending_engine) == ("set PORT=8001", want.target.engine.id)
    assert {str(item.path) for item in change.changes if isinstance(item, Write)} - state.owned.keys() == {
        str(item.path) for item in change.changes if isinstance(item, Write) and LAYOUT.opt in item.path.parents
    }
    assert not host.exists(LAYOUT.unit)


@pytest.mark.parametrize("phase", PHASES)
def test_a_first_deploy_that_fails_leaves_nothing(host: Host, want: Wanted, proofs: Proofs, phase: str) -> None:
    before = {path: text for path, text in tree(host).items() if not path.startswith(("opt", "var"))}
    failed = failure(attempt(want, host, phase))
    assert (failed.exit_code, failed.hint) == (Exit.ENGINE, "mend it")
    assert ("nothing of the service is left" in failed.message) == (phase != "claim")
    assert failed.message.startswith("it broke")
    assert load_state(host, LAYOUT) is None
    left = {path: text for path, text in tree(host).items() if not path.startswith(("opt", "var", "etc/vllm-install"))}
    assert left == before


def test_a_bug_is_undone_and_shown_as_what_it_is(host: Host, want: Wanted, proofs: Proofs) -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(want, host, "prove", ZeroDivisionError()).run()
    assert load_state(host, LAYOUT) is None


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Interrupted("SIGTERM"), Exit.INTERRUPTED),
        (OSError(errno.ENOSPC, "full", "/etc/x"), Exit.REFUSED),
        (InstallError("of no kind"), Exit.NOT_PROVED),
        (NotProved("silent"), Exit.NOT_PROVED),
    ],
)
def test_the_exit_code_is_the_causes(host: Host, want: Wanted, proofs: Proofs, fault: Exception, code: Exit) -> None:
    assert failure(attempt(want, host, "apply", fault)).exit_code == code


# A change of a service that is there


@pytest.mark.parametrize("phase", PHASES)
def test_a_change_that_fails_leaves_the_service_as_it_was(host: Host, want: Wanted, proofs: Proofs, phase: str) -> None:
    before, known = deployed(want, host), record(host)
    failed = failure(attempt(with_settings(want, port=8001), host, phase))
    assert files(host) == before, "to the byte, with what the admin wrote"
    assert (failed.exit_code, failed.hint) == (Exit.ENGINE, "mend it")
    now = record(host)
    assert (now.proved, now.previous, now.pending) == (known.proved, None, None)
    if phase == "claim":
        assert (failed.message, now) == ("it broke", known)
        return
    assert failed.message == "it broke; qwen3vl.service is back as it was"
    assert [(event.what, event.outcome) for event in now.history[-1:]] == [("set PORT=8001", "undone: it broke")]
    want_back, start = proofs.asked[-1]
    assert want_back.target.settings == want.target.settings, "what was put back is proved as well"
    assert not start.is_first


def test_settings_that_only_the_admin_reads_stay_so_when_a_change_is_undone(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    deployed(want, host)
    host.at(LAYOUT.settings_file).chmod(0o600)
    change = attempt(with_settings(want, port=8001), host, "prove")
    failure(change)
    assert host.mode(LAYOUT.settings_file) == 0o600
    host.remove(LAYOUT.settings_file)
    change = attempt(with_settings(want, port=8001), host, "prove")
    failure(change)
    assert host.mode(LAYOUT.settings_file) == 0o644


def test_a_change_that_only_moves_the_context_says_where_it_is_back_at(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    want = with_settings(want, max_model_len=1024)
    deployed(want, host)
    assert (
        "; the service is back at 1024"
        in failure(attempt(with_settings(want, max_model_len=4096), host, "prove")).message
    )
    both = attempt(with_settings(want, max_model_len=4096, port=8001), host, "prove")
    assert "; qwen3vl.service is back as it was" in failure(both).message
    neither = attempt(want, host, "prove")
    assert "; qwen3vl.service is back as it was" in failure(neither).message


@pytest.mark.parametrize("second", [NotProved("not yet", "look"), OSError("no disk"), KeyError("a bug")])
def test_a_second_fault_while_undoing_is_told_apart(
    host: Host, want: Wanted, proofs: Proofs, second: Exception
) -> None:
    before = deployed(want, host)
    proofs.faults = [NotProved("it does not answer", "journalctl"), second]
    failed = failure(attempt(with_settings(want, port=8001), host))
    assert failed.exit_code == Exit.NOT_RESTORED
    assert "it does not answer\nand the host could not be put back: " in failed.message
    assert (failed.message[-7:], failed.hint) == ("not yet", "look") or not isinstance(second, NotProved)
    assert record(host).pending == "set PORT=8001", "the next command has to know"
    settled(host, LAYOUT, REPORT)
    assert files(host) == before
    assert (record(host).pending, record(host).history[-1].outcome) == (None, "undone: cut off")


@pytest.mark.parametrize("phase", ["claim", "apply", "prove"])
def test_what_was_cut_off_is_undone_by_the_next_command(host: Host, want: Wanted, proofs: Proofs, phase: str) -> None:
    before = deployed(want, host)
    change = attempt(with_settings(want, port=8001), host)
    for name in PHASES[: PHASES.index(phase) + 1]:
        getattr(change, name)()
    settled(host, LAYOUT, REPORT)
    now, settings = files(host), str(LAYOUT.settings_file)[1:]
    assert now.pop(settings).replace("\nPORT=8000\n", "\n#PORT=8000\n") == before.pop(settings), "by its values"
    assert now == before
    assert record(host).pending is None


def test_what_was_cut_off_before_any_proof_waits_for_deploy(host: Host, want: Wanted, proofs: Proofs) -> None:
    attempt(want, host).claim()
    with pytest.raises(InstallError, match="cut off before the service was proved") as caught:
        settled(host, LAYOUT, REPORT)
    assert caught.value.hint == "vllm-install deploy completes it"
    assert record(host).pending == "set PORT=8001"


def test_what_is_shared_and_was_removed_meanwhile_stops_a_change_before_it_begins(host: Host, want: Wanted) -> None:
    deployed(want, host)
    host.remove(LAYOUT.engines / want.target.engine.id)
    failed = failure(attempt(with_settings(want, port=8001), host))
    assert (failed.exit_code, failed.hint) == (Exit.REFUSED, "run the same command again")
    assert record(host).pending is None


def test_weights_of_another_model_are_none_of_those_that_were_removed_meanwhile(
    host: Host, want: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(want, host)
    change, model = attempt(with_settings(want, port=8001), host), want.target.model
    due = [Download(model, 1, ())]
    monkeypatch.setattr(steps, "weights", lambda *_: due)
    change.changes = [Download(dataclasses.replace(model, path=Path("/var/cache/other")), 1, ())]
    with pytest.raises(Refused, match="removed meanwhile"):
        change.claim()
    change.changes = due
    change.claim()


def test_an_edit_that_was_there_when_a_change_was_cut_off_stays(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    attempt(with_settings(want, port=8001), host).claim()
    host.write(LAYOUT.unit, f"{host.read(LAYOUT.unit)}# by hand\n")
    settled(host, LAYOUT, REPORT)
    assert (host.read(LAYOUT.unit) or "").endswith("# by hand\n")


@pytest.mark.parametrize("edited", [LAYOUT.unit, LAYOUT.sysusers])
def test_of_what_was_edited_by_hand_an_undoing_keeps_the_unit_with_the_keys_of_today(
    host: Host, want: Wanted, proofs: Proofs, edited: Path
) -> None:
    deployed(want, host)
    before = host.read(edited) or ""
    attempt(with_settings(want, port=8001), host).claim()
    leaked = Key("leaked", digest("sk-leaked"))
    host.write(edited, with_keys(before, (*KEYS, leaked)) + "# by hand\n")
    settled(host, LAYOUT, REPORT)
    assert host.read(edited) == (before + "# by hand\n" if edited == LAYOUT.unit else before)


def test_a_unit_that_somebody_took_away_comes_back_when_a_change_is_undone(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    deployed(want, host)
    before = host.read(LAYOUT.unit)
    attempt(with_settings(want, port=8001), host).claim()
    host.remove(LAYOUT.unit)
    settled(host, LAYOUT, REPORT)
    assert host.read(LAYOUT.unit) == before


def test_a_new_key_has_to_open_the_service(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str | None] = []

    def in_force(want: Wanted, host: Host, accepted: str | None) -> None:
        tried.append(accepted)
        if accepted == "sk-second":
            raise NotProved("it opens to none of it")

    monkeypatch.setattr(prove, "keys_in_force", in_force)
    files = [change for change in steps.plan(want, host) if isinstance(change, Write)]
    change = Convergence("deploy", want, files, State("qwen3vl"), host, REPORT)
    change.new_keys = ("sk-first", "sk-second")
    assert failure(change).exit_code == Exit.NOT_PROVED
    assert tried == ["sk-first", "sk-second"]
    assert load_state(host, LAYOUT) is None


def test_a_run_before_the_restart_explains_nothing(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "invocation", lambda *_: "0123")
    attempt(want, host).run()
    assert [start.before for _, start in proofs.asked] == [{"0123"}]
    assert not prove.started_by([], host).before, "it is the same run after as before"


@pytest.mark.parametrize(
    ("change", "lock"),
    [
        (Write(LAYOUT.opt / "runtime/x", ""), LAYOUT.shared_lock),
        (Write(next(iter(shared_units())), ""), LAYOUT.shared_lock),
        (RemoveUnused(LAYOUT.engines / "0123"), LAYOUT.shared_lock),
        (MakeBuiltin(LAYOUT.builtin_models / "tiny"), LAYOUT.shared_lock),
        (Write(LAYOUT.unit, ""), None),
        (Write(LAYOUT.settings_file, ""), None),
        (Remove(LAYOUT.engines), None),
    ],
)
def test_what_services_share_is_changed_by_one_at_a_time(host: Host, change: Change, lock: Path | None) -> None:
    held: list[bool] = []

    class Looks(Report):
        def begin(self, change: Described, line: str | None = None) -> None:
            held.extend(host.lock_holder(path) is not None for path in (LAYOUT.shared_lock, LAYOUT.engines_lock))

    run_changes([change], host, Looks())
    assert held == [lock == LAYOUT.shared_lock, lock == LAYOUT.engines_lock]


def test_an_engine_is_built_under_a_lock_of_its_own(host: Host, want: Wanted) -> None:
    """It takes minutes, for which nobody else has to wait."""
    change = InstallEngine(want.target.engine, want.target.settings, LAYOUT)
    with transaction._alone(change, host, REPORT):
        assert host.lock_holder(LAYOUT.engines_lock) is not None
        assert host.lock_holder(LAYOUT.shared_lock) is None


@pytest.mark.parametrize(
    ("lock", "act"),
    [
        (LAYOUT.shared_lock, lambda host, report: transaction.shared("set PORT=2", host, report).__enter__()),
        (LAYOUT.keys_lock, lambda host, report: keyring.alone(host, LAYOUT, report, "set").__enter__()),
        (LAYOUT.told_lock, lambda host, report: alarm.look("qwen3vl", host, report)),
        (LAYOUT.told_lock, lambda host, report: alarm.test("qwen3vl", host, report)),
        (LAYOUT.shared_lock, inventory.prune),
        (LAYOUT.shared_lock, IssueCertificate(LAYOUT, ("localhost",)).apply),
    ],
)
def test_who_has_to_wait_is_told_for_whom(host: Host, lock: Path, act: Callable[[Host, Report], object]) -> None:
    said: list[str] = []

    class Notes(Report):
        def note(self, text: str) -> None:
            said.append(text)
            first.__exit__(None, None, None)

    first = host.lock(lock, "vllm-install: set PORT=1")
    first.__enter__()
    with suppress(Refused):  # of a service that there is not nobody is told anything
        act(host, Notes())
    assert said == [f"waiting for: vllm-install: set PORT=1 (pid {os.getpid()})"]


def test_two_changes_of_one_service_do_not_meet(host: Host) -> None:
    with (
        transaction.changing(LAYOUT, "set PORT=1", host),
        pytest.raises(Busy, match="under way: vllm-install set PORT=1 --service qwen3vl"),
        transaction.changing(LAYOUT, "rollback", host),
    ):
        pass


def test_changes_of_two_services_keep_neither_waiting(host: Host) -> None:
    with (
        transaction.changing(LAYOUT, "set PORT=1", host),
        transaction.changing(Layout("other"), "set PORT=2", host),
    ):
        pass


# What is recorded


def test_what_was_measured_before_counts_until_it_is_measured_again(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(want, host)
    known = Calibration(available=1, tokens=2, context=3)
    save_state(host, LAYOUT, dataclasses.replace(record(host), calibration=known))
    attempt(with_settings(want, port=8001), host).run()
    assert record(host).calibration == known
    monkeypatch.setattr(fit, "measured", lambda *_: Calibration(available=9, tokens=9, context=9))
    attempt(with_settings(want, port=8002), host).run()
    assert record(host).calibration == Calibration(available=9, tokens=9, context=9)


def test_what_a_newer_tool_puts_back_is_claimed_before_it_is_written(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be an edit of somebody's, where that is cut off as well."""
    deployed(want, host)
    attempt(with_settings(want, port=8001), host).claim()
    monkeypatch.setattr("installer.units.render.__version__", "99.0")
    proofs.faults = [KeyError("cut off again")]
    with pytest.raises(KeyError):
        settled(host, LAYOUT, REPORT)
    assert "vllm-install 99.0" in (host.read(LAYOUT.unit) or "")
    changes = steps.plan(with_settings(want, port=8002), host)
    assert list(ownership.objections(changes, host, LAYOUT, record(host), discard_edits=False)) == []


def test_a_key_that_was_revoked_while_a_change_ran_is_not_remembered(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    change = attempt(with_settings(want, port=8001), host)
    change.claim()
    change.apply()
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", KEYS[1:]))
    change.remember()
    proved = record(host).proved
    assert proved is not None
    assert proved.keys == KEYS[1:]


def test_of_a_file_that_was_claimed_and_never_written_the_text_that_is_there_is_ours(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    deployed(want, host)
    before = record(host).owned
    attempt(with_settings(want, port=8001), host).claim()
    assert {len(digests) for digests in record(host).owned.values()} == {1, 2}
    settled(host, LAYOUT, REPORT)
    now, settings = record(host).owned, str(LAYOUT.settings_file)  # which was edited, as it may be
    assert {path: digests for path, digests in now.items() if path != settings} == {
        path: digests for path, digests in before.items() if path != settings
    }


def test_a_file_that_was_edited_meanwhile_does_not_become_ours(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    before = record(host).owned
    change = attempt(with_settings(want, port=8001), host)
    change.claim()
    change.apply()
    host.write(LAYOUT.sysusers, "by hand")
    change.remember()
    assert record(host).owned[str(LAYOUT.sysusers)] == before[str(LAYOUT.sysusers)]


def test_a_unit_that_somebody_put_back_is_ours_once_it_is_what_was_wanted(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    """A copy from before a change, and then the change is taken back: nothing has to be written."""
    deployed(want, host)
    copy = host.read(LAYOUT.unit) or ""
    attempt(with_settings(want, port=8001), host).run()
    host.write(LAYOUT.unit, copy)
    attempt(want, host).run()
    again = steps.plan(with_settings(want, port=8002), host)
    assert list(ownership.objections(again, host, LAYOUT, record(host), discard_edits=False)) == []


def test_a_service_that_is_adopted_again_is_ours_with_all_that_it_had(host: Host, want: Wanted, proofs: Proofs) -> None:
    """Its account and what it shares were left in place when it was let go."""
    host.write(LAYOUT.sysusers, render(want.target, LAYOUT)[LAYOUT.sysusers].text)
    former = Former("qwen3vl.service", enabled=True, active=True, ejected=True)
    files = [change for change in steps.plan(want, host) if isinstance(change, Write)]
    Convergence("adopt", want, files, State("qwen3vl", former=former), host, REPORT).run()
    state = record(host)
    assert (state.former, state.owns_user) == (None, True)
    assert str(LAYOUT.sysusers) in state.owned


def test_weights_that_went_bad_are_no_reason_to_touch_a_service_that_is_put_back(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(want, host)
    attempt(with_settings(want, port=8001), host).claim()
    monkeypatch.setattr(steps, "plan", lambda *_: [Download(want.target.model, 1, ())])
    settled(host, LAYOUT, REPORT)
    assert record(host).history[-1].outcome == "undone: cut off"


def test_what_else_is_due_is_put_back_also_where_weights_went_bad(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = deployed(want, host)
    change = attempt(with_settings(want, port=8001), host)
    change.claim()
    change.apply()
    planned = steps.plan
    fetched: list[Download] = []
    monkeypatch.setattr(Download, "apply", lambda self, *_: fetched.append(self))
    monkeypatch.setattr(steps, "plan", lambda *given: [Download(want.target.model, 1, ()), *planned(*given)])
    settled(host, LAYOUT, REPORT)
    unit = str(LAYOUT.unit)[1:]
    assert (files(host)[unit], len(fetched)) == (before[unit], 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_key_counts_as_known_when_it_was_shown(host: Host, want: Wanted, proofs: Proofs, fails: bool) -> None:
    files = [change for change in steps.plan(want, host) if isinstance(change, Write)]
    change = Convergence("deploy", want, files, State("qwen3vl"), host, REPORT)
    change.key_shown = False

    def show(done: deploy.Deployed) -> None:
        assert not record(host).key_shown
        assert (done.new_key, done.first, done.changes) == ("sk-made", True, tuple(files))
        if fails:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError) if fails else nullcontext():
        deploy._carry_out(change, "sk-made", show)
    assert record(host).key_shown != fails


def test_a_key_that_nobody_was_shown_stays_so_when_a_change_is_undone(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    save_state(host, LAYOUT, dataclasses.replace(record(host), key_shown=False))
    change = attempt(with_settings(want, port=8001), host, "prove")
    change.key_shown = False
    failure(change)
    assert not record(host).key_shown


@pytest.mark.parametrize("pending", ["deploy", None])
def test_where_nothing_is_due_it_is_proved_and_what_was_cut_off_is_done(
    host: Host, want: Wanted, proofs: Proofs, pending: str | None
) -> None:
    deployed(want, host)
    save_state(host, LAYOUT, dataclasses.replace(record(host), pending=pending))
    known, shown = record(host), list[deploy.Deployed]()
    deploy._carry_out(Convergence("deploy", want, [], known, host, REPORT), None, shown.append)
    assert len(proofs.asked) == 1
    assert [(done.changes, done.first) for done in shown] == [((), False)]
    assert (record(host) == known) == (pending is None)
    assert (record(host).pending, record(host).history[-1].outcome) == (None, "proved")


# A change of several hosts that is taken back


def taken_back(before: State | None, settings_text: str | None, host: Host) -> None:
    converge.go_back(before, settings_text, "set PORT=8001", host, LAYOUT, REPORT)


def test_a_change_of_several_hosts_is_taken_back_once_also_where_it_was_proved(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    before = deployed(want, host)
    known, settings = record(host), host.read(LAYOUT.settings_file)
    attempt(with_settings(want, port=8001), host).run()
    taken_back(known, settings, host)
    now = record(host)
    assert files(host) == before, "to the byte, with what the admin wrote"
    assert (now.proved, now.previous, now.pending) == (known.proved, None, None)
    assert (now.history[-1].what, now.history[-1].outcome) == ("set PORT=8001", "undone on all hosts")
    asked = len(proofs.asked)
    taken_back(known, settings, host)
    assert (record(host), len(proofs.asked)) == (now, asked), "the second time nothing is left to do"


def test_a_change_of_several_hosts_that_was_cut_off_here_is_taken_back(
    host: Host, want: Wanted, proofs: Proofs
) -> None:
    """What was proved is what it was, but the host is no more."""
    before = deployed(want, host)
    known, settings = record(host), host.read(LAYOUT.settings_file)
    change = attempt(with_settings(want, port=8001), host)
    change.claim()
    change.apply()
    taken_back(known, settings, host)
    assert (files(host), record(host).pending) == (before, None)


def test_a_service_that_was_taken_away_since_is_taken_back_as_well(host: Host, want: Wanted, proofs: Proofs) -> None:
    before, known, settings = deployed(want, host), record(host), host.read(LAYOUT.settings_file)
    run_changes(steps.removal(LAYOUT, known, host, weights=False, engine=False), host, REPORT)
    taken_back(known, settings, host)
    unit = str(LAYOUT.unit)[1:]
    assert (files(host)[unit], record(host).proved) == (before[unit], known.proved)


@pytest.mark.parametrize("port", [8000, 8001])
def test_a_key_that_was_revoked_since_comes_back_on_no_host(
    host: Host, want: Wanted, proofs: Proofs, port: int
) -> None:
    guest = Key("guest", digest("sk-guest"))
    of_before = dataclasses.replace(want, target=dataclasses.replace(want.target, keys=(*KEYS, guest)))
    deployed(of_before, host)
    known, settings = record(host), host.read(LAYOUT.settings_file)
    recorded(with_settings(want, port=port), steps.plan(with_settings(want, port=port), host), host)
    assert unit_keys(host, LAYOUT) == list(KEYS)
    taken_back(known, settings, host)
    proved = record(host).proved
    assert proved
    assert (proved.settings.port, proved.keys, unit_keys(host, LAYOUT)) == (8000, KEYS, list(KEYS))
    assert len(proofs.asked) == (port == 8001), "with no change but that of a key nothing has to go back"


@pytest.mark.parametrize("before", [None, State(LAYOUT.service)])
def test_of_a_service_that_was_not_on_this_host_before_nothing_is_left(
    host: Host, want: Wanted, proofs: Proofs, before: State | None
) -> None:
    deployed(want, host)
    taken_back(before, None, host)
    assert load_state(host, LAYOUT) is None
    assert not host.exists(LAYOUT.unit)
    assert host.exists(LAYOUT.engines / want.target.engine.id)


# A handover


Calls = Callable[[], list[str]]


@pytest.fixture
def calls(host: Host, tmp_path: Path) -> Calls:
    """What systemctl was told to read or to start, since this was asked last."""
    log = tmp_path / "calls"
    (tmp_path / "bin/systemctl").write_text(f'#!/bin/sh\necho "$*" >>{log}\n')

    def told() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        said = (re.sub(r"^(--\S+ )*", "", line) for line in lines)
        return [words for words in said if words.startswith(("daemon-reload", "reload", "restart"))]

    return told


def runs(monkeypatch: pytest.MonkeyPatch, want: Wanted) -> None:
    """A process that was started from this unit, and would hand over."""
    held = frozenset((key.name, key.digest) for key in want.target.keys)
    process = MainProcess(1, process_digest(want.target, LAYOUT), held, is_up=True)
    monkeypatch.setattr(processes, "running_process", lambda *_: process)
    monkeypatch.setattr(processes, "hands_over", lambda *_: True)


def handing_over(want: Wanted, host: Host) -> Faulty:
    change = attempt(want, host)
    assert isinstance(change.changes[-1], Handover | Restart)
    change.changes = [*change.changes[:-1], Handover(LAYOUT.unit_name)]
    return change


def test_a_successor_that_does_not_come_up_costs_no_restart(
    host: Host, want: Wanted, proofs: Proofs, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = deployed(want, host)
    runs(monkeypatch, want)
    change = handing_over(with_settings(want, port=8001), host)
    proofs.faults = [NotProved("the successor did not come up")]
    calls()
    assert failure(change).message == "the successor did not come up; qwen3vl.service is back as it was"
    assert calls() == ["daemon-reload", "reload --no-block qwen3vl.service", "daemon-reload"]
    assert files(host) == before
    assert [start.since for _, start in proofs.asked] == [{"qwen3vl.service": "none"}, {}]


def test_a_successor_that_is_not_proved_hands_back(
    host: Host, want: Wanted, proofs: Proofs, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, tried = deployed(want, host), with_settings(want, port=8001)
    change = handing_over(tried, host)
    runs(monkeypatch, tried)
    proofs.faults = [NotProved("its context is 1 instead of 2")]
    calls()
    failure(change)
    assert calls() == ["daemon-reload", "reload --no-block qwen3vl.service"] * 2
    assert files(host) == before


@pytest.mark.parametrize("breaks", ["proof", "reload"])
def test_what_does_not_come_back_by_a_handover_is_restarted(
    host: Host, want: Wanted, proofs: Proofs, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, breaks: str
) -> None:
    before, tried = deployed(want, host), with_settings(want, port=8001)
    change = attempt(tried, host)
    runs(monkeypatch, tried)
    proofs.faults = [NotProved("its context is 1 instead of 2")]
    proofs.faults += [NotProved("nor does it come back")] if breaks == "proof" else []
    if breaks == "reload":
        program = tmp_path / "bin/systemctl"
        program.write_text(program.read_text() + 'case "$*" in *" reload "*) exit 1;; esac\n')
    calls()
    assert failure(change).message == "its context is 1 instead of 2; qwen3vl.service is back as it was"
    assert calls()[-4:] == [
        "daemon-reload", "reload --no-block qwen3vl.service", "daemon-reload", "restart --no-block qwen3vl.service",
    ]  # fmt: skip
    assert files(host) == before


def test_a_change_begins_when_the_handover_before_it_is_over(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked for it may have been killed; its successor may still take over."""
    deployed(want, host)
    told: list[str] = []
    story = [
        {"ActiveState": "active", "Job": "7"}, {"ActiveState": "reloading", "Job": "7"},
        {"ActiveState": "reloading"}, {"ActiveState": "active"},
    ]  # fmt: skip
    monkeypatch.setattr(prove, "POLL", 0)

    def shown(_: Host, unit: str, *names: str) -> dict[str, str]:
        return {name: value for name, value in story.pop(0).items() if name in names}

    monkeypatch.setattr(converge, "unit_properties", shown)
    report = Report()
    report.note = told.append  # type: ignore[method-assign]
    converge.recorded(host, LAYOUT, report)
    assert story == []
    assert told == ["waiting for qwen3vl.service, which is handed over just now"]
    for quiet in ("activating", "inactive", "failed"):
        story[:] = [{"ActiveState": quiet, "Job": "7"}] * 2
        converge.recorded(host, LAYOUT, report)
    assert len(told) == 1


def test_a_change_begins_when_each_replica_is_handed_over(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(want, host)
    replica = LAYOUT.unit.with_name("qwen3vl@2.service")
    host.write(replica, "")
    reloading, told = [replica.name] * 2, list[str]()

    def shown(_: Host, unit: str, *names: str) -> dict[str, str]:
        return {"ActiveState": "reloading" if unit in reloading and reloading.pop() else "active"}

    monkeypatch.setattr(prove, "POLL", 0)
    monkeypatch.setattr(converge, "unit_properties", shown)
    report = Report()
    report.note = told.append  # type: ignore[method-assign]
    converge.recorded(host, LAYOUT, report)
    assert (reloading, told) == ([], ["waiting for qwen3vl@2.service, which is handed over just now"])


def test_a_key_that_was_revoked_while_it_was_handed_over_is_in_force_no_more(
    host: Host, want: Wanted, proofs: Proofs, calls: Calls
) -> None:
    """The successor puts those keys into force that its unit had when it began."""
    guest = Key("guest", digest("sk-guest"))
    with_guest = dataclasses.replace(want, target=dataclasses.replace(want.target, keys=(*KEYS, guest)))
    deployed(with_guest, host)
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", KEYS))
    host.write(LAYOUT.run_dir / "keys", f"guest inference {guest.digest} -\n")
    roll.keys_of_now(host, LAYOUT, REPORT)
    live = {line.split()[2] for line in (host.read(LAYOUT.run_dir / "keys") or "").splitlines()}
    assert live == {key.digest for key in KEYS}


@pytest.mark.parametrize("is_proved", [True, False])
def test_so_it_is_whichever_way_it_was_handed_over(
    host: Host, want: Wanted, proofs: Proofs, calls: Calls, monkeypatch: pytest.MonkeyPatch, is_proved: bool
) -> None:
    deployed(want, host)
    tried = with_settings(want, port=8001)
    host.write(LAYOUT.run_dir / "keys", "")
    runs(monkeypatch, tried)
    change = handing_over(tried, host)
    if is_proved:
        change.run()
    else:
        proofs.faults = [NotProved("it does not answer")]
        failure(change)
        assert calls()[-1] == "reload --no-block qwen3vl.service"
    live = {line.split()[2] for line in (host.read(LAYOUT.run_dir / "keys") or "").splitlines()}
    assert live == {key.digest for key in KEYS}


# An adoption


@pytest.fixture
def half_adopted(host: Host, want: Wanted) -> Former:
    """An adoption that was cut off: the old unit is set aside, ours stands in its place."""
    host.write(LAYOUT.unit, "[Service]\nExecStart=/srv/old\n")
    old = Former("qwen3vl.service", enabled=True, active=True, files=((LAYOUT.unit, 0o644),))
    former.keep(old, host, LAYOUT)
    files = [change for change in steps.plan(want, host) if isinstance(change, Write)]
    change = Convergence("adopt", want, files, State("qwen3vl", former=old), host, REPORT)
    change.claim()
    change.apply()
    assert host.read(LAYOUT.unit) != "[Service]\nExecStart=/srv/old\n"
    return old


def test_an_adoption_that_was_cut_off_is_undone_and_nothing_is_ours(host: Host, half_adopted: Former) -> None:
    with pytest.raises(InstallError, match="manages no service qwen3vl") as caught:
        settled(host, LAYOUT, REPORT)
    assert caught.value.hint == "vllm-install adopt SOURCE"
    assert host.read(LAYOUT.unit) == "[Service]\nExecStart=/srv/old\n"
    assert load_state(host, LAYOUT) is None


def test_an_adoption_that_fails_gives_the_place_back(host: Host, want: Wanted, half_adopted: Former) -> None:
    state = State("qwen3vl", record(host).owned, former=half_adopted)
    said = converge.put_back(state, None, "it broke", host, LAYOUT, REPORT)
    assert said == "qwen3vl.service is back as it was; the engine and the weights stay for the next try"
    assert host.read(LAYOUT.unit) == "[Service]\nExecStart=/srv/old\n"


def test_an_adoption_that_was_proved_is_not_half_done(host: Host, want: Wanted, half_adopted: Former) -> None:
    state = dataclasses.replace(record(host), proved=want.target)
    assert converge.not_half_adopted(state, host, LAYOUT, REPORT) == state
    assert converge.not_half_adopted(State("qwen3vl"), host, LAYOUT, REPORT) == State("qwen3vl")
    assert host.read(LAYOUT.unit) != "[Service]\nExecStart=/srv/old\n"


# Keys


@pytest.fixture
def running(host: Host, want: Wanted, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """A service that is up and takes the keys of its file; the function says how it answers when it is asked."""
    deployed(want, host)
    host.make_dir(LAYOUT.run_dir)
    shown = {"MainPID": "1", "ActiveState": "active"}
    monkeypatch.setattr(rotate, "unit_properties", lambda _, __, *asked: {name: shown[name] for name in asked})

    def answers(fault: Exception | None) -> None:
        def in_force(*_: object) -> None:
            if fault:
                raise fault

        monkeypatch.setattr(prove, "keys_in_force", in_force)

    answers(None)
    return answers


Answers = Callable[[Exception | None], None]


def held(host: Host) -> set[str]:
    """The keys of the unit; those in force and those of the record are the same."""
    unit = {key.digest for key in unit_keys(host, LAYOUT)}
    live = {line.split()[2] for line in (host.read(LAYOUT.run_dir / "keys") or "").splitlines()}
    proved = record(host).proved
    assert proved is not None
    assert unit == live == {key.digest for key in proved.keys}
    return unit


def set_key(host: Host, text: str, name: str = "default", keep_old: bool = False) -> list[Rotated]:
    shown: list[Rotated] = []
    keep = rotate.timedelta(hours=1) if keep_old else None
    rotate.set_key("qwen3vl", Rotation(name, text, keep_old=keep), host, REPORT, shown.append)
    return shown


def test_a_key_is_set_and_revoked(host: Host, running: Answers) -> None:
    assert [done.service for done in set_key(host, "sk-guest", "guest")] == [rotate.SERVES]
    assert digest("sk-guest") in held(host)
    rotate.revoke_key("qwen3vl", "guest", host, REPORT)
    assert held(host) == {key.digest for key in KEYS}
    assert [event.outcome for event in record(host).history[-2:]] == ["proved", "proved"]


def test_a_revocation_stays_where_the_service_says_nothing(host: Host, running: Answers) -> None:
    set_key(host, "sk-guest", "guest")
    running(Silent("no answer within 10 s"))
    with pytest.raises(NotProved) as caught:
        rotate.revoke_key("qwen3vl", "guest", host, REPORT)
    assert held(host) == {key.digest for key in KEYS}
    assert (record(host).rekeying, record(host).history[-1].outcome) == (None, "in force; the service answered nothing")
    assert caught.value.exit_code == Exit.NOT_PROVED
    assert "keys revoke guest is in force and stays so" in caught.value.message
    assert "no answer within 10 s" in caught.value.message
    assert "sudo systemctl restart qwen3vl" in caught.value.hint


@pytest.mark.parametrize(
    ("fault", "is_gone"), [(None, True), (Silent("no answer"), True), (NotProved("200 instead of 401"), False)]
)
def test_a_limit_goes_with_the_key_that_is_revoked_and_with_no_other(
    host: Host, running: Answers, fault: Exception | None, is_gone: bool
) -> None:
    set_key(host, "sk-guest", "guest")
    limit.change("qwen3vl", "guest", {"concurrent": "8"}, host, REPORT)
    running(fault)
    with pytest.raises(InstallError) if fault else nullcontext():
        rotate.revoke_key("qwen3vl", "guest", host, REPORT)
    assert ("guest" in limit.of_service(host, LAYOUT)) != is_gone


def test_the_keys_of_before_are_taken_again_where_they_are_others_now(
    host: Host, want: Wanted, running: Answers
) -> None:
    rotate.take_keys("qwen3vl", KEYS, host, REPORT)
    known = record(host)
    assert [event.what for event in known.history] == ["deploy"], "they are the same"
    set_key(host, "sk-guest", "guest")
    rotate.take_keys("qwen3vl", KEYS, host, REPORT)
    assert held(host) == {key.digest for key in KEYS}
    set_key(host, "sk-guest", "guest")
    attempt(with_settings(want, port=8001), host).claim()
    with transaction.changing(LAYOUT, "set PORT=8001", host):
        rotate.take_keys("qwen3vl", KEYS, host, REPORT)
    assert held(host) == {key.digest for key in KEYS}, "what that would come back to has them as well"


def test_a_key_that_took_anothers_place_is_shown_where_the_service_says_nothing(host: Host, running: Answers) -> None:
    running(Silent("no answer"))
    shown: list[Rotated] = []
    with pytest.raises(NotProved):
        rotate.set_key("qwen3vl", Rotation(), host, REPORT, shown.append)
    ((made, service),) = [(done.made, done.service) for done in shown]
    assert (digest(made or ""), service) == (next(iter(held(host) - {KEYS[1].digest})), rotate.SILENT)


def test_a_leaked_key_goes_first_and_then_what_was_cut_off_is_undone(
    host: Host, want: Wanted, proofs: Proofs, running: Answers
) -> None:
    set_key(host, "sk-leaked", "leaked")
    attempt(with_settings(want, port=8001), host).claim()
    rotate.revoke_key("qwen3vl", "leaked", host, REPORT)
    outcomes = [(event.what, event.outcome) for event in record(host).history[-2:]]
    assert outcomes == [("keys revoke leaked", "proved"), ("set PORT=8001", "undone: cut off")]
    assert record(host).pending is None
    assert digest("sk-leaked") not in {key.digest for key in unit_keys(host, LAYOUT)}
    with transaction.changing(LAYOUT, "set PORT=8001", host):
        attempt(with_settings(want, port=8001), host).claim()
        set_key(host, "sk-guest", "guest")
    assert record(host).pending == "set PORT=8001", "whoever is at it undoes it"


def test_of_a_service_that_was_never_proved_no_key_is_changed_but_while_it_is_deployed(
    host: Host, want: Wanted, running: Answers
) -> None:
    save_state(host, LAYOUT, dataclasses.replace(record(host), proved=None))
    with pytest.raises(Refused, match="qwen3vl was never proved") as refused:
        set_key(host, "sk-guest", "guest")
    assert refused.value.hint == "vllm-install deploy --service qwen3vl"
    save_state(host, LAYOUT, dataclasses.replace(record(host), pending="deploy"))
    with pytest.raises(InstallError, match="deploy was cut off before the service was proved"):
        set_key(host, "sk-guest", "guest")
    assert digest("sk-guest") not in {key.digest for key in unit_keys(host, LAYOUT)}
    with transaction.changing(LAYOUT, "deploy", host):
        assert [done.service for done in set_key(host, "sk-guest", "guest")] == [rotate.STARTS]
    assert digest("sk-guest") in {key.digest for key in unit_keys(host, LAYOUT)}, "who deploys it proves it"


@pytest.mark.parametrize("name", ["guest", "default"])
def test_a_key_that_took_nothing_away_goes_again_where_the_service_says_nothing(
    host: Host, running: Answers, name: str
) -> None:
    running(Silent("no answer"))
    with pytest.raises(InstallError, match="no answer; the keys are as they were"):
        set_key(host, "sk-new", name, keep_old=True)
    assert held(host) == {key.digest for key in KEYS}
    assert record(host).history[-1].outcome == "undone: no answer"


def test_a_revocation_that_the_service_does_not_heed_is_undone(host: Host, running: Answers) -> None:
    set_key(host, "sk-guest", "guest")
    running(NotProved("a request with a wrong key was answered with 200 instead of 401"))
    with pytest.raises(InstallError, match="200 instead of 401; the keys are as they were"):
        rotate.revoke_key("qwen3vl", "guest", host, REPORT)
    assert digest("sk-guest") in held(host)


def test_an_expired_key_is_none_that_was_taken_away(host: Host, want: Wanted, running: Answers) -> None:
    over = Key("default-old", digest("sk-over"), expiry="2020-01-01T00:00:00Z")
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", (*KEYS, over)))
    running(Silent("no answer"))
    with pytest.raises(InstallError, match="the keys are as they were"):
        set_key(host, "sk-guest", "guest")


def test_while_a_launcher_starts_its_keys_are_not_trusted(
    host: Host, running: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started with the keys of before, and has yet to put them there."""
    host.write(Path("/proc/1/cmdline"), "python\0/opt/vllm_launcher.py\0launch")
    monkeypatch.setattr(rotate, "TAKES_UP", 0)
    with pytest.raises(InstallError, match="did not take the new keys; the keys are as they were"):
        set_key(host, "sk-guest", "guest")


@pytest.mark.parametrize(("pid", "is_trusted"), [(1, True), (7, False)])
def test_a_launcher_in_a_container_is_waited_for_and_podman_is_none(
    host: Host, running: Answers, monkeypatch: pytest.MonkeyPatch, pid: int, is_trusted: bool
) -> None:
    """Podman has the launcher's name among its words for as long as the container runs."""
    host.write(Path("/proc/1/cmdline"), "podman\0run\0sha256:1\0/opt/vllm_launcher.py\0launch")
    host.write(Path("/proc/7/cmdline"), "python3\0/opt/vllm_launcher.py\0launch")
    monkeypatch.setattr(rotate, "of_unit", lambda *_: [pid])
    monkeypatch.setattr(rotate, "TAKES_UP", 0)
    with nullcontext() if is_trusted else pytest.raises(InstallError, match="did not take the new keys"):
        set_key(host, "sk-guest", "guest")


@pytest.mark.parametrize("held_when_asked", [False, True])
def test_a_service_that_holds_its_callers_is_not_asked(
    host: Host, running: Answers, monkeypatch: pytest.MonkeyPatch, held_when_asked: bool
) -> None:
    """Or was asked just before its engine ended: then a silence says nothing."""
    running(Silent("it was asked"))
    held = [None, Holding(1, 0, 120)] if held_when_asked else [Holding(1, 0, 120)]
    monkeypatch.setattr(rotate, "holding", lambda *_: held.pop(0) if len(held) > 1 else held[0])
    assert [done.service for done in set_key(host, "sk-guest", "guest")] == [rotate.STARTS]


@pytest.mark.parametrize("state", ["activating", "inactive"])
def test_a_service_that_does_not_answer_yet_is_not_asked(
    host: Host, running: Answers, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    running(Silent("it was asked"))
    monkeypatch.setattr(rotate, "unit_properties", lambda *_: {"MainPID": "1", "ActiveState": state})
    (done,) = set_key(host, "sk-guest", "guest")
    assert done.service == {"activating": rotate.STARTS, "inactive": rotate.STOPPED}[state]


def test_what_a_change_would_come_back_to_loses_the_key_as_well(
    host: Host, want: Wanted, proofs: Proofs, running: Answers
) -> None:
    """It is proved by whoever changes the service; of the two generations only the one has the newer key."""
    set_key(host, "sk-leaked", "leaked")
    newer = dataclasses.replace(with_settings(want, port=8001).target, keys=(*KEYS, Key("leaked", digest("sk-leaked"))))
    attempt(dataclasses.replace(want, target=newer), host).claim()
    with transaction.changing(LAYOUT, "set PORT=8001", host):
        host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", (*newer.keys, Key("new", digest("sk-new")))))
        rotate.revoke_key("qwen3vl", "leaked", host, REPORT)
    proved = record(host).proved
    assert proved is not None
    assert proved.keys == KEYS, "not the key that only the unit has"


def test_a_key_that_goes_while_the_way_back_is_planned_stays_away(
    host: Host, want: Wanted, proofs: Proofs, running: Answers
) -> None:
    set_key(host, "sk-leaked", "leaked")
    now = dataclasses.replace(want, target=dataclasses.replace(want.target, keys=tuple(unit_keys(host, LAYOUT))))
    attempt(with_settings(now, port=8001), host).run()
    state, before = converge.recorded(host, LAYOUT, REPORT)
    rotate.revoke_key("qwen3vl", "leaked", host, REPORT)
    back, changes = deploy.way_back(state, host, LAYOUT, before)
    assert (back.target.settings.port, back.probe_key) == (8000, PROBE_KEY)
    assert digest("sk-leaked") in {key.digest for key in back.target.keys}, "it was planned with it"
    run_changes([change for change in changes if isinstance(change, Write)], host, REPORT)
    assert unit_keys(host, LAYOUT) == list(KEYS)


def test_a_generation_that_would_be_left_without_a_key_gets_those_of_now(
    host: Host, want: Wanted, proofs: Proofs, running: Answers
) -> None:
    attempt(with_settings(want, port=8001), host).claim()
    new = Key("new", digest("sk-new"))
    with transaction.changing(LAYOUT, "set PORT=8001", host):
        host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", (*KEYS, new)))
        rotate.revoke_key("qwen3vl", "default", host, REPORT)
    proved = record(host).proved
    assert proved is not None
    assert set(proved.keys) == {KEYS[1], new}


def test_keys_pasted_in_come_back_byte_for_byte(host: Host, running: Answers) -> None:
    text = (host.read(LAYOUT.unit) or "").replace(f"default=sha256:{KEYS[0].digest}", '"my=sk-100%%-mine-and-nobodys"')
    host.write(LAYOUT.unit, text)
    running(NotProved("no"))
    with pytest.raises(InstallError, match="the keys are as they were"):
        set_key(host, "sk-guest", "guest")
    assert host.read(LAYOUT.unit) == text


def test_a_key_that_nobody_was_shown_is_not_in_force(host: Host, running: Answers) -> None:
    def gone(_: Rotated) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody reads")

    with pytest.raises(InstallError, match=r"nobody reads .* the keys are as they were") as caught:
        rotate.set_key("qwen3vl", Rotation(), host, REPORT, gone)
    assert caught.value.exit_code == Exit.NOT_PROVED
    assert held(host) == {key.digest for key in KEYS}
    assert DEFAULT_KEY not in str(record(host))


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_unit_that_only_root_reads_stays_so_whatever_becomes_of_its_keys(
    host: Host, running: Answers, is_taken: bool
) -> None:
    """It may hold a key as it is."""
    host.at(LAYOUT.unit).chmod(0o600)
    running(None if is_taken else NotProved("no"))
    with nullcontext() if is_taken else pytest.raises(InstallError):
        set_key(host, "sk-guest", "guest")
    assert (digest("sk-guest") in held(host)) is is_taken
    assert host.mode(LAYOUT.unit) == 0o600


def test_the_keys_of_a_masked_unit_cannot_be_changed(host: Host, running: Answers) -> None:
    host.remove(LAYOUT.unit)
    host.at(LAYOUT.unit).symlink_to("/dev/null")
    with pytest.raises(Refused, match=r"qwen3vl\.service is masked") as caught:
        set_key(host, "sk-guest", "guest")
    assert caught.value.hint == "systemctl unmask qwen3vl && vllm-install deploy --service qwen3vl"
    assert record(host).rekeying is None


# Letting a service go


class Cut(Report):
    """Interrupted when the N-th change is done."""

    def __init__(self, number: int) -> None:
        self.left = number

    def done(self, change: Described) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted("SIGTERM")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_ejection_that_fails_is_undone(host: Host, want: Wanted, proofs: Proofs, number: int) -> None:
    before = deployed(want, host)
    with pytest.raises(InstallError, match=r"qwen3vl\.service is back as it was") as caught:
        eject.eject("qwen3vl", host, Cut(number))
    assert caught.value.exit_code == Exit.INTERRUPTED
    assert files(host) == before
    assert record(host).pending is None


@pytest.mark.parametrize("number", [5, 6, 7])
def test_an_ejection_whose_record_is_gone_is_not_undone_but_completed(
    host: Host, want: Wanted, proofs: Proofs, number: int
) -> None:
    deployed(want, host)
    host.write(LAYOUT.state_dir / "adopted-from/unit", "a key")
    with pytest.raises(InstallError, match="the service is yours already, and runs on"):
        eject.eject("qwen3vl", host, Cut(number))
    with suppress(InstallError):
        eject.eject("qwen3vl", host, REPORT)
    assert not host.exists(LAYOUT.state_dir)
    assert not host.exists(LAYOUT.settings_file)
    assert str(LAYOUT.state_dir) not in (host.read(LAYOUT.unit) or "")


@pytest.mark.parametrize("ours", [True, False])
def test_a_settings_file_that_the_admin_wrote_stays_when_a_service_is_let_go(
    host: Host, want: Wanted, proofs: Proofs, ours: bool
) -> None:
    deployed(want, host)
    if not ours:
        owned = {path: digests for path, digests in record(host).owned.items() if path != str(LAYOUT.settings_file)}
        save_state(host, LAYOUT, dataclasses.replace(record(host), owned=owned))
    eject.eject("qwen3vl", host, REPORT)
    assert host.exists(LAYOUT.settings_file) != ours


def test_a_unit_that_only_root_reads_is_let_go_as_one(host: Host, want: Wanted, proofs: Proofs) -> None:
    deployed(want, host)
    host.at(LAYOUT.unit).chmod(0o600)
    eject.eject("qwen3vl", host, REPORT)
    assert host.mode(LAYOUT.unit) == 0o600
    assert host.mode(LAYOUT.ejected_probe_key) == 0o600


@pytest.mark.parametrize("ours", [True, False])
def test_a_plan_of_an_ejection_says_what_it_will_do(host: Host, want: Wanted, proofs: Proofs, ours: bool) -> None:
    deployed(want, host)
    if not ours:
        owned = {path: digests for path, digests in record(host).owned.items() if path != str(LAYOUT.settings_file)}
        save_state(host, LAYOUT, dataclasses.replace(record(host), owned=owned))
    host.write(LAYOUT.probe_key, f"{PROBE_KEY}\n")
    planned = [change.to_json() for change in eject.plan("qwen3vl", host)]
    assert PROBE_KEY not in str(planned)
    assert planned == [change.to_json() for change in eject.eject("qwen3vl", host, REPORT)]
    assert (str(LAYOUT.settings_file) in [each.get("path") for each in planned]) is ours


def test_what_stands_behind_a_gateway_is_not_let_go(host: Host, proofs: Proofs) -> None:
    """The gateway's certificate, keys and configuration are this tool's to look after."""
    want = replicated((), (), model=BUILTIN)
    recorded(want, [], host)
    with pytest.raises(InstallError, match="stands behind a gateway") as caught:
        eject.eject("qwen3vl", host, REPORT)
    assert caught.value.exit_code == Exit.REFUSED
    assert record(host).proved is not None


def test_a_host_of_several_is_not_let_go(host: Host, want: Wanted, proofs: Proofs) -> None:
    before = deployed(want, host)
    save_group(host, LAYOUT, Group("g", (Peer("gpu-1"), Peer("gpu-2"))))
    with pytest.raises(Refused, match="on several hosts"):
        eject.eject("qwen3vl", host, REPORT)
    host.remove(LAYOUT.group_file)
    assert files(host) == before


def test_replicas_that_are_gone_are_ours_no_more(host: Host, want: Wanted, proofs: Proofs) -> None:
    """Else the next one who has a unit of that name would be said to have edited ours."""
    two = replicated((), (), model=BUILTIN)
    recorded(two, [change for change in steps.unit_files(two, host) if isinstance(change, Write)], host)
    assert str(LAYOUT.unit.with_name("qwen3vl@2.service")) in record(host).owned
    attempt(want, host).run()
    assert str(LAYOUT.unit.with_name("qwen3vl@2.service")) in record(host).owned, "it lies there"
    for path in (LAYOUT.unit.with_name("qwen3vl@2.service"), config_file(LAYOUT)):
        host.remove(path)
    attempt(want, host).run()
    left = [Path(path).name for path in record(host).owned]
    assert "qwen3vl@1.service" in left
    assert not {"qwen3vl@2.service", "qwen3vl.haproxy.cfg"} & set(left)


def test_an_ejection_is_on_the_record_before_it_begins(
    host: Host, want: Wanted, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(want, host)

    seen: list[str | None] = []
    monkeypatch.setattr(eject._Ejection, "apply", lambda self: seen.append(record(self.host).pending))
    eject.eject("qwen3vl", host, REPORT)
    assert seen == ["eject"]


def test_each_change_is_told_when_it_begins_and_when_it_is_done(host: Host) -> None:
    told: list[tuple[str, object, bool]] = []

    class Told(Report):
        def begin(self, change: Described, line: str | None = None) -> None:
            told.append(("begins", change, host.exists(Path("/srv/a"))))

        def done(self, change: Described) -> None:
            told.append(("done", change, host.exists(Path("/srv/a"))))

    change = Write(Path("/srv/a"), "x")
    run_changes([change], host, Told())
    assert told == [("begins", change, False), ("done", change, True)]


def test_who_waits_for_what_is_shared_is_told_for_which_change(host: Host) -> None:
    change = Write(LAYOUT.runtimes / "x/y.py", "")
    holders: list[str] = []

    class Looking(Report):
        def begin(self, change: Described, line: str | None = None) -> None:
            holder = host.lock_holder(LAYOUT.shared_lock)
            holders.append(holder.command if holder else "nobody")

    run_changes([change], host, Looking())
    assert holders == [f"vllm-install: {change.describe()} (pid {os.getpid()})"]
