"""Making a bundle: what a deploy would fetch, as one archive, for a host that can fetch nothing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from installer import __version__
from installer.airgap import bundle_signature
from installer.airgap.bundle_format import (
    BLOCK,
    END,
    IMAGE,
    INSTALL,
    MANIFEST,
    SIGNATURE,
    TOOL,
    WHEELS,
    AdapterPart,
    EnginePart,
    Manifest,
    Member,
    ModelPart,
    folders,
    header,
    places,
)
from installer.airgap.wheelhouse import Wheelhouse, oldest_glibc, sha256
from installer.base.assets import asset_dir
from installer.base.errors import Exit, InstallError, Refused, UsageError
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Advance, Report
from installer.checks import facts, preflight
from installer.checks.preflight_podman import check_podman
from installer.families.known import family_of
from installer.forms.podman import images
from installer.forms.venv import engines
from installer.model.selection import is_adapter
from installer.spec.engine import Engine
from installer.spec.facts import Facts, Interpreter
from installer.spec.model import Model
from installer.spec.settings import PODMAN, Settings
from installer.weights import models
from installer.weights.wanted import files_of

READ = 1 << 20
TOOL_BYTES = 64 << 20


@dataclass(frozen=True)
class Cargo:
    """Where the bundle goes, and what is to be in it besides engine and model."""

    out: Path | None  # None: standard output
    tool: bool = True
    sign_key: Path | None = None
    resolve: bool = False  # the newest packages, and not those of a tested lock


@dataclass(frozen=True)
class Packed:
    manifest: Manifest
    digest: str
    size: int


def create(settings: Settings, wanted: Cargo, host: Host, report: Report) -> Packed:
    """Interrupted, the same command goes on with the wheels and weights that are here by then."""
    if settings.lora:  # names and flags are chosen on the other host
        family_of(settings).check_words(settings, report.warn)
    layout = Layout(settings.service)
    seen = facts.gather(host, settings, layout)
    kind = _kind(settings, seen)
    if settings.runtime == PODMAN and seen.podman is None and not images.is_file(images.meant(settings, kind)):
        raise preflight.refuse(list(check_podman(settings, seen, kind)))
    python = preflight.choose_interpreter(settings, seen, kind)
    if python is None:
        raise Refused(
            tr("no Python here for which the {kind} engine has packages", kind=kind),
            tr("install one that the other host has too, or name one with --python"),
        )
    named = (settings, *map(settings.of_adapter, settings.lora))
    read = [_resolved(each, host, layout, report) for each in named]
    engine = _engine(settings, wanted, kind, python, host, report)
    with _output(wanted.out) as (file, scratch):
        _check_space(read, engine_bytes(engine, settings, host), wanted, seen, host, layout)
        read = [_fetched(model, each, host, report) for model, each in zip(read, named, strict=True)]
        for each, model in zip(named[1:], read[1:], strict=True):
            _check_adapter(each, model)
        house = Wheelhouse(scratch, python.path, engines.wheel_sources(engine, settings, host), settings, host)
        if engine.image:
            report.note(tr("saving the image"))
            (scratch / IMAGE).unlink(missing_ok=True)  # of a run that was interrupted
            image = images.save(engine, images.meant(settings, kind), scratch / IMAGE, host)
        else:
            house.collect(engine.lock, kind, report)
            image = None
        if wanted.tool:
            house.collect_tool(kind, report)
        files = _files(house, read, image, wanted, host)
        parts = [
            ModelPart(each.model, each.revision, model.commit, model.files)
            for each, model in zip(named, read, strict=True)
        ]
        manifest = Manifest(
            tool=__version__,
            signed=wanted.sign_key is not None,
            engine=_engine_part(engine, python, seen, files),
            model=parts[0],
            members=_members(read, files),
            adapters=tuple(AdapterPart(each.model_id, part) for each, part in zip(named[1:], parts[1:], strict=True)),
        )
        return write(manifest, files, wanted.sign_key, file, host, report)


def _resolved(settings: Settings, host: Host, layout: Layout, report: Report) -> Model:
    model = None if settings.model.startswith("/") else models.resolve(settings, host, layout, report=report)
    if model is None or model.source == "local":  # which MODELS_DIR may lead to as well
        raise UsageError(
            tr(
                "{path} is a directory of your own, which a bundle does not carry",
                path=model.path if model else settings.model,
            ),
            tr("copy it to the other host, and make a bundle without it: --model builtin:tiny, or --lora ''"),
        )
    return model


def _check_adapter(settings: Settings, model: Model) -> None:
    if not is_adapter([file.name for file in model.files]):
        raise UsageError(tr("LORA={name}: {model} is no LoRA adapter", name=settings.model_id, model=settings.model))


def _engine(settings: Settings, wanted: Cargo, kind: str, python: Interpreter, host: Host, report: Report) -> Engine:
    if settings.runtime == PODMAN:
        return images.resolve(settings, kind, python.path, host)
    choose = engines.newest if wanted.resolve else engines.resolve
    return choose(settings, kind, python.path, host, report)


def _fetched(model: Model, settings: Settings, host: Host, report: Report) -> Model:
    """The model with its files, which lie in this machine's own cache; the built-in one is made where it serves."""
    if model.source == "builtin":
        return model
    for change in models.changes(model, host, settings):
        report.begin(change)
        change.apply(host, report)
        report.done(change)
    return replace(model, files=files_of(model, host))


