"""Two results of `bench` side by side: what became of each step that both have, and what makes them unlike."""

from __future__ import annotations

from dataclasses import dataclass

from installer.acceptance.measured import Measured, Step
from installer.base.language import mark, tr


@dataclass(frozen=True)
class Pair:
    before: Step
    after: Step

    @property
    def tokens(self) -> float:
        """How much more, as a share; less is below 0."""
        return change(self.before.tokens, self.after.tokens)


def change(before: float, after: float) -> float:
    return after / before - 1 if before else 0.0


def pairs(before: Measured, after: Measured) -> list[Pair]:
    found = {step.concurrency: step for step in after.steps}
    return [Pair(step, found[step.concurrency]) for step in before.steps if step.concurrency in found]


def slower(before: Measured, after: Measured) -> float:
    """By which share the best of what both have measured is slower now; 0 where it is not."""
    both = pairs(before, after)
    was, now = (max((getattr(pair, name).tokens for pair in both), default=0.0) for name in ("before", "after"))
    return max(0.0, -change(was, now))


WHAT = {
    "model": mark("model"), "commit": mark("commit"), "engine": mark("engine"), "version": mark("version"),
    "kind": mark("kind of engine"), "torch": mark("torch"), "context": mark("context"), "engines": mark("engines"),
    "gpus": mark("GPUs"), "cpu": mark("processor"), "prompt_tokens": mark("tokens of a prompt"),
    "answer_tokens": mark("tokens of an answer"), "goals": mark("goals"), "settings": mark("settings"),
}  # fmt: skip


def differences(before: Measured, after: Measured) -> list[tuple[str, str, str]]:
    """What was not the same, and what it was: of settings those alone that differ."""
    found = []
    for name, title in WHAT.items():
        was, now = (_of(each, name) for each in (before, after))
        if isinstance(was, dict) and isinstance(now, dict):
            names = sorted(each for each in was.keys() | now.keys() if was.get(each) != now.get(each))
            found += [(each, str(was.get(each, "-")), str(now.get(each, "-"))) for each in names]
        elif was != now:
            found.append((tr(title), _shown(was), _shown(now)))
    return found


def _of(measured: Measured, name: str) -> object:
    parts = (measured.served, measured.machine, measured.load)
    return next(getattr(part, name) for part in parts if hasattr(part, name))


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value if value is not None else "-")
