"""The flow, readable top to bottom: look, refuse or resolve, plan, apply, prove, remember; or put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from installer import engines, facts, keys, models, ownership, preflight, prove, render, steps
from installer.changes import Change, Write
from installer.errors import Exit, InstallError, Refused, explain
from installer.facts import Facts
from installer.host import Host
from installer.layout import Layout
from installer.report import Report
from installer.settings import Settings
from installer.state import State, event, load_state, owned_on, save_state, services, text_digest
from installer.steps import Wanted
from installer.target import Target

# A private or kernel-made directory in the service's sandbox, where no model of the host can be seen.
HIDDEN = ("/tmp/", "/var/tmp/", "/dev/", "/proc/", "/sys/", "/run/")  # noqa: S108 they are named, not used


@dataclass(frozen=True)
class KeyChoice:
    """How the user wants the service's key handled; the default keeps the one there is or makes one."""

    given: str | None = None
    plain: bool = False


@dataclass(frozen=True)
class Deployed:
    want: Wanted
    changes: tuple[Change, ...]
    new_key: str | None


def plan(settings: Settings, host: Host, report: Report, choice: KeyChoice, *, discard_edits: bool) -> list[Change]:
    """What deploy would do now. Looks at the host and asks the hub and the index, but changes nothing."""
    layout = Layout(settings.service)
    state = load_state(host, layout) or State(settings.service)
    want, _, seen = _resolve(settings, host, layout, state, report, choice, make_keys=False)
    return _checked_plan(want, seen, host, state, discard_edits)


def deploy(
    settings: Settings,
    host: Host,
    report: Report,
    choice: KeyChoice,
    *,
    discard_edits: bool,
    show: Callable[[Deployed], None],
) -> None:
    """Converge the host to the settings, prove that it serves, or put it back as it was.

    `show` hands the result, a new key among it, to the user; only when it returns does the key count as known.
    """
    layout = Layout(settings.service)
    with host.lock(layout.lock, f"vllm-install deploy --service {settings.service}"):
        state = load_state(host, layout) or State(settings.service)
        if state.pending:
            report.warn(f"{state.pending} was cut off; this run completes it")
        want, new_key, seen = _resolve(settings, host, layout, state, report, choice, make_keys=True)
        changes = _checked_plan(want, seen, host, state, discard_edits)
        if not changes:
            prove.serving(want, host, report)
            show(Deployed(want, (), None))
            return
        state = _claim(dataclasses.replace(state, key_shown=new_key is None), changes, host, layout, "deploy")
        try:
            apply(changes, host, report)
            prove.serving(want, host, report)
        except Exception as error:
            raise _put_back(error, state, host, layout, report) from error
        state = _remember(state, want.target, host, layout, "proved")
        show(Deployed(want, tuple(changes), new_key))
        save_state(host, layout, dataclasses.replace(state, key_shown=True))


def apply(changes: Iterable[Change], host: Host, report: Report) -> None:
    for change in changes:
        report.begin(change)
        change.apply(host, report)
        report.done(change)


def plan_uninstall(service: str, host: Host, *, purge: bool) -> list[Change]:
    layout = Layout(service)
    state = load_state(host, layout)
    if state is None:
        known = ", ".join(services(host)) or "none"
        raise Refused(f"vllm-install manages no service {service} on this host", f"services it manages: {known}")
    return list(steps.removal(layout, state, host, weights=purge, engine=True))


def uninstall(service: str, host: Host, report: Report, *, purge: bool) -> list[Change]:
    """Remove what we made for one service; interrupted, it is simply run again."""
    layout = Layout(service)
    with host.lock(layout.lock, f"vllm-install uninstall --service {service}"):
        changes = plan_uninstall(service, host, purge=purge)
        apply(changes, host, report)
        return changes


# Looking and refusing


def _resolve(
    settings: Settings,
    host: Host,
    layout: Layout,
    state: State,
    report: Report,
    choice: KeyChoice,
    *,
    make_keys: bool,
) -> tuple[Wanted, str | None, Facts]:
    seen = facts.gather(host, settings, layout)
    if not make_keys:  # a plan changes nothing, so it needs no privilege
        seen = dataclasses.replace(seen, is_root=True)
    problems = preflight.check(settings, seen, layout)
    if fatal := [problem for problem in problems if problem.fatal]:
        raise preflight.refuse(fatal)
    for problem in problems:
        if not problem.fatal:
            report.warn(f"{problem.what}: {problem.why}; {problem.remedy}")
    kind = preflight.choose_engine(settings, seen)
    interpreter = preflight.choose_interpreter(settings, seen, kind)
    assert interpreter is not None, "preflight reports a missing interpreter"
    commit = _known_commit(settings, state)
    model = models.resolve(settings, host, layout, commit)
    _check_local(model, host)
    engine = engines.resolve(settings, kind, interpreter.path, host, layout, report)
    held, probe, new_key = _keys(host, layout, state, choice, make=make_keys)
    return Wanted(Target(settings, engine, model, held), layout, probe), new_key, seen


def _checked_plan(want: Wanted, seen: Facts, host: Host, state: State, discard_edits: bool) -> list[Change]:
    changes = steps.plan(want, host)
    problems = list(ownership.check(changes, host, want.layout, state, discard_edits=discard_edits))
    problems += preflight.check_space(_space_needed(changes, want.layout), seen)
    if problems:
        raise preflight.refuse(problems)
    return changes


