"""The flow, readable top to bottom: look, refuse or resolve, plan, apply, prove, remember; or put back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from installer.adoption import former
from installer.base.changes import Change, Write
from installer.base.errors import InstallError, Refused, undone
from installer.base.host import Host
from installer.base.language import english, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import preflight
from installer.flow import fit, ownership, prove, steps
from installer.flow.resolve import Request, Resolved, resolve
from installer.flow.steps import Wanted
from installer.forms.venv import engines
from installer.memory.capacity import Estimate
from installer.model import builtin
from installer.spec.calibration import Calibration
from installer.spec.keys import Key
from installer.spec.records import check_records, load_state, managed, owned_on, services
from installer.spec.state import State, event, text_digest
from installer.spec.target import Target
from installer.units import keyring, render
from installer.units.render import fingerprint
from installer.units.systemd import has_user
from installer.weights import inventory, models

ANY = Layout("any")  # for what all services share


@dataclass(frozen=True)
class Deployed:
    want: Wanted
    changes: tuple[Change, ...]
    new_key: str | None
    first: bool  # the service was not there before


Show = Callable[[Deployed], None]


@dataclass(frozen=True)
class Attempt:
    """One transaction: what is to hold after it, and the changes that lead there."""

    verb: str
    want: Wanted
    changes: list[Change]
    new_key: str | None = None
    given: tuple[str, ...] = ()  # keys of the user's own, which have to open the service


@dataclass(frozen=True)
class Planned:
    want: Wanted
    changes: list[Change]


def plan(request: Request, host: Host, report: Report) -> Planned:
    """What deploy would do now. Looks at the host and asks the hub and the index, but changes nothing."""
    layout = Layout(request.settings.service)
    state = load_state(host, layout) or State(layout.service)
    resolved = resolve(request, state, host, report, for_real=False)
    return Planned(resolved.want, _checked_plan(request, resolved, state, host))


def deploy(request: Request, host: Host, report: Report, show: Show) -> None:
    """Converge the host to the settings, prove that it serves, or put it back as it was.

    `show` hands the result, a new key among it, to the user; only when it returns does the key count as known.
    """
    layout = Layout(request.settings.service)
    with host.lock(layout.change_lock, f"vllm-install {request.verb} --service {layout.service}"):
        state, held = _recorded(host, layout, report)
        state = not_half_adopted(state, host, layout, report)
        if state.pending:
            report.warn(tr("{pending} was cut off; this run completes it", pending=state.pending))
        _converge(request, state, host, report, show, held)


def adopt(request: Request, host: Host, report: Report, show: Show) -> None:
    """Take the place of a deployment that somebody made by hand: proved, or everything is as it was."""
    layout = Layout(request.settings.service)
    with host.lock(layout.change_lock, f"vllm-install adopt --service {layout.service}"):
        _refuse_managed(load_state(host, layout), layout)
        state = State(layout.service, former=request.former)
        if request.former:
            former.keep(request.former, host, layout)
        _converge(request, state, host, report, show)


def _recorded(host: Host, layout: Layout, report: Report) -> tuple[State, tuple[Key, ...]]:
    """What is known of a service when a change of it begins, and its keys at that moment: others may change them."""
    with keyring.locked(host, layout, report) as state:
        return state or State(layout.service), keyring.held_in_unit(host, layout)


def plan_adopt(request: Request, host: Host, report: Report) -> list[Change]:
    layout = Layout(request.settings.service)
    state = State(layout.service, former=request.former)
    resolved = resolve(request, state, host, report, for_real=False)
    return _checked_plan(request, resolved, state, host)


def make_way(service: str, host: Host, report: Report) -> None:
    """What an adoption that was cut off left behind is undone before anybody looks at the old deployment again."""
    layout = Layout(service)
    state = load_state(host, layout)
    if state and state.former and state.proved is None:
        with host.lock(layout.change_lock, f"vllm-install adopt --service {service}"):
            not_half_adopted(state, host, layout, report)
    else:
        _refuse_managed(state, layout)


def not_half_adopted(state: State, host: Host, layout: Layout, report: Report) -> State:
    """The state after an adoption that was cut off is undone: the old unit runs again, and nothing here is ours."""
    if state.former is None or state.proved is not None:
        return state
    report.warn(
        tr(
            "{pending} was cut off; undoing it first: {unit} comes back",
            pending=state.pending or "adopt",
            unit=state.former.unit,
        )
    )
    _take_away(state, host, layout, report)
    return State(layout.service)


def _take_away(state: State, host: Host, layout: Layout, report: Report) -> None:
    """All but what was downloaded; nobody changes a key meanwhile, who would bring a part of it back."""
    with keyring.locked(host, layout, report):
        apply(steps.removal(layout, state, host, weights=False, engine=False), host, report)


def _refuse_managed(state: State | None, layout: Layout) -> None:
    if state is not None:
        raise Refused(
            tr("{service} is managed by vllm-install already", service=layout.service),
            tr(
                "change it with vllm-install set --service {service}, or choose another name with --service",
                service=layout.service,
            ),
        )


def capacity_of(request: Request, host: Host, report: Report) -> Estimate | None:
    """What would fit with these settings; changes nothing."""
    layout = Layout(request.settings.service)
    state = managed(host, layout)
    resolved = resolve(request, state, host, report, for_real=False)
    return fit.estimate(resolved.want.target, resolved.facts, state, host, resolved.about)


def change(request: Request, host: Host, report: Report, show: Show) -> None:
    """The same for a service that is there already; what an earlier change left half done is undone first."""
    layout = Layout(request.settings.service)
    with host.lock(layout.change_lock, f"vllm-install {request.verb} --service {layout.service}"):
        settled(host, layout, report)
        state, held = _recorded(host, layout, report)
        _converge(request, state, host, report, show, held)


def plan_change(request: Request, host: Host, report: Report) -> list[Change]:
    """What `change` would do now to a service that is there."""
    managed(host, Layout(request.settings.service))
    return plan(request, host, report).changes


def rollback(service: str, host: Host, report: Report, show: Show) -> None:
    """Return to the generation before the last change, with today's keys: a revoked key stays revoked."""
    layout = Layout(service)
    with host.lock(layout.change_lock, f"vllm-install rollback --service {service}"):
        settled(host, layout, report)
        state, held = _recorded(host, layout, report)
        want, changes = _return(state, host, layout, held)
        _transact(Attempt("rollback", want, changes), state, host, report, show)


