"""What the timer does at each turn: judge the last change, confirm it, or go back; and what ends a soak by hand.

It is cut off anywhere without harm. That a change is bad is written down before anything is done about it, the way
back is a transaction like any other, and the next turn goes on from what the record says.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

from installer.base.errors import Exit, InstallError, Refused
from installer.base.host import Host
from installer.base.language import english, first_line, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove, soak_rules
from installer.flow.converge import Convergence, recorded, settled, with_probe_key
from installer.flow.deploy import way_back
from installer.flow.soak_rules import Seen
from installer.flow.transaction import changing
from installer.flow.watched import dismiss
from installer.runtime.vllm_text import one_line
from installer.spec.records import load_state, managed, save_state
from installer.spec.soak import BY_HAND, CONFIRMED, ENDED, ROLLED_BACK, STUCK, Soak
from installer.spec.state import event
from installer.units import journal, keyring, soaking
from installer.units.graph import Member, handle
from installer.units.systemd import unit_properties

TRIES = 3  # to go back
POLL = 1.0


def look(service: str, host: Host, report: Report) -> None:
    """One turn. While somebody changes the service nothing is judged: what is half done is no fault."""
    layout = Layout(service)
    state = load_state(host, layout)
    if host.lock_holder(layout.change_lock):
        return
    if state is None or state.proved is None or state.soak is None or not state.soak.is_running:
        with changing(layout, "soak", host):
            dismiss(host, layout, report)
        return
    seen = soak_rules.observe(host, layout, state.proved)
    soak = _judged(state.soak, seen, host, layout, report)
    if soak and soak.bad:
        _go_back(host, layout, report)
    elif soak and soak.watched >= soak.seconds and seen.active == "active":
        _confirm(host, layout, report)


def _judged(known: Soak, seen: Seen, host: Host, layout: Layout, report: Report) -> Soak | None:
    """Whoever has found it bad before is believed: the evidence may be gone."""
    why = "" if known.bad else soak_rules.fault(known, seen)
    bad = _with_evidence(why, known, soak_rules.ended(known, seen)[0], host, layout) if why else known.bad

    def judged(soak: Soak) -> Soak:
        return dataclasses.replace(soak_rules.looked(soak, seen), bad=bad) if soak == known else soak

    return _update(judged, host, layout, report)


def _with_evidence(why: str, soak: Soak, number: int, host: Host, layout: Layout) -> str:
    """With the line of the run's journal that tells why it ended; where there is none, as it is."""
    unit = Member(layout, layout.member_name(number), number) if number else handle(layout)
    run = soak.replicas[number - 1].run if number else soak.run
    return _as_recorded(prove.failure(unit, host, why, run))


def _as_recorded(error: InstallError) -> str:
    """Of what others wrote a line, and no more of it than one can read."""
    return one_line(english(first_line(error.message)))


def _update(change: Callable[[Soak], Soak], host: Host, layout: Layout, report: Report, what: str = "") -> Soak | None:
    """The soak as it is now, changed; None where it is over, or the service is gone. `what` goes into the history."""
    with keyring.locked(host, layout, report) as now:
        if now is None or now.soak is None or not now.soak.is_running:
            return None
        soak = change(now.soak)
        history = (*now.history, event(f"soak of {soak.what}", what)) if what else now.history
        save_state(host, layout, dataclasses.replace(now, soak=soak, history=history))
        return soak


def _confirm(host: Host, layout: Layout, report: Report) -> None:
    """The proof is asked for once more: a service that hangs is noticed late where nobody asks it."""
    with changing(layout, "soak", host):
        state = settled(host, layout, report)
        if state.proved is None or state.soak is None or not state.soak.is_running:
            return
        try:
            prove.serving(with_probe_key(state.proved, host, layout, None), host, report)
        except prove.NotProved as error:
            why = _as_recorded(error)
            _update(lambda soak: dataclasses.replace(soak, bad=why), host, layout, report)
        else:
            _end(CONFIRMED, host, layout, report)
            return
    _go_back(host, layout, report)