def _engine_part(engine: Engine, python: Interpreter, seen: Facts, files: Iterable[str]) -> EnginePart:
    glibc = oldest_glibc([name for name in files if name.startswith(WHEELS)])
    version = f"{python.version[0]}.{python.version[1]}"
    return EnginePart(
        engine.kind, engine.vllm_version, engine.lock, version, seen.arch, glibc, engine.image, engine.family
    )


def _kind(settings: Settings, seen: Facts) -> str:
    """A machine with a network often has no GPU: what fits here says nothing about the other host."""
    kind = preflight.choose_engine(settings, seen)
    if settings.engine == "auto" and kind == "cpu":
        raise UsageError(
            tr("there is no GPU here to tell which engine the other host needs"),
            tr("say it: --engine cuda, rocm or cpu"),
        )
    return kind


def engine_bytes(engine: Engine, settings: Settings, host: Host) -> int:
    """Of wheels at most half of what they are when installed (CUDA: 3.9 GB of 8.6, CPU: 0.9 of 3.4)."""
    if engine.image:
        return images.size(images.meant(settings, engine.kind), host)
    return engines.installed_bytes(engine) // 2 if engine.has_torch else 0


def _check_space(
    read: Sequence[Model], engine_size: int, wanted: Cargo, seen: Facts, host: Host, layout: Layout
) -> None:
    """Before the first byte; how large the wheels are is known only when they are here."""
    parts = engine_size + TOOL_BYTES * wanted.tool
    needs = {layout.hub: sum(model.bytes_missing for model in read)}
    if wanted.out:
        needs[wanted.out.parent] = sum(model.bytes_total for model in read) + 2 * parts
        disk = facts.probe_disk(host, wanted.out.parent)
        seen = replace(seen, disks={**seen.disks, wanted.out.parent: disk})
    if problems := preflight.check_space(needs, seen):
        raise preflight.refuse(problems)


# The destination


@contextmanager
def _output(out: Path | None) -> Iterator[tuple[BinaryIO, Path]]:
    """A file that appears under its name when it is whole, and a directory for what is collected meanwhile."""
    if out is None:
        if sys.stdout.isatty():
            raise UsageError(
                tr("a bundle is nothing to look at"), tr("send it somewhere: … bundle create - | ssh host …")
            )
        with tempfile.TemporaryDirectory(prefix="vllm-install-") as scratch:
            try:
                yield sys.stdout.buffer, Path(scratch)
            except BrokenPipeError:
                # What is still in the buffer must not be tried again when the process ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise Refused(
                    tr("who reads the bundle stopped before its end"), tr("see what the other side of the pipe says")
                ) from None
        return
    if out.is_dir() or not out.parent.is_dir():
        why = tr("it is a directory") if out.is_dir() else tr("there is no directory {path}", path=out.parent)
        raise UsageError(
            tr("{out} cannot be written: {why}", out=out, why=why), tr("name a file in a directory that is there")
        )
    partial = out.with_name(out.name + ".partial")
    scratch_dir = out.with_name(f".{out.name}.wheels")
    with _opened(partial) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                tr("another process writes {out} already", out=out), tr("wait for it, or choose another name")
            ) from None
        try:
            file.truncate(0)
            scratch_dir.mkdir(mode=0o700, exist_ok=True)
            _check_ours(scratch_dir, scratch_dir.lstat())
            yield file, scratch_dir
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
            partial.replace(out)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
    shutil.rmtree(scratch_dir)


