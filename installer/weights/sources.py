"""Where a model may be fetched from, in the order that the user chose; nobody else is ever asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from installer.base.language import tr
from installer.base.report import Report
from installer.spec.model import ModelError, ModelFile, NotHere, Origin
from installer.spec.settings import Settings
from installer.weights import hub, modelscope
from installer.weights.addresses import server_of

T = TypeVar("T")


def origins(settings: Settings) -> tuple[Origin, ...]:
    """The sources that the settings name: `hub` is the hub itself, or the mirror that stands in for it."""
    found = []
    for word in settings.model_sources:
        provider = "modelscope" if word.startswith("modelscope") else "hub"
        address = word.removeprefix("modelscope").removeprefix("+")
        endpoint = settings.hf_endpoint if word == "hub" else address or None
        found.append(Origin(settings.model, settings.revision, endpoint, provider, settings.hf_token_file))
    return tuple(found)


def of_model(settings: Settings, provider: str) -> tuple[Origin, ...]:
    """Who may be asked for the files of a commit, which means something to one provider only."""
    return () if settings.offline else tuple(origin for origin in origins(settings) if origin.provider == provider)


def first(candidates: Sequence[Origin], report: Report, ask: Callable[[Origin], T]) -> T:
    """What the first of the sources answers that has it."""
    for origin, following in zip(candidates, (*candidates[1:], None), strict=True):
        try:
            return ask(origin)
        except NotHere as fault:
            if following is None:
                raise
            report.warn(tr("{fault}; trying {server}", fault=fault.message, server=server_of(following)))
    raise AssertionError("nobody to ask")


def find(candidates: Sequence[Origin], commit: str | None, report: Report) -> tuple[Origin, str, tuple[ModelFile, ...]]:
    """The first source that has the model, the commit, and what it lists; other mirrors of the same hub must agree."""
    origin, (found, files) = first(
        candidates, report, lambda origin: (origin, listing(origin, commit or origin.revision))
    )
    for other in candidates:
        if other != origin and other.provider == origin.provider == "hub":
            _compare(origin, other, found, files, report)
    return origin, found, files


def listing(origin: Origin, revision: str | None) -> tuple[str, tuple[ModelFile, ...]]:
    """The commit that a revision stands for, and every file in it, by the provider's own protocol."""
    if origin.provider == "modelscope":
        return modelscope.listing(origin, revision)
    return hub.listing(origin, revision)


def _compare(origin: Origin, other: Origin, commit: str, files: tuple[ModelFile, ...], report: Report) -> None:
    """Two that mirror the same hub must say the same about a commit: what one of them made up, both cannot know."""
    try:
        theirs = listing(other, commit)[1]
    except NotHere as fault:
        report.warn(
            tr(
                "{server} could not be compared with another source: {fault}",
                server=server_of(origin),
                fault=fault.message,
            )
        )
        return
    who = tr("{server} and {other}", server=server_of(origin), other=server_of(other))
    refuse_contradiction(commit, files, theirs, who)


def refuse_contradiction(commit: str, ours: Iterable[ModelFile], theirs: Iterable[ModelFile], who: str) -> None:
    known = {file.name: (file.size, file.digest) for file in theirs}
    for file in ours:
        if known.get(file.name, (file.size, file.digest)) != (file.size, file.digest):
            raise ModelError(
                tr(
                    "{who} contradict each other: different checksums for {file} of commit {commit}",
                    who=who,
                    file=file.name,
                    commit=commit,
                ),
                tr("one of them is not truthful; use only a source that you trust (--hf-endpoint, --model-sources)"),
            )
