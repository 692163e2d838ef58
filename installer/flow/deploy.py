"""The verbs that lead a service to settings: look, refuse or resolve, plan; then the transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from installer.adoption import former
from installer.base.changes import Change
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import preflight
from installer.flow import fit, ownership, prove, receipt, staged, steps, watched
from installer.flow.converge import Convergence, Judge, not_half_adopted, recorded, settled, with_probe_key
from installer.flow.request import Request
from installer.flow.resolve import Resolved, resolve
from installer.flow.staged import Staged
from installer.flow.transaction import apply, changing
from installer.flow.wanted import Wanted
from installer.flow.watched import Watched
from installer.forms.podman import images
from installer.forms.venv import engines
from installer.memory.capacity import Estimate
from installer.spec.keys import Key
from installer.spec.problem import Problem
from installer.spec.records import check_unmanaged, load_state, managed
from installer.spec.state import State
from installer.units import keyring
from installer.weights import models


@dataclass(frozen=True)
class Deployed:
    want: Wanted
    changes: tuple[Change, ...]
    new_key: str | None
    first: bool  # the service was not there before


Show = Callable[[Deployed], None]


@dataclass(frozen=True)
class Planned:
    want: Wanted
    changes: list[Change]


def plan(request: Request, host: Host, report: Report) -> Planned:
    """What deploy would do now. Looks at the host and asks the hub and the index, but changes nothing."""
    layout = Layout(request.settings.service)
    state = load_state(host, layout) or State(layout.service, former=request.former)
    resolved = resolve(request, state, host, report, for_real=False)
    return Planned(resolved.want, _checked_plan(request, resolved, state, host))


def deploy(request: Request, host: Host, report: Report, show: Show) -> None:
    """Converge the host to the settings, prove that it serves, or put it back as it was.

    `show` hands the result, a new key among it, to the user; only when it returns does the key count as known.
    """
    layout = Layout(request.settings.service)
    with changing(layout, request.verb, host):
        state, held = recorded(host, layout, report)
        state = not_half_adopted(state, host, layout, report)
        if state.pending:
            report.warn(tr("{pending} was cut off; this run completes it", pending=state.pending))
        _converge(request, state, host, report, show, held)


def stage(request: Request, host: Host, report: Report) -> Staged:
    """What is slow and only adds, engine and weights, while everything serves on as it is."""
    layout = Layout(request.settings.service)
    with changing(layout, request.verb, host):
        state = load_state(host, layout) or State(layout.service)
        want = resolve(request, state, host, report, for_real=False).want
        apply([*steps.engine(want, host), *steps.weights(want, host)], host, report)
        return staged.of(want, host)


def adopt(request: Request, host: Host, report: Report, show: Show) -> None:
    """Take the place of a deployment that somebody made by hand: proved, or everything is as it was."""
    layout = Layout(request.settings.service)
    with changing(layout, "adopt", host):
        check_unmanaged(host, layout)
        state = State(layout.service, former=request.former)
        if request.former:
            former.keep(request.former, host, layout)
        _converge(request, state, host, report, show)


def make_way(service: str, host: Host, report: Report) -> None:
    """What an adoption that was cut off left behind is undone before anybody looks at the old deployment again."""
    layout = Layout(service)
    state = load_state(host, layout)
    if state and state.former and state.proved is None:
        with changing(layout, "adopt", host):
            not_half_adopted(state, host, layout, report)


def capacity_of(request: Request, host: Host, report: Report) -> Estimate | None:
    """What would fit with these settings; changes nothing."""
    layout = Layout(request.settings.service)
    state = managed(host, layout)
    resolved = resolve(request, state, host, report, for_real=False)
    return fit.estimate(resolved.want.target, resolved.facts, state, host, resolved.about)


def settle(service: str, verb: str, host: Host, report: Report) -> None:
    """Undo what was cut off, if anything was."""
    layout = Layout(service)
    state = load_state(host, layout)
    if state and state.pending:
        with changing(layout, verb, host):
            settled(host, layout, report)


def change(request: Request, host: Host, report: Report, show: Show, judge: Judge | None = None) -> None:
    """The same for a service that is there already; what an earlier change left half done is undone first."""
    layout = Layout(request.settings.service)
    with changing(layout, request.verb, host):
        settled(host, layout, report)
        state, held = recorded(host, layout, report)
        _converge(request, state, host, report, show, held, judge)


def plan_change(request: Request, host: Host, report: Report) -> list[Change]:
    """What `change` would do now to a service that is there."""
    managed(host, Layout(request.settings.service))
    return plan(request, host, report).changes


def rollback(service: str, host: Host, report: Report, show: Show) -> None:
    """Return to the generation before the last change, with today's keys: a revoked key stays revoked."""
    layout = Layout(service)
    with changing(layout, "rollback", host):
        settled(host, layout, report)
        state, held = recorded(host, layout, report)
        want, changes = way_back(state, host, layout, held)
        _carry_out(Convergence("rollback", want, changes, state, host, report), None, show)
        watched.dismiss(host, layout, report)