def _opened(partial: Path) -> BinaryIO:
    """A file of ours alone until it is whole: who can open it can hold its lock."""
    handle = os.open(partial, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _check_ours(partial, os.fstat(handle))
        os.fchmod(handle, 0o600)
        return os.fdopen(handle, "ab")
    except BaseException:
        os.close(handle)
        raise


def _check_ours(path: Path, found: os.stat_result) -> None:
    """Of a run that was interrupted, and not put there by somebody who would have us write into it."""
    if found.st_uid != os.geteuid():
        raise Strange(path, tr("it belongs to the user {uid}", uid=found.st_uid))
    if stat.S_ISLNK(found.st_mode) or (found.st_nlink > 1 and stat.S_ISREG(found.st_mode)):
        raise Strange(path, tr("it is no regular file"))


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


# The contents


def _files(house: Wheelhouse, read: Sequence[Model], image: Path | None, wanted: Cargo, host: Host) -> dict[str, Path]:
    """Member name -> file, in the order of the archive: what a bare host needs first comes first."""
    files: dict[str, Path] = {}
    if wanted.tool:
        files[INSTALL] = asset_dir("templates") / "install-bundle.sh"
        files |= {TOOL + wheel.name: wheel for wheel in sorted(house.tool.glob("*.whl"))}
    files |= {WHEELS + wheel.name: wheel for wheel in sorted(house.wheels.glob("*.whl"))}
    files |= {IMAGE: image} if image else {}
    for folder, model in zip(folders(), read, strict=False):
        files |= {folder + file.name: host.at(model.path / file.name).resolve() for file in model.files}
    return files


def _members(read: Sequence[Model], files: dict[str, Path]) -> tuple[Member, ...]:
    """Weights were verified when they came, and are again on their way into the archive."""
    known = {
        folder + file.name: file
        for folder, model in zip(folders(), read, strict=False)
        for file in model.files
        if len(file.digest) == 64
    }
    with Report().bytes("", 0) as silent:
        return tuple(
            Member(name, known[name].size, known[name].digest)
            if name in known
            else Member(name, path.stat().st_size, sha256(path, silent))
            for name, path in files.items()
        )


# The archive


def write(
    manifest: Manifest, files: Mapping[str, Path], sign_key: Path | None, out: BinaryIO, host: Host, report: Report
) -> Packed:
    """The archive, in one pass over the files."""
    text = manifest.to_text()
    heads = {MANIFEST: text.encode()}
    if sign_key:
        heads[SIGNATURE] = bundle_signature.sign(text, sign_key, host).encode()
    start = 0
    for name, content in heads.items():
        start += out.write(header(name, len(content), start) + content + bytes(-len(content) % BLOCK))
    laid_out = list(places(manifest.members, start))
    total = sum(member.size for member in manifest.members)
    with report.bytes(tr("writing the bundle"), total) as advance:
        for member, offset, head in laid_out:
            out.write(head)
            _append(out, member, files[member.name], advance)
            start = offset + len(head) + member.size + -member.size % BLOCK
    out.write(bytes(END))
    out.flush()
    return Packed(manifest, hashlib.sha256(text.encode()).hexdigest(), start + END)


def _append(out: BinaryIO, member: Member, path: Path, advance: Advance) -> None:
    """A file, checked while it passes: a damaged one must not get as far as a host where nothing can replace it."""
    checksum, length = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(READ):
            checksum.update(piece)
            length += len(piece)
            out.write(piece)
            advance(len(piece))
    if (length, checksum.hexdigest()) != (member.size, member.sha256):
        raise InstallError(
            tr("{path} is damaged: it is not what {member} has to be", path=path, member=member.name),
            tr("remove it and run the command again, which fetches it anew: rm {path}", path=path),
            Exit.MODEL,
        )
    out.write(bytes(-length % BLOCK))
