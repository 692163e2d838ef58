"""How the last change does that is watched on, or how that ended: for people, and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.language import tr
from installer.diagnosis.said import translated
from installer.spec.soak import Soak


@dataclass(frozen=True)
class SoakView:
    what: str  # the command whose change it is
    since: str
    seconds: int  # how long it is watched while the service runs
    watched: int
    answered: int
    failed: int
    bad: str  # why it goes back, or went
    outcome: str | None  # None while it goes on
    notes: tuple[str, ...]


def view(soak: Soak) -> SoakView:
    return SoakView(
        soak.what, soak.since, soak.seconds, int(soak.watched), soak.after.answered, soak.after.failed, soak.bad,
        soak.outcome or None, soak.notes,
    )  # fmt: skip


def lines(view: SoakView) -> list[str]:
    return [_how(view), *([translated(view.bad)] if view.bad else []), *map(translated, view.notes)]


def _how(view: SoakView) -> str:
    if view.outcome:
        return tr("{what}: {why}", what=view.what, why=translated(view.outcome))
    if view.bad:
        return tr("{what}: it is bad, and goes back", what=view.what)
    return tr(
        "{what}: watched for {watched} of {seconds} s; of {answered} requests {failed} failed",
        what=view.what, watched=view.watched, seconds=view.seconds, answered=view.answered, failed=view.failed,
    )  # fmt: skip
