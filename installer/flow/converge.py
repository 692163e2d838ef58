"""The transaction that leads to a target, and the ways back from one: after a failure, and after a cut."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol

from installer.base.changes import Change, Write
from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.language import english, first_line, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import fit, prove, receipt, steps
from installer.flow.roll import keys_of_now, without_handover
from installer.flow.transaction import Transaction, apply, shared
from installer.flow.wanted import Wanted
from installer.spec.keys import Key
from installer.spec.records import managed
from installer.spec.settings import Settings
from installer.spec.soak import Soak
from installer.spec.state import State
from installer.spec.target import Target
from installer.units import keyring, render
from installer.units.graph import Member, handle, on_disk
from installer.units.render import fingerprint
from installer.units.systemd import unit_properties
from installer.weights import models


class Judge(Protocol):
    """Whether a change stays that serves: it looks at it before and after, and raises what is against it."""

    def before(self) -> None: ...
    def after(self, target: Target) -> None: ...


class Convergence(Transaction):
    """Proved that it serves what is wanted, and opens to the new keys; or the host converges to what was proved."""

    outcome = "proved"
    soak: Soak | None = None  # that begins or ends with it
    key_shown = True  # somebody has seen the default key
    new_keys: tuple[str, ...] = ()  # that have to open the service then
    judge: Judge | None = None

    def __init__(
        self, verb: str, want: Wanted, changes: list[Change], state: State, host: Host, report: Report
    ) -> None:
        super().__init__(want.layout, changes, host, report)
        self.verb, self.want, self.state = verb, want, state
        self.is_first = state.proved is None
        self.settings_text = host.read(self.layout.settings_file)
        self.start = prove.Start(is_first=self.is_first)

    def claim(self) -> None:
        with shared(self.verb, self.host, self.report):
            self._check_shared()
            self.state = receipt.claim(
                self.state, self.want, list(self.changes), self.host, self.verb, self.report, key_shown=self.key_shown
            )

    def _check_shared(self) -> None:
        """What several services share was there when this was planned, or is among the changes."""

        def what(change: Change) -> tuple[object, ...]:
            return type(change), change.model.path if isinstance(change, models.Download) else getattr(
                change, "path", None
            )

        planned = {what(change) for change in self.changes}
        due = (change for step in (steps.engine, steps.weights) for change in step(self.want, self.host))
        if any(what(change) not in planned for change in due):
            raise Refused(tr("what this service needs was removed meanwhile"), tr("run the same command again"))

    def apply(self) -> None:
        self.start = prove.started_by(self.changes, self.host, is_first=self.is_first)
        super().apply()

    def prove(self) -> None:
        prove.serving(self.want, self.host, self.report, self.start)
        if self.start.since:
            keys_of_now(self.host, self.layout, self.report)
        for key in self.new_keys:
            prove.keys_in_force(self.want, self.host, key)
        if self.judge:
            self.judge.after(self.want.target)

    def remember(self) -> None:
        measured = fit.measured(self.want.target, self.layout, self.host)
        self.state = receipt.remember(
            self.state, self.want.target, self.host, self.outcome, self.report, measured, self.soak
        )

    def undo(self, why: str) -> str:
        outcome = put_back(self.state, self.settings_text, why, self.host, self.layout, self.report)
        before, tried = self.state.proved, self.want.target.settings
        if before and _same_but_for_context(before.settings, tried):
            return tr("the service is back at {context}", context=before.settings.max_model_len or "auto")
        return outcome


def _same_but_for_context(before: Settings, tried: Settings) -> bool:
    return before != tried and dataclasses.replace(tried, max_model_len=before.max_model_len) == before


def recorded(host: Host, layout: Layout, report: Report) -> tuple[State, tuple[Key, ...]]:
    """What is known of a service when a change of it begins, and its keys at that moment: others may change them."""
    _let_handover_end(host, layout, report)
    with keyring.locked(host, layout, report) as state:
        return state or State(layout.service), keyring.held_in_unit(host, layout)


def _let_handover_end(host: Host, layout: Layout, report: Report) -> None:
    """It goes on when whoever asked for it was killed, and what it ends with is what a change begins from."""
    for member in (handle(layout), *on_disk(host, layout)):
        if _is_handed_over(member, host):
            report.note(tr("waiting for {unit}, which is handed over just now", unit=member.name))
        while _is_handed_over(member, host):
            time.sleep(prove.POLL)


def _is_handed_over(member: Member, host: Host) -> bool:
    """Or is about to be: there is a moment between a job's beginning and the unit's."""
    now = unit_properties(host, member.name, "ActiveState", "Job")
    state = now.get("ActiveState")
    return state == "reloading" or (state == "active" and bool(now.get("Job")))


def with_probe_key(target: Target, host: Host, layout: Layout, held: tuple[Key, ...] | None) -> Wanted:
    return Wanted(target, layout, (host.read(layout.probe_key) or "").strip(), held=held)


# What was cut off


def settled(host: Host, layout: Layout, report: Report) -> State:
    """The state with nothing half done in it: what was cut off is undone before anything new begins."""
    managed(host, layout)
    state, _ = recorded(host, layout, report)
    if not state.pending:
        return state
    if state.former and state.proved is None:
        not_half_adopted(state, host, layout, report)
        raise Refused(
            tr("vllm-install manages no service {service} on this host", service=layout.service),
            "vllm-install adopt SOURCE",
        )
    if state.proved is None:
        raise Refused(
            tr("{pending} was cut off before the service was proved", pending=state.pending),
            tr("vllm-install deploy completes it"),
        )
    report.warn(tr("{pending} was cut off; undoing it first", pending=state.pending))
    return _converge_back(state, host, layout, report, "undone: cut off")


def never_proved(layout: Layout) -> Refused:
    hint = f"vllm-install deploy --service {layout.service}"
    return Refused(tr("{service} was never proved", service=layout.service), hint)


def not_half_adopted(state: State, host: Host, layout: Layout, report: Report) -> State:
    """The state after an adoption that was cut off is undone: the old unit runs again, and nothing here is ours."""
    if state.former is None or state.proved is not None:
        return state
    pending, unit = state.pending or "adopt", state.former.unit
    report.warn(tr("{pending} was cut off; undoing it first: {unit} comes back", pending=pending, unit=unit))
    _take_away(state, host, layout, report)
    return State(layout.service)


def _take_away(state: State, host: Host, layout: Layout, report: Report) -> None:
    """All but what was downloaded; nobody changes a key meanwhile, who would bring a part of it back."""
    with keyring.locked(host, layout, report):
        apply(steps.removal(layout, state, host, weights=False, engine=False), host, report)


# The way back


def put_back(state: State, settings_text: str | None, summary: str, host: Host, layout: Layout, report: Report) -> str:
    """Converge forwards to what was proved last; with nothing proved yet, take everything away but the downloads."""
    report.warn(tr("{summary}; putting the host back as it was", summary=summary))
    if state.proved is None:
        _take_away(state, host, layout, report)
        if state.former:
            unit = state.former.unit
            return tr("{unit} is back as it was; the engine and the weights stay for the next try", unit=unit)
        return tr("nothing of the service is left; the engine and the weights stay for the next try")
    _settings_back(settings_text, host, layout)
    _converge_back(state, host, layout, report, f"undone: {english(summary)}")
    return tr("{unit} is back as it was", unit=layout.unit_name)


def _settings_back(text: str | None, host: Host, layout: Layout) -> None:
    """Converging would give back the values, but not every byte."""
    if text is not None and host.read(layout.settings_file) != text:
        host.write(layout.settings_file, text, host.mode(layout.settings_file) or 0o644)


def go_back(
    before: State | None, settings_text: str | None, what: str, host: Host, layout: Layout, report: Report
) -> None:
    """To what was there before a change of several hosts, whatever of it was proved here since.

    What was proved then is written down as proved, and this as a change that was cut off: from there on it is undone
    as any other would be, by us or by the next command.
    """
    state, _ = recorded(host, layout, report)
    if before is None or before.proved is None:
        report.warn(tr("{what} is undone", what=what))
        _take_away(state, host, layout, report)
        return
    if state.proved == replace_keys(before.proved, state) and not state.pending:
        return
    report.warn(tr("{what} is undone; putting the host back as it was", what=what))

    def taken_back(now: State) -> State:
        return dataclasses.replace(
            now, proved=replace_keys(before.proved, now), previous=before.previous, calibration=before.calibration,
            pending=what, soak=before.soak,
        )  # fmt: skip

    state = keyring.update(state, taken_back, host, layout, report)
    _settings_back(settings_text, host, layout)
    _converge_back(state, host, layout, report, "undone on all hosts")


def replace_keys(target: Target | None, now: State) -> Target | None:
    """A key that was revoked since comes back by no undoing."""
    return dataclasses.replace(target, keys=now.proved.keys) if target and now.proved else target


def _converge_back(state: State, host: Host, layout: Layout, report: Report, outcome: str) -> State:
    """To what was proved, with the keys that it has now: one may have been revoked meanwhile."""
    state, held = recorded(host, layout, report)
    proved = state.proved
    assert proved is not None, "there is something to converge to"
    want = dataclasses.replace(with_probe_key(proved, host, layout, held), is_way_back=True)
    verb = state.pending or "deploy"
    with shared(verb, host, report):
        changes = steps.plan(want, host)
        if all(isinstance(change, models.Download) for change in changes):
            changes = []  # weights that went bad under a running service are no reason to touch it
        due = [_keeping_edits(change, want, state, host) for change in changes]
        state = receipt.claim(state, want, changes, host, verb, report, key_shown=state.key_shown)
    try:
        _carried_out(due, want, host, report)
    except InstallError as error:
        restarts = [restart for change in due if (restart := without_handover(change))]
        if not restarts:
            raise
        report.warn(tr("{why}; restarting it instead", why=first_line(error.message)))
        _carried_out(restarts, want, host, report)
    return receipt.remember(state, proved, host, outcome, report)


def _carried_out(changes: Sequence[Change], want: Wanted, host: Host, report: Report) -> None:
    start = prove.started_by(changes, host, is_way_back=want.is_way_back)
    apply(changes, host, report)
    prove.serving(want, host, report, start)
    if start.since:
        keys_of_now(host, want.layout, report)


def _keeping_edits(change: Change, want: Wanted, state: State, host: Host) -> Change:
    """What was edited by hand is none of what was cut off: of an edited unit only the keys go back."""
    if not isinstance(change, Write) or not want.layout.has_unit(change.path.name):
        return change
    text = host.read(change.path)
    if not text or fingerprint(text, change.path, want.layout) in state.owned.get(str(change.path), ()):
        return change
    return dataclasses.replace(change, text=render.with_keys(text, want.target.keys))
