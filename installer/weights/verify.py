"""Whether weights are what they should be: every byte against its checksum, every header, everything that is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.report import Report
from installer.model import builtin
from installer.model.checkpoint import check_directory
from installer.model.plain_file import entries_below, read_regular
from installer.model.summary import Summary, summarise
from installer.spec.model import DIGEST, Model, ModelError, is_inside
from installer.spec.settings import Settings
from installer.spec.values import BUILTIN
from installer.weights import cache, checksums, inventory, models, sources
from installer.weights.addresses import server_of
from installer.weights.inventory import Cached

SUMS = "SHA256SUMS"
LONGEST_NOTE = 16 * 1024 * 1024
LOCAL_NOTES = ".cache/huggingface/download"  # where the hub's client keeps the checksums of a directory it filled


@dataclass(frozen=True)
class Verified:
    """What was found out about one model."""

    model: str
    commit: str | None
    path: Path
    source: str
    checked: int  # files whose checksum is known and was compared
    bytes: int
    wrong: tuple[str, ...]  # names of files with other bytes than they should have
    missing: tuple[str, ...]
    problems: tuple[str, ...]  # whatever else keeps it from being served
    used_by: tuple[str, ...]
    summary: Summary

    @property
    def is_right(self) -> bool:
        return not (self.wrong or self.missing or self.problems)

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "path": str(self.path), "ok": self.is_right}


def targets(name: str | None, settings: Settings, host: Host) -> list[Cached | Path]:
    """The models that are meant: the one named, or those of the services, or all there are."""
    if name is None:
        cached = inventory.models(host)
        served = [one for one in cached if one.used_by]
        local = [path for path in inventory.uses(host) if models.is_local(path) and host.at(path).is_dir()]
        return [*(served or cached), *sorted(set(local))]
    path = None if settings.model == BUILTIN else models.local_directory(settings, host)
    cached = inventory.models(host)
    if path is not None:
        return [next((one for one in cached if one.path == path), path)]
    found = [one for one in cached if one.model == settings.model]
    if settings.revision:
        found = [one for one in found if settings.revision in (one.commit, *one.revisions)]
    if not found:
        raise ModelError(
            tr("{model} is not in the cache", model=settings.model)
            + (tr(" at {revision}", revision=settings.revision) if settings.revision else ""),
            tr("vllm-install models pull {model}; vllm-install models list shows what is there", model=settings.model),
        )
    return list(found)


def verify(target: Cached | Path, settings: Settings, host: Host, report: Report) -> Verified:
    if isinstance(target, Path):
        return _local(target, settings, host, report)
    return _builtin(target, host) if target.model == BUILTIN else _cached(target, host, report)


def repair(found: Verified, settings: Settings, host: Host, report: Report) -> Verified:
    """Fetch what is wrong or missing anew, and nothing else; each file takes its place in one step."""
    if found.is_right:
        return found
    if found.model == BUILTIN:
        builtin.MakeBuiltin(found.path).apply(host, report)
        return replace(found, wrong=(), missing=(), problems=())
    manifest = cache.read_manifest(found.path.parents[1], str(found.commit), host) if found.commit else None
    if manifest is None:
        raise ModelError(
            tr("{path} cannot be repaired: nobody knows where its files came from", path=found.path),
            tr("copy it anew from where it came, or serve the model from the hub"),
        )
    origin, (target,) = manifest.origin, inventory.at(found.path, host)
    settings = replace(settings, model=origin.repo, revision=origin.revision)
    model = Model(
        found.model, found.path, found.commit, origin.provider, target.files,
        origin.repo, origin.revision, origin.endpoint,
    )  # fmt: skip
    if not sources.of_model(settings, origin.provider) and not settings.offline:
        raise ModelError(
            tr(
                "{model} came from {server}, which is no source that you chose",
                model=found.model,
                server=server_of(origin),
            ),
            tr("name it: --model-sources (MODEL_SOURCES)"),
        )
    for change in models.changes(model, host, settings):
        change.apply(host, report)
    return verify(target, settings, host, report)


def _cached(target: Cached, host: Host, report: Report) -> Verified:
    folder = target.path.parents[1]
    names: dict[str, list[str]] = {}
    for file in target.files:
        names.setdefault(file.digest, []).append(file.name)
    missing = tuple(file.name for file in target.files if not cache.is_linked(target.path, file, host))
    distinct = list({file.digest: file for file in target.files}.values())
    bad = [file for file in cache.find_wrong(folder, distinct, host, report) if file.name not in missing]
    wrong = tuple(sorted(name for file in bad for name in names[file.digest]))
    strangers = cache.strangers(target.path, target.files, host)
    problems = [tr("{file} does not belong to the model", file=name) for name in strangers]
    if not (wrong or missing):
        problems += check_directory(host.at(target.path), with_pickles=True)
    return Verified(
        target.model, target.commit, target.path, target.source, len(target.files), target.bytes,
        wrong, missing, tuple(problems), target.used_by, summarise(host.at(target.path)),
    )  # fmt: skip


def _builtin(target: Cached, host: Host) -> Verified:
    wanted = builtin.files()
    found = {name: (host.at(target.path) / name) for name in wanted}
    missing = tuple(name for name, path in found.items() if not path.is_file())
    wrong = tuple(name for name, path in found.items() if name not in missing and path.read_bytes() != wanted[name])
    return Verified(
        BUILTIN, None, target.path, target.source, len(wanted), target.bytes,
        wrong, missing, (), target.used_by, summarise(host.at(target.path)),
    )  # fmt: skip


def _local(path: Path, settings: Settings, host: Host, report: Report) -> Verified:
    """A directory of the user's own: complete, readable, and right as far as checksums lie beside the files."""
    real = host.at(path)
    known = dict(_checksums(real))
    missing = tuple(sorted(name for name in known if not os.path.isfile(real / name)))  # noqa: PTH113 takes any name
    there = {real / name: (name, digest) for name, digest in known.items() if name not in missing}
    total = sum(file.stat().st_size for file in there)
    with report.bytes(tr("checking {what}", what=path), total, len(there)) as advance:
        bad = checksums.find_wrong([(file, digest) for file, (_, digest) in there.items()], advance)
        wrong = tuple(sorted(there[file][0] for file in bad))
    problems = check_directory(real, with_pickles=str(path) in settings.allow_pickle)
    return Verified(
        str(path), None, path, mark("local"), len(there), total,
        wrong, missing, tuple(problems), inventory.users(path, host), summarise(real),
    )  # fmt: skip


def _checksums(path: Path) -> Iterator[tuple[str, str]]:
    """Name and checksum of files, from notes that lie in the directory itself."""
    notes = path / LOCAL_NOTES
    for note in sorted(note for note in entries_below(notes) if note.suffix == ".metadata"):
        lines = _text(note).splitlines()
        name = str(note.relative_to(notes)).removesuffix(".metadata")
        if len(lines) > 1 and DIGEST.fullmatch(lines[1]) and is_inside(name):
            yield name, lines[1]
    for line in _text(path / SUMS).splitlines():
        digest, _, name = line.partition(" ")
        name = name.lstrip(" *").removeprefix("./")
        if DIGEST.fullmatch(digest) and is_inside(name):
            yield name, digest


def _text(path: Path) -> str:
    """A note's text; what cannot be one says nothing."""
    try:
        return read_regular(path, LONGEST_NOTE).decode(errors="replace")
    except OSError:
        return ""
