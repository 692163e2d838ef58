"""bundle: everything that a deploy needs, in one file, for a host without a network."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer.base.cells import pad
from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.report import choose, size
from installer.verbs.options import (
    authentic,
    json_option,
    quiet_option,
    resolve_option,
    service_option,
    setting_options_named,
    settings_from,
    trust_options,
)
from installer.verbs.output import print_json

if TYPE_CHECKING:
    from installer.airgap.bundle_format import EnginePart, Manifest, Member, ModelPart
    from installer.spec.model import ModelFile

# What decides what is in a bundle; how it is served is the other host's choice.
CONTENTS = (
    "model", "revision", "engine_family", "engine", "vllm_version", "sglang_version", "python", "index_url",
    "find_links", "hf_endpoint", "model_sources", "hf_token_file", "download_connections", "allow_pickle",
    "trust_remote_code", "runtime", "image", "lora",
)  # fmt: skip
FILE = click.Path(path_type=Path)
LABEL = 9  # columns of the words before what `show` says


@click.group("bundle")
def bundle() -> None:
    """Make, show and verify bundles, for hosts without a network."""


@bundle.command("create")
@click.argument("out", type=FILE, metavar="FILE|-")
@service_option
@setting_options_named(CONTENTS)
@resolve_option
@click.option("--no-tool", is_flag=True, help="Leave vllm-install itself out: the other host has it.")
@click.option("--sign-key", type=FILE, metavar="FILE", help="SSH key to sign with.")
@json_option
@quiet_option
def create(
    out: Path, service: str, resolve: bool, no_tool: bool, sign_key: Path | None, as_json: bool, quiet: bool,
    **options: object,
) -> None:  # fmt: skip
    """Collect an engine's packages or image, a model and this tool in FILE, for deploy --bundle FILE.

    What is here already is not fetched again; interrupted, the same command continues.
    """
    from installer.airgap import pack
    from installer.base.host import Host

    to_stdout = str(out) == "-"
    if to_stdout and as_json:
        raise UsageError(tr("- and --json both want standard output"), tr("name a file"))
    if sign_key and not sign_key.is_file():
        raise UsageError(tr("there is no key {sign_key}", sign_key=sign_key), tr("ssh-keygen -t ed25519 makes one"))
    host = Host()
    settings = settings_from(service, host, options, os.environ)
    wanted = pack.Cargo(None if to_stdout else out.absolute(), not no_tool, sign_key, resolve)
    done = pack.create(settings, wanted, host, choose(quiet=quiet or as_json))
    if as_json:
        print_json({"file": str(out), "bytes": done.size, **_about(done.manifest, done.digest)})
        return
    with contextlib.redirect_stdout(sys.stderr if to_stdout else sys.stdout):
        click.echo("\n".join(_lines(done.manifest, done.digest)))
        name = "FILE" if to_stdout else out.name
        command = f"sudo vllm-install deploy --bundle {name} --bundle-sha256 {done.digest}"
        click.echo(f"\n  {command}")


@bundle.command("show")
@click.argument("path", type=FILE, metavar="FILE")
@json_option
def show(path: Path, as_json: bool) -> None:
    """Say what a bundle holds, and its digest; reads its manifest alone."""
    from installer.airgap.bundle_file import open_bundle

    found = open_bundle(path)
    if as_json:
        print_json({"file": str(found.path), **_about(found.manifest, found.digest)})
    else:
        click.echo("\n".join(_lines(found.manifest, found.digest)))


@bundle.command("verify")
@click.argument("path", type=FILE, metavar="FILE")
@trust_options
@json_option
@quiet_option
def verify(path: Path, as_json: bool, quiet: bool, **options: object) -> None:
    """Read a bundle to its end and check every byte; exit status 5 where one is wrong."""
    from installer.airgap.bundle_format import BundleError
    from installer.base.host import Host

    report = choose(quiet=quiet or as_json)
    found, signer = authentic(path, options, Host())
    members = found.manifest.members
    with report.bytes(path.name, sum(member.size for member in members)) as advance:
        damaged = [member.name for member in members if not found.check(member, advance)]
    if as_json:
        shown = {"file": str(found.path), "bundle_sha256": found.digest, "signed_by": signer, "damaged": damaged}
        print_json(shown)
    if damaged:
        raise BundleError(tr("{path} is damaged: {damaged}", path=path, damaged=", ".join(damaged)))
    if not as_json:
        click.echo(
            tr(
                "{path}: {files} files are what its manifest says, whose sha256 is {digest}",
                path=path,
                files=len(members),
                digest=found.digest,
            )
        )
        if signer:
            click.echo(tr("signed by {signer}", signer=signer))


def _about(manifest: Manifest, digest: str) -> dict[str, object]:
    engine, model = manifest.engine, manifest.model
    return {
        "bundle_sha256": digest,
        "signed": manifest.signed,
        "tool": manifest.tool,
        "engine_family": engine.family,
        "engine": engine.kind,
        "vllm": engine.vllm_version,
        "python": engine.python,
        "arch": engine.arch,
        "glibc": ".".join(map(str, engine.glibc)),
        "packages": len(engine.lock.splitlines()),
        "image": engine.image or None,
        "model": model.name,
        "revision": model.revision,
        "commit": model.commit,
        "adapters": [
            {"name": each.name, "model": each.model.name, "commit": each.model.commit} for each in manifest.adapters
        ],
        "members": [{"name": m.name, "bytes": m.size, "sha256": m.sha256} for m in manifest.members],
    }


def _lines(manifest: Manifest, digest: str) -> list[str]:
    from installer.airgap.bundle_format import TOOL

    tool = f"vllm-install {manifest.tool}"
    rows = (
        (tr("engine"), _engine(manifest)),
        (tr("for"), _host(manifest.engine)),
        (tr("model"), _model(manifest.model)),
        *((tr("adapter"), _at_commit(each.setting, each.model)) for each in manifest.adapters),
        (tr("tool"), tool if manifest.below(TOOL) else tr("{tool}, not in the bundle", tool=tool)),
        (tr("signed"), tr("yes") if manifest.signed else tr("no")),
        (tr("holds"), _size(manifest.members)),
        ("sha256", tr("{digest} (of its manifest, for --bundle-sha256)", digest=digest)),
    )
    return [pad(label, LABEL) + text for label, text in rows]


def _engine(manifest: Manifest) -> str:
    from installer.airgap.bundle_format import IMAGE, WHEELS
    from installer.families.known import family_named

    engine = manifest.engine
    release = f"{family_named(engine.family).title} {engine.vllm_version} ({engine.kind})"
    if engine.image:
        return tr("{engine}, as an image, {size}", engine=release, size=_size(manifest.below(IMAGE)))
    wheels = manifest.below(WHEELS)
    if len(wheels) == 1:
        return tr("{engine}, {wheels} wheel, {size}", engine=release, wheels=1, size=_size(wheels))
    return tr("{engine}, {wheels} wheels, {size}", engine=release, wheels=len(wheels), size=_size(wheels))


def _host(engine: EnginePart) -> str:
    if engine.image:
        return tr("{arch}, podman", arch=engine.arch)
    glibc = ".".join(map(str, engine.glibc))
    return tr("{arch}, Python {python}, glibc {glibc} or newer", arch=engine.arch, python=engine.python, glibc=glibc)


def _model(model: ModelPart) -> str:
    return _at_commit(model.name, model) if model.commit else tr("{model}, made on the spot", model=model.name)


def _at_commit(name: str, model: ModelPart) -> str:
    return tr("{model} at {commit}, {size}", model=name, commit=model.commit, size=_size(model.files))


def _size(files: Iterable[Member | ModelFile]) -> str:
    return size(sum(file.size for file in files))