def plan_rollback(service: str, host: Host) -> list[Change]:
    layout = Layout(service)
    return _return(managed(host, layout), host, layout)[1]


def _return(
    state: State, host: Host, layout: Layout, held: tuple[Key, ...] | None = None
) -> tuple[Wanted, list[Change]]:
    """The generation before the last change, and the way there."""
    if state.proved is None or state.previous is None:
        raise Refused(
            tr("{service} has no earlier generation to return to", service=layout.service),
            f"vllm-install status --service {layout.service}",
        )
    want = _with_probe_key(dataclasses.replace(state.previous, keys=state.proved.keys), host, layout, held)
    changes = steps.plan(want, host)
    _refuse(ownership.check(changes, host, layout, state, discard_edits=False))
    return want, changes


def settled(host: Host, layout: Layout, report: Report) -> State:
    """The state with nothing half done in it: what was cut off is undone before anything new begins."""
    managed(host, layout)
    state, _ = _recorded(host, layout, report)
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


def apply(changes: Iterable[Change], host: Host, report: Report) -> None:
    for change in changes:
        with _alone(change, host, report):
            report.begin(change)
            change.apply(host, report)
            report.done(change)


def _alone(change: Change, host: Host, report: Report) -> AbstractContextManager[None]:
    """What services share is changed by one at a time; an engine, which takes minutes, has a lock of its own."""
    if isinstance(change, engines.InstallEngine):
        return _shared(english(change.describe()), ANY.engines_lock, report, host)
    if isinstance(change, inventory.RemoveModel | builtin.MakeBuiltin | steps.RemoveUnused) or (
        isinstance(change, Write) and (ANY.opt in change.path.parents or change.path in render.shared_units())
    ):
        return _shared(english(change.describe()), ANY.shared_lock, report, host)
    return nullcontext()


def _shared(what: str, lock: Path, report: Report, host: Host) -> AbstractContextManager[None]:
    def busy(holder: str) -> None:
        report.note(tr("waiting for: {holder}", holder=holder))

    return host.lock(lock, f"vllm-install: {what}", busy)


def plan_uninstall(service: str, host: Host, *, purge: bool) -> list[Change]:
    layout = Layout(service)
    state = managed(host, layout, to_look=True)
    return list(steps.removal(layout, state, host, weights=purge, engine=True))


def uninstall(service: str, host: Host, report: Report, *, purge: bool) -> list[Change]:
    """Remove what we made for one service; interrupted, it is simply run again."""
    layout = Layout(service)
    with host.lock(layout.change_lock, f"vllm-install uninstall --service {service}"):
        with keyring.alone(host, layout, report):
            changes = plan_uninstall(service, host, purge=purge)
            apply(changes, host, report)
        return changes


def plan_prune(host: Host) -> list[Change]:
    check_records(host)
    return list(steps.unused_programs(Layout("any"), [Layout(name) for name in services(host)], host))


def prune(host: Host, report: Report) -> list[Change]:
    """Remove engines and runtimes that nothing on this host can come back to."""
    changes = plan_prune(host)
    apply(changes, host, report)
    return changes


# The transaction


