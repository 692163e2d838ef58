"""upgrade --bench: measured before and after a change, which does not stay where it made the service slower."""

from __future__ import annotations

from dataclasses import dataclass, replace

from installer.acceptance import bench, bench_subject
from installer.acceptance.bench_subject import Wishes
from installer.acceptance.compared import change, pairs, slower
from installer.acceptance.measured import Measured
from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Report
from installer.flow.prove import NotProved
from installer.spec.target import Target


@dataclass
class BenchJudge:
    """A flow.converge.Judge."""

    service: str
    wishes: Wishes
    margin: float  # percent that it may be slower
    host: Host
    report: Report
    was: Measured | None = None

    def before(self) -> None:
        self.report.note(tr("measuring how fast it is before the change"))
        self.was = self._measured(self.wishes)

    def after(self, target: Target) -> None:
        """An engine that has just started may be slow for a while: what is too slow at first is measured once more."""
        assert self.was is not None, "it was measured before"
        self.report.note(tr("measuring how fast it is now"))
        same = replace(self.wishes, concurrency=tuple(step.concurrency for step in self.was.steps))
        now = self._measured(same, target)
        if self._is_slower(now):
            self.report.note(tr("slower than before; measuring once more"))
            now = max(now, self._measured(same, target), key=lambda each: each.best.tokens)
        if self._is_slower(now):
            raise NotProved(
                tr(
                    "{percent:.0f} % slower than before, and {margin:g} % is allowed: {was}",
                    percent=100 * slower(self.was, now), margin=self.margin, was=self._said(now),
                ),
                f"vllm-install bench compare {self.was.at} {now.at} --service {self.service}",
            )  # fmt: skip
        self.report.note(self._said(now))

    def _is_slower(self, now: Measured) -> bool:
        assert self.was is not None, "it was measured before"
        return 100 * slower(self.was, now) > self.margin

    def _said(self, now: Measured) -> str:
        assert self.was is not None, "it was measured before"
        both = pairs(self.was, now)
        before, after = (max(getattr(pair, name).tokens for pair in both) for name in ("before", "after"))
        return tr(
            "{before:.1f} tokens/s at best before, {after:.1f} now ({change:+.0%})",
            before=before, after=after, change=change(before, after),
        )  # fmt: skip

    def _measured(self, wishes: Wishes, target: Target | None = None) -> Measured:
        what = bench_subject.of_service(self.service, None, self.host, self.report, target)
        found = bench.run(what, wishes, self.host, self.report, is_whole=True)
        if found.ended == "failed":
            raise NotProved(found.why_ended, what.subject.look)
        return found
