"""A change of a service that holds as a whole or not at all: claim, apply, prove, remember; what fails is undone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from installer.base.changes import Change, Write, told
from installer.base.errors import undone
from installer.base.host import Host
from installer.base.language import english
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import steps
from installer.forms.podman import images
from installer.forms.venv import engines
from installer.model import builtin
from installer.units import alarm, render
from installer.weights import inventory

ANY = Layout("any")  # for what all services share


class Transaction(ABC):
    """Each phase is a method; `run` is their order, and the only place that knows what follows when one fails."""

    def __init__(self, layout: Layout, changes: Sequence[Change], host: Host, report: Report) -> None:
        self.layout, self.changes, self.host, self.report = layout, changes, host, report

    def run(self) -> None:
        self.claim()
        try:
            self.apply()
            self.prove()
            self.remember()
        except Exception as error:
            raise undone(error, self.undo) from error

    @abstractmethod
    def claim(self) -> None:
        """Write down what is about to change, before it does: a receipt written last would be lost with us."""

    def apply(self) -> None:
        apply(self.changes, self.host, self.report)

    @abstractmethod
    def prove(self) -> None:
        """See that it holds, or raise why not."""

    @abstractmethod
    def remember(self) -> None:
        """The change is over, and this is what is true from now on."""

    @abstractmethod
    def undo(self, why: str) -> str:
        """Put the host back, after whatever happened since the claim; says what became of it."""


@contextmanager
def changing(layout: Layout, verb: str, host: Host) -> Iterator[None]:
    """One change of a service at a time; who comes second is told whose it is. Who wants to know hears how it ended."""
    try:
        with host.lock(layout.change_lock, f"vllm-install {verb} --service {layout.service}"):
            yield
    finally:
        alarm.rouse(host, layout)


def apply(changes: Iterable[Change], host: Host, report: Report) -> None:
    changes = tuple(changes)
    for change, said in zip(changes, told(changes), strict=True):
        with _alone(change, host, report):
            report.begin(change, said.describe() if said else "")
            change.apply(host, report)
            report.done(change)


def _alone(change: Change, host: Host, report: Report) -> AbstractContextManager[None]:
    """What services share is changed by one at a time; an engine, which takes minutes, has a lock of its own."""
    if isinstance(change, engines.InstallEngine | images.BringImage):
        return shared(english(change.describe()), host, report, ANY.engines_lock)
    if isinstance(change, inventory.RemoveModel | builtin.MakeBuiltin | steps.RemoveUnused) or (
        isinstance(change, Write) and (ANY.opt in change.path.parents or change.path in render.shared_units())
    ):
        return shared(english(change.describe()), host, report)
    return nullcontext()


def shared(what: str, host: Host, report: Report, lock: Path = ANY.shared_lock) -> AbstractContextManager[None]:
    return host.lock(lock, f"vllm-install: {what}", report.waits)