def _check_local(model: models.Model, host: Host) -> None:
    """A directory of the user's own is checked every time: nobody promised that it stays as it was."""
    if model.source != "local":
        return
    problems = [*models.check_directory(host.at(model.path)), *models.check_access(model.path, host)]
    if str(model.path).startswith(HIDDEN):
        problems.append(f"the service's sandbox hides {model.path.parents[-2]}; move the model, for example to /srv")
    if problems:
        raise models.ModelError(
            f"the model in {model.path} cannot be served: {'; '.join(problems)}",
            "complete the directory, or make it readable for the service's user, and run the command again",
        )


def _known_commit(settings: Settings, state: State) -> str | None:
    """A model once resolved stays at its commit until its name or revision is changed."""
    before = state.proved
    if before and (before.settings.model, before.settings.revision) == (settings.model, settings.revision):
        return before.model.commit
    return None


def _keys(
    host: Host, layout: Layout, state: State, choice: KeyChoice, *, make: bool
) -> tuple[tuple[keys.Key, ...], str, str | None]:
    """The unit's keys, completed: (all keys, the probe key, a new default key that nobody has seen yet)."""
    held = {key.name: key for key in _unit_keys(host, layout)}
    if not state.key_shown:
        held.pop(keys.DEFAULT, None)  # it was made by a run that was cut off before anybody saw it
    probe = (host.read(layout.probe_key) or "").strip()
    if keys.PROBE not in held or held[keys.PROBE].digest != keys.digest(probe):
        probe = keys.generate("probe") if make else keys.TO_BE_MADE
        held[keys.PROBE] = keys.Key(keys.PROBE, keys.digest(probe) if make else keys.TO_BE_MADE)
    new = None
    if choice.given:
        held[keys.DEFAULT] = keys.Key(keys.DEFAULT, keys.digest(choice.given))
    elif not any(name != keys.PROBE for name in held):
        new = keys.generate(layout.service) if make else keys.TO_BE_MADE
        held[keys.DEFAULT] = keys.Key(keys.DEFAULT, keys.digest(new) if make else keys.TO_BE_MADE)
    if choice.plain and (shown := choice.given or new):
        held[keys.DEFAULT] = dataclasses.replace(held[keys.DEFAULT], plain=shown)
    order = sorted(held, key=lambda name: (name == keys.PROBE, name != keys.DEFAULT, name))
    return tuple(held[name] for name in order), probe, new


def _unit_keys(host: Host, layout: Layout) -> list[keys.Key]:
    words = render.exec_line(host.read(layout.unit) or "")
    words = words[: words.index("--")] if "--" in words else words
    return [keys.parse(value) for flag, value in zip(words, words[1:], strict=False) if flag == "--api-key"]


def _space_needed(changes: list[Change], layout: Layout) -> dict[Path, int]:
    needs = {}
    for change in changes:
        if isinstance(change, models.Download):
            needs[layout.hub] = change.model.bytes_missing
        elif isinstance(change, engines.InstallEngine):
            needs[layout.engines] = change.bytes_needed
    return needs


# Remembering


def _claim(state: State, changes: list[Change], host: Host, layout: Layout, verb: str) -> State:
    """Write down what is about to become ours, before it does: a receipt written last would be lost with us."""
    owned = dict(state.owned)
    for change in changes:
        if isinstance(change, Write) and ownership.is_claimed(change.path, layout):
            path = str(change.path)
            written_by_admin = change.path == layout.settings_file and host.exists(change.path) and path not in owned
            if not written_by_admin:
                owned[path] = (*owned.get(path, ()), ownership.fingerprint(change.text, change.path, layout))
    # What another service of ours wrote and this one shares outlives that other service, so it becomes ours as well.
    for shared in render.shared_units().keys() & owned_on(host).keys():
        owned.setdefault(str(shared), (text_digest(host.read(shared) or ""),))
    owns_user = state.owns_user or not steps.has_user(host, layout.user)
    claimed = dataclasses.replace(state, owned=owned, owns_user=owns_user, pending=verb)
    save_state(host, layout, claimed)
    return claimed


def _remember(state: State, target: Target, host: Host, layout: Layout, outcome: str) -> State:
    """The change is over: of each file only the text written last is ours."""
    owned = {path: digests[-1:] for path, digests in state.owned.items()}
    history = (*state.history, event(state.pending or "deploy", outcome))
    remembered = dataclasses.replace(state, owned=owned, proved=target, pending=None, history=history)
    save_state(host, layout, remembered)
    return remembered


def _put_back(error: Exception, state: State, host: Host, layout: Layout, report: Report) -> Exception:
    """Converge forwards to what was proved last; with nothing proved yet, take everything away but the downloads."""
    cause = explain(error)
    summary = cause.message.splitlines()[0] if cause else repr(error)
    report.warn(f"{summary}; putting the host back as it was")
    try:
        if state.proved is None:
            apply(steps.removal(layout, state, host, weights=False, engine=False), host, report)
            outcome = "nothing of the service is left; the engine and the weights stay for the next try"
        else:
            want = Wanted(state.proved, layout, (host.read(layout.probe_key) or "").strip())
            changes = steps.plan(want, host)
            state = _claim(state, changes, host, layout, state.pending or "deploy")
            apply(changes, host, report)
            prove.serving(want, host, report)
            _remember(state, want.target, host, layout, f"undone: {summary}")
            outcome = f"{layout.unit_name} is back as it was"
    except InstallError as second:
        message = f"{summary}\nand the host could not be put back: {second.message}"
        return InstallError(message, second.hint, Exit.NOT_RESTORED)
    if cause is None:
        return error
    code = cause.exit_code if cause.exit_code != Exit.BUG else Exit.NOT_PROVED
    return InstallError(f"{cause.message}\n{outcome}", cause.hint, code)
