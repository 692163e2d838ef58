"""A change that is watched on after its proof: what it puts there for that, and what it remembers."""

from __future__ import annotations

from datetime import datetime, timezone

from installer.base.changes import Change, Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import soak_rules
from installer.flow.converge import Convergence
from installer.flow.transaction import apply
from installer.flow.wanted import Wanted
from installer.spec import keys
from installer.spec.soak import Requests
from installer.spec.state import State
from installer.units import soaking
from installer.units.render import generation


def check_free(state: State, layout: Layout) -> None:
    """A change during a soak would take away what that goes back to; keys can be changed, and going back is open."""
    if state.soak and state.soak.is_running:
        raise Refused(
            tr("{service} is being watched after: {what}", service=layout.service, what=state.soak.what),
            tr(
                "confirm that change: vllm-install soak {service} --end; or go back: vllm-install rollback {service}",
                service=layout.service,
            ),
        )  # fmt: skip


def beginning(seconds: int | None, changes: list[Change], want: Wanted, state: State) -> list[Change]:
    """What is due beside a change that is to be watched; nothing where nothing of what serves is changed."""
    if changes:
        check_free(state, want.layout)
    if seconds is None or not changes or not serves_otherwise(want, state):
        return []
    soaking.check_tool()
    return list(soaking.beginning(want.layout, seconds))


def serves_otherwise(want: Wanted, state: State) -> bool:
    """What serves is changed, of a service that there was."""
    proved = state.proved
    return proved is not None and generation(want.target, want.layout) != generation(proved, want.layout)


def is_begun_by(changes: list[Change], layout: Layout) -> bool:
    return any(isinstance(change, Write) and change.path in soaking.paths(layout) for change in changes)


def dismiss(host: Host, layout: Layout, report: Report) -> None:
    """Nobody looks any more, and nothing is left of what did."""
    apply(list(soaking.ending(layout, host)), host, report)


class Watched(Convergence):
    """Proved, and from then on judged by a timer: the record says so in the same moment as it says what was proved."""

    seconds = 0
    before: Requests | None = None

    def apply(self) -> None:
        if self.state.proved:
            self.before = soak_rules.answered(self.host, self.layout, self.state.proved)
        super().apply()

    def remember(self) -> None:
        seen = soak_rules.observe(self.host, self.layout, self.want.target)
        since = keys.stamp(datetime.now(timezone.utc))
        self.soak = soak_rules.begun(self.verb, self.seconds, since, self.before, seen)
        super().remember()

    def undo(self, why: str) -> str:
        dismiss(self.host, self.layout, self.report)
        return super().undo(why)