def _converge(
    request: Request, state: State, host: Host, report: Report, show: Show, held: tuple[Key, ...] = ()
) -> None:
    resolved = resolve(request, state, host, report, for_real=True)
    resolved = dataclasses.replace(resolved, want=dataclasses.replace(resolved.want, held=held))
    changes = _checked_plan(request, resolved, state, host)
    if changes:
        fit.check(resolved.want.target, resolved.facts, state, host, report, resolved.about)
    given = tuple(filter(None, (request.keys.given, *request.keys.further)))
    _transact(Attempt(request.verb, resolved.want, changes, resolved.new_key, given), state, host, report, show)


def _transact(attempt: Attempt, state: State, host: Host, report: Report, show: Show) -> None:
    want, changes, new_key = attempt.want, attempt.changes, attempt.new_key
    layout = want.layout
    if not changes:
        prove.serving(want, host, report)
        if state.pending:
            _remember(state, want.target, host, layout, "proved", report)
        show(Deployed(want, (), None, False))
        return
    settings_text = host.read(layout.settings_file)
    with _shared(attempt.verb, ANY.shared_lock, report, host):
        _check_shared(want, changes, host)
        claimed = _claim(state, want, changes, host, attempt.verb, report, key_shown=new_key is None)
    try:
        apply(changes, host, report)
        prove.serving(want, host, report)
        for key in filter(None, (new_key, *attempt.given)):
            prove.keys_in_force(want, host, key)
        measured = fit.measured(want.target, layout, host)
        remembered = _remember(claimed, want.target, host, layout, "proved", report, measured)
    except Exception as error:
        failed = undone(error, lambda why: put_back(claimed, settings_text, why, host, layout, report))
        if state.proved is None and isinstance(failed, InstallError):
            failed.hint = _for_a_first_deploy(failed.hint)
        raise failed from error
    show(Deployed(want, tuple(changes), new_key, first=state.proved is None))
    if not remembered.key_shown:
        shown = partial(dataclasses.replace, key_shown=True)
        keyring.update(remembered, shown, host, layout, report)


def _for_a_first_deploy(hint: str) -> str:
    """`set` changes a service that is there; after a first deploy that failed, none is."""
    again = tr("run the same command without those vLLM flags")
    return re.sub(r"sudo vllm-install set VLLM_ARGS= --service [a-z0-9_-]+", lambda _: again, hint)


def _checked_plan(request: Request, resolved: Resolved, state: State, host: Host) -> list[Change]:
    layout = resolved.want.layout
    changes = steps.plan(resolved.want, host)
    replaced = request.former.paths if request.former else frozenset()
    problems = list(
        ownership.check(changes, host, layout, state, discard_edits=request.discard_edits, replaced=replaced)
    )
    _refuse([*problems, *preflight.check_space(space_needed(changes, layout), resolved.facts)])
    return changes


def _refuse(problems: Iterable[preflight.Problem]) -> None:
    found = list(problems)
    if found:
        raise preflight.refuse(found)


def _with_probe_key(target: Target, host: Host, layout: Layout, held: tuple[Key, ...] | None) -> Wanted:
    return Wanted(target, layout, (host.read(layout.probe_key) or "").strip(), held=held)


def space_needed(changes: list[Change], layout: Layout) -> dict[Path, int]:
    needs = {}
    for change in changes:
        if isinstance(change, models.Download):
            needs[layout.hub] = change.model.bytes_missing
        elif isinstance(change, engines.InstallEngine):
            needs[layout.engines] = change.bytes_needed
    return needs


# Remembering


def _claim(
    state: State, want: Wanted, changes: list[Change], host: Host, verb: str, report: Report, *, key_shown: bool
) -> State:
    """Write down what is about to become ours, before it does: a receipt written last would be lost with us."""
    claim = partial(_claimed, want=want, changes=changes, host=host, verb=verb, key_shown=key_shown)
    return keyring.update(state, claim, host, want.layout, report)


def _check_shared(want: Wanted, changes: list[Change], host: Host) -> None:
    """What several services share was there when this was planned, or is among the changes."""

    def what(change: Change) -> tuple[object, ...]:
        return type(change), change.model.path if isinstance(change, models.Download) else getattr(change, "path", None)

    planned = {what(change) for change in changes}
    if any(what(change) not in planned for step in (steps.engine, steps.weights) for change in step(want, host)):
        raise Refused(tr("what this service needs was removed meanwhile"), tr("run the same command again"))