def _end(outcome: str, host: Host, layout: Layout, report: Report) -> None:
    soak = _update(lambda soak: dataclasses.replace(soak, outcome=outcome), host, layout, report, outcome)
    if soak:
        journal.tell(f"soak: {soak.what}: {outcome} after {soak.watched:.0f} s", host, layout)
    dismiss(host, layout, report)


def _go_back(host: Host, layout: Layout, report: Report) -> None:
    """To the generation before, proved like any other; a few times, should it fail, and then no more."""
    with changing(layout, "soak", host):
        soak = _update(lambda soak: dataclasses.replace(soak, tries=soak.tries + 1), host, layout, report)
        if soak is None:
            return
        journal.tell(f"soak: {soak.what} is bad, going back: {soak.bad}", host, layout)
        try:
            _return(soak, host, layout, report)
        except InstallError as error:
            if soak.tries < TRIES:
                raise
            _give_up(soak, error, host, layout, report)
        else:
            journal.tell(f"soak: {soak.what}: {ROLLED_BACK}", host, layout)
        dismiss(host, layout, report)


def _return(soak: Soak, host: Host, layout: Layout, report: Report) -> None:
    """What was cut off is done again from its beginning, and not undone: that would lead to what is bad."""
    state, held = recorded(host, layout, report)
    want, changes = way_back(state, host, layout, held)
    transaction = Convergence(f"soak of {soak.what}", want, changes, state, host, report)
    transaction.soak = dataclasses.replace(soak, outcome=ROLLED_BACK)
    transaction.outcome = f"{ROLLED_BACK}: {soak.bad}"
    transaction.run()


def _give_up(soak: Soak, error: InstallError, host: Host, layout: Layout, report: Report) -> None:
    why = f"{soak.bad}; {_as_recorded(error)}"
    _update(lambda now: dataclasses.replace(now, outcome=STUCK, bad=why), host, layout, report, f"{STUCK}: {why}")
    journal.tell(f"soak: {soak.what}: {STUCK}: {why}", host, layout)


# By hand


def end(service: str, host: Host, report: Report) -> None:
    """Confirm it early."""
    layout = Layout(service)
    with changing(layout, "soak", host):
        soak = managed(host, layout).soak
        if soak is None or not soak.is_running:
            raise not_watched(layout)
        _end(ENDED, host, layout, report)


def of(service: str, host: Host) -> Soak:
    """The last one, over or not."""
    layout = Layout(service)
    if (soak := managed(host, layout, to_look=True).soak) is None:
        raise not_watched(layout)
    return soak


def not_watched(layout: Layout) -> Refused:
    return Refused(
        tr("no change of {service} is watched", service=layout.service),
        tr("watch one with --soak, as in: vllm-install upgrade {service} --soak 30m", service=layout.service),
    )


def wait(service: str, host: Host) -> Iterator[Soak]:
    """The soak as it goes on, to its end."""
    layout = Layout(service)
    while True:
        has_a_timer = _has_a_timer(host, layout)  # first: it goes when the record says that it is over
        soak = of(service, host)
        yield soak
        if not soak.is_running:
            return
        if not has_a_timer:
            clock = soaking.timer(layout)
            raise Refused(
                tr("{unit} does not run, so nobody watches", unit=clock), f"sudo systemctl enable --now {clock}"
            )
        time.sleep(POLL)


def _has_a_timer(host: Host, layout: Layout) -> bool:
    return unit_properties(host, soaking.timer(layout), "ActiveState").get("ActiveState") == "active"


def verdict(soak: Soak) -> Exit:
    """As the change itself would have ended."""
    gone = dict.fromkeys((ROLLED_BACK, BY_HAND), Exit.NOT_PROVED)
    return {**gone, STUCK: Exit.NOT_RESTORED}.get(soak.outcome, Exit.DONE)