def plan_rollback(service: str, host: Host) -> list[Change]:
    layout = Layout(service)
    return way_back(managed(host, layout), host, layout)[1]


def way_back(
    state: State, host: Host, layout: Layout, held: tuple[Key, ...] | None = None
) -> tuple[Wanted, list[Change]]:
    """The generation before the last change, and the way there."""
    if state.proved is None or state.previous is None:
        raise Refused(
            tr("{service} has no earlier generation to return to", service=layout.service),
            f"vllm-install status --service {layout.service}",
        )
    want = with_probe_key(dataclasses.replace(state.previous, keys=state.proved.keys), host, layout, held)
    changes = steps.plan(want, host)
    _refuse(ownership.objections(changes, host, layout, state, discard_edits=False))
    return want, changes


def _converge(
    request: Request, state: State, host: Host, report: Report, show: Show, held: tuple[Key, ...] = (),
    judge: Judge | None = None,
) -> None:  # fmt: skip
    resolved = resolve(request, state, host, report, for_real=True)
    resolved = dataclasses.replace(resolved, want=dataclasses.replace(resolved.want, held=held))
    changes = _checked_plan(request, resolved, state, host)
    if changes:
        fit.check_context(resolved.want.target, resolved.facts, state, host, report, resolved.about)
    kind = Watched if watched.is_begun_by(changes, resolved.want.layout) else Convergence
    transaction = kind(request.verb, resolved.want, changes, state, host, report)
    transaction.new_keys = tuple(filter(None, (resolved.new_key, request.keys.given, *request.keys.further)))
    transaction.key_shown = resolved.new_key is None
    if isinstance(transaction, Watched):
        transaction.seconds = request.soak or 0
    if judge and changes and watched.serves_otherwise(resolved.want, state):
        judge.before()
        transaction.judge = judge
    _carry_out(transaction, resolved.new_key, show)


def _carry_out(transaction: Convergence, new_key: str | None, show: Show) -> None:
    want, host, report = transaction.want, transaction.host, transaction.report
    if not transaction.changes:
        prove.serving(want, host, report)
        if transaction.state.pending:
            receipt.remember(transaction.state, want.target, host, "proved", report)
        show(Deployed(want, (), None, False))
        return
    transaction.run()
    show(Deployed(want, tuple(transaction.changes), new_key, transaction.is_first))
    if not transaction.state.key_shown:
        shown = partial(dataclasses.replace, key_shown=True)
        keyring.update(transaction.state, shown, host, want.layout, report)


def _checked_plan(request: Request, resolved: Resolved, state: State, host: Host) -> list[Change]:
    layout = resolved.want.layout
    changes = steps.plan(resolved.want, host)
    changes += watched.beginning(request.soak, changes, resolved.want, state)
    replaced = request.former.paths if request.former else frozenset()
    problems = list(
        ownership.objections(changes, host, layout, state, discard_edits=request.discard_edits, replaced=replaced)
    )
    _refuse([*problems, *preflight.check_space(space_needed(changes, layout), resolved.facts)])
    return changes


def _refuse(problems: Iterable[Problem]) -> None:
    found = list(problems)
    if found:
        raise preflight.refuse(found)


def space_needed(changes: list[Change], layout: Layout) -> dict[Path, int]:
    needs = {}
    for change in changes:
        if isinstance(change, models.Download):
            needs[layout.hub] = change.model.bytes_missing
        elif isinstance(change, engines.InstallEngine):
            needs[layout.engines] = change.bytes_needed
        elif isinstance(change, images.BringImage):
            needs[images.STORAGE] = change.bytes_needed
    return needs