def _claimed(state: State, want: Wanted, changes: list[Change], host: Host, verb: str, key_shown: bool) -> State:
    layout, owned = want.layout, dict(state.owned)
    for change in changes:
        if isinstance(change, Write) and ownership.is_claimed(change.path, layout):
            path = str(change.path)
            written_by_admin = change.path == layout.settings_file and host.exists(change.path) and path not in owned
            if not written_by_admin:
                owned[path] = (*owned.get(path, ()), fingerprint(change.text, change.path, layout))
    # What another service of ours wrote and this one shares outlives that other service, so it becomes ours as well.
    for shared in render.shared_units().keys() & owned_on(host).keys():
        owned.setdefault(str(shared), (text_digest(host.read(shared) or ""),))
    owns_user = state.owns_user or not has_user(host, layout.user)
    return dataclasses.replace(
        state, owned=owned, owns_user=owns_user, key_shown=key_shown, pending=verb,
        pending_model=str(want.target.model.path), pending_engine=want.target.engine.id,
    )  # fmt: skip


def _remember(
    state: State, target: Target, host: Host, layout: Layout, outcome: str, report: Report,
    measured: Calibration | None = None,
) -> State:  # fmt: skip
    """The change is over: of each file only one text is ours, the one that is there; of the keys, those in the unit."""

    def over(now: State) -> State:
        owned = {path: _ours_now(path, digests, host, layout) for path, digests in now.owned.items()}
        history = (*now.history, event(now.pending or "deploy", outcome))
        proved = dataclasses.replace(target, keys=keyring.held_in_unit(host, layout) or target.keys)
        if now.former and now.former.ejected:  # it is ours again, with all that it had when it was let go
            left = {layout.sysusers: render.render(target, layout)[layout.sysusers].text, **render.shared_units()}
            owned |= {str(path): (text_digest(text),) for path, text in left.items() if host.read(path) == text}
            now = dataclasses.replace(now, former=None, owns_user=True)
        previous = now.previous
        if now.proved and _generation(now.proved, layout) != _generation(target, layout):
            previous = now.proved
        return dataclasses.replace(
            now, owned=owned, proved=proved, previous=previous, pending=None, pending_model=None, pending_engine=None,
            calibration=measured or now.calibration, history=history,
        )  # fmt: skip

    return keyring.update(state, over, host, layout, report)


def _ours_now(path: str, digests: tuple[str, ...], host: Host, layout: Layout) -> tuple[str, ...]:
    """What was claimed last may never have been written; a file that is none of ours was edited since."""
    found = fingerprint(host.read(Path(path)) or "", Path(path), layout)
    return (found,) if found in digests else digests[-1:]


def _generation(target: Target, layout: Layout) -> str:
    """Two targets of one generation differ in their keys at most."""
    return render.process_digest(target, layout)


def put_back(state: State, settings_text: str | None, summary: str, host: Host, layout: Layout, report: Report) -> str:
    """Converge forwards to what was proved last; with nothing proved yet, take everything away but the downloads."""
    report.warn(tr("{summary}; putting the host back as it was", summary=summary))
    if state.proved is None:
        _take_away(state, host, layout, report)
        if state.former:
            return tr(
                "{unit} is back as it was; the engine and the weights stay for the next try", unit=state.former.unit
            )
        return tr("nothing of the service is left; the engine and the weights stay for the next try")
    # Converging would give back the values, but not every byte.
    if settings_text is not None and host.read(layout.settings_file) != settings_text:
        host.write(layout.settings_file, settings_text, host.mode(layout.settings_file) or 0o644)
    _converge_back(state, host, layout, report, f"undone: {english(summary)}")
    if (state.pending or "").startswith("set-context"):
        return tr("the service is back at {context}", context=state.proved.settings.max_model_len or "auto")
    return tr("{unit} is back as it was", unit=layout.unit_name)


def _converge_back(state: State, host: Host, layout: Layout, report: Report, outcome: str) -> State:
    """To what was proved, with the keys that it has now: one may have been revoked meanwhile."""
    state, held = _recorded(host, layout, report)
    proved = state.proved
    assert proved is not None, "there is something to converge to"
    want = _with_probe_key(proved, host, layout, held)
    verb = state.pending or "deploy"
    with _shared(verb, ANY.shared_lock, report, host):
        changes = steps.plan(want, host)
        if all(isinstance(change, models.Download) for change in changes):
            changes = []  # weights that went bad under a running service are no reason to touch it
        due = [_keeping_edits(change, want, state, host) for change in changes]
        state = _claim(state, want, changes, host, verb, report, key_shown=state.key_shown)
    apply(due, host, report)
    prove.serving(want, host, report)
    return _remember(state, proved, host, layout, outcome, report)


def _keeping_edits(change: Change, want: Wanted, state: State, host: Host) -> Change:
    """What was edited by hand is none of what was cut off: of an edited unit only the keys go back."""
    unit = want.layout.unit
    if not isinstance(change, Write) or change.path != unit:
        return change
    text = host.read(unit)
    if not text or fingerprint(text, unit, want.layout) in state.owned.get(str(unit), ()):
        return change
    return dataclasses.replace(change, text=render.with_keys(text, want.target.keys))
