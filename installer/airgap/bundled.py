"""What a bundle means on this host: the settings it fixes, whether it fits, and the engine and model it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from installer.airgap.bundle_file import Bundle
from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks.packages import install_command
from installer.checks.preflight import choose_interpreter, refuse
from installer.families.known import family_named
from installer.forms.podman import images
from installer.forms.venv import engines
from installer.model import model_about
from installer.model.model_about import About
from installer.model.plain_file import LONGEST
from installer.spec.engine import Engine
from installer.spec.facts import Facts, Interpreter
from installer.spec.model import Model
from installer.spec.problem import Problem
from installer.spec.settings import FIELDS, PODMAN, Settings, to_text
from installer.weights import models


def fixed(bundle: Bundle, flags: Mapping[str, str]) -> dict[str, str]:
    """The flags, with what is in the bundle; one that asks for something else is an error.

    Afterwards nothing asks the network: the settings file says OFFLINE=yes, unless --online was given.
    """
    engine, model = bundle.manifest.engine, bundle.manifest.model
    held = {
        "model": model.name,
        "revision": model.revision or "",
        "engine_family": engine.family,
        "engine": engine.kind,
        family_named(engine.family).version_setting: engine.vllm_version,
        "runtime": Settings.runtime,
    }
    if engine.image:
        held |= {"runtime": PODMAN, "image": engine.image}
    adapters = tuple(each.setting for each in bundle.manifest.adapters)
    if adapters:
        held["lora"] = to_text("lora", adapters)
    for name, value in held.items():
        if name in flags and flags[name] != value:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                tr(
                    "{option} {given} contradicts the bundle, which holds {held}",
                    option=option,
                    given=flags[name],
                    held=value or tr("no such revision"),
                ),
                tr("leave {option} out, or make another bundle", option=option),
            )
    try:
        for name, value in held.items():
            meant = FIELDS[name].parse(value)
            if name == "lora" and meant != adapters:  # one that says more than it is
                raise ValueError(tr("expected NAME=DIRECTORY or NAME=HUB-ID with commas between, each name once"))
    except ValueError as error:
        raise UsageError(
            tr(
                "{path} holds {value!r}, which this vllm-install does not know: {error}",
                path=bundle.path,
                value=value,
                error=error,
            )
        ) from None
    return {"offline": "yes", **flags, **held}


def fitting(bundle: Bundle, settings: Settings, facts: Facts) -> tuple[Settings, Facts]:
    """The facts with only those interpreters that the bundle's wheels are for, or the refusal; an image has its own."""
    engine = bundle.manifest.engine
    kind = engine.kind
    wanted = tuple(python for python in facts.interpreters if engine.image or _version(python) == engine.python)
    found = dataclasses.replace(facts, interpreters=wanted)
    if problems := list(_problems(bundle, found, facts.interpreters)):
        raise refuse(problems)
    chosen = choose_interpreter(settings, found, kind)
    if chosen and chosen != choose_interpreter(settings, facts, kind):
        # Later commands have no bundle to tell them, and would look for an engine of the host's best Python.
        settings = dataclasses.replace(settings, python=str(chosen.path))
    return settings, found


def _problems(bundle: Bundle, facts: Facts, interpreters: tuple[Interpreter, ...]) -> Iterator[Problem]:
    engine = bundle.manifest.engine
    if facts.arch != engine.arch:
        yield Problem(
            tr("the bundle is for {arch}", arch=engine.arch),
            tr("this host is {arch}", arch=facts.arch),
            tr("make one on an {arch} machine: vllm-install bundle create", arch=facts.arch),
        )
    if engine.image:
        return
    if facts.glibc < engine.glibc:
        needed, found = (".".join(map(str, version)) for version in (engine.glibc, facts.glibc))
        yield Problem(
            tr("the bundle's wheels need glibc {needed}", needed=needed),
            tr("this host has {found}", found=found),
            tr("upgrade the distribution"),
        )
    if not facts.interpreters:
        versions = ", ".join(sorted({_version(python) for python in interpreters}))
        yield Problem(
            tr("the bundle is for Python {python}", python=engine.python),
            tr("this host has {found}", found=versions) if versions else tr("this host has none"),
            tr(
                "install that one ({command}), or make a bundle for another: vllm-install bundle create --python",
                command=install_command(facts, f"python{engine.python}"),
            ),
        )


def _version(python: Interpreter) -> str:
    return f"{python.version[0]}.{python.version[1]}"


def engine(bundle: Bundle, settings: Settings, python: Interpreter, host: Host) -> Engine:
    part = bundle.manifest.engine
    if part.image:
        return images.engine_of(part.image, settings, part.kind, python.path)
    return engines.carried(settings, part.kind, part.lock, python.path, host)


def about(bundle: Bundle) -> About | None:
    """What the model's small files say, before any of it is put anywhere; nothing about the built-in one."""
    if not bundle.part.files:
        return None
    names = {bundle.folder + name for name in model_about.SMALL}
    with Host.scratch() as scratch, Report().bytes("", 0) as silent:
        for member in bundle.manifest.below(bundle.folder):
            if member.name in names and member.size <= LONGEST:
                bundle.bring(member, scratch / member.name.removeprefix(bundle.folder), silent)
        found = model_about.read_directory(scratch)
    return dataclasses.replace(found, names=frozenset(file.name for file in bundle.part.files))


def model(bundle: Bundle, settings: Settings, host: Host, layout: Layout) -> Model:
    part = bundle.part
    if part.commit is None:
        return models.resolve(settings, host, layout)  # the built-in model, which is made on the spot
    return models.carried(settings, host, layout, part.commit, part.files)
