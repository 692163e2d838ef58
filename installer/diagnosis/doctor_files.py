"""What doctor looks at second: the service's files on disk, as they are against as they were made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from installer.base.language import tr
from installer.diagnosis import advisories
from installer.diagnosis.advisories import Advisory
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.forms.podman import images
from installer.forms.venv import python_of
from installer.forms.venv.engines import MARKER, is_complete
from installer.model.checkpoint import Damage, check_access, check_directory, obstacles
from installer.runtime.vllm_text import one_line
from installer.spec import keys
from installer.spec.engine import Engine
from installer.spec.model import Model
from installer.spec.settings import Settings
from installer.spec.state import Event
from installer.spec.values import version_key
from installer.units.render import RUNTIME_FILES, content_digest, runtime_dir
from installer.units.systemd import has_user

# The record, the account


def check_record(scene: Scene) -> Iterator[Finding]:
    if scene.damage:
        kind, severity = ("record-newer", NOTE) if scene.state else ("record-damaged", FAULT)
        where, helps = str(scene.layout.state_file), scene.damage.hint or scene.deploy
        yield Finding(kind, scene.damage.message, where, (helps,), severity)
    elif scene.state is None:
        path = scene.layout.unit
        yield Finding(
            "record-missing", tr("{path} is there, but no record of it", path=path), str(path), (scene.deploy,)
        )


def check_account(scene: Scene) -> Iterator[Finding]:
    if scene.state and scene.state.proved and not has_user(scene.host, scene.layout.user):
        yield Finding(
            "user-missing",
            tr("the service's user {user} does not exist", user=scene.layout.user),
            tr("/etc/passwd has no line {user}:", user=scene.layout.user),
            (scene.deploy,),
        )


def check_files(scene: Scene) -> Iterator[Finding]:
    """Files of ours beside the unit."""
    units = [part.member.path for part in scene.parts]
    for name in scene.state.owned if scene.state and scene.state.proved else ():
        if not scene.host.exists(Path(name)) and Path(name) not in units:
            yield Finding(
                "file-missing", tr("{name} is gone", name=name), tr("{name}: no such file", name=name), (scene.deploy,)
            )


# What it runs


def check_engine(scene: Scene) -> Iterator[Finding]:
    state, host, layout = scene.state, scene.host, scene.layout
    if not state or not state.proved:
        return
    engine, home = state.proved.engine, layout.engines / state.proved.engine.id
    if engine.image:
        yield from _image(scene, engine)
        return
    python = python_of(home)
    if not is_complete(host, layout, state.proved.engine.id):
        what = python if not host.at(python).exists() else home / MARKER
        link = tr(", a link to {target}", target=host.at(what).readlink()) if host.at(what).is_symlink() else ""
        cause = tr("the engine {path} is missing or not complete", path=home)
        yield Finding("engine-missing", cause, tr("{path} is not there", path=what) + link, (scene.deploy,))
        return
    yield from _closed(scene, python)
    yield from _closed(scene, Path(host.at(python).resolve()) if host.root == Path("/") else python)


def _image(scene: Scene, engine: Engine) -> Iterator[Finding]:
    """Only root sees root's images."""
    if scene.is_root and not images.is_complete(engine, scene.host, scene.layout):
        cause = tr("the engine's image is gone")
        yield Finding(
            "engine-missing", cause, tr("podman has no image {id}", id=engine.image.removeprefix("sha256:")[:12]),
            (scene.deploy,),
        )  # fmt: skip


def check_runtime(scene: Scene) -> Iterator[Finding]:
    """The files that vLLM runs with lie in a directory that is named by their content; an earlier tool has fewer."""
    proved = scene.state.proved if scene.state else None
    if proved is None or not (proved.engine.image or is_complete(scene.host, scene.layout, proved.engine.id)):
        return
    launcher = Path(scene.command[1]) if len(scene.command) > 1 else Path("/")
    if scene.layout.runtimes not in launcher.parents:
        return  # a command line that is not ours
    texts = {name: scene.file(launcher.with_name(name)) for name in RUNTIME_FILES}
    missing = [name for name, text in texts.items() if text is None]
    if missing and (launcher.name in missing or launcher.parent == runtime_dir(scene.layout)):
        cause = tr("files that vLLM runs with are gone from {path}", path=launcher.parent)
        yield Finding("runtime-missing", cause, tr("missing: {names}", names=", ".join(missing)), (scene.deploy,))
    elif not launcher.parent.name.endswith(content_digest("".join(filter(None, texts.values())).encode())):
        cause = tr("files that vLLM runs with were changed in {path}", path=launcher.parent)
        again = f"sudo rm -r {launcher.parent} && {scene.deploy}"
        yield Finding("runtime-changed", cause, tr("their digest is not the one in the directory's name"), (again,))
    else:
        yield from _closed(scene, launcher)


def _closed(scene: Scene, path: Path) -> Iterator[Finding]:
    """The first directory on the way, or the file at its end, that the service's user may not use."""
    for place in (*reversed(path.parents), path):
        mode = scene.host.at(place).stat().st_mode
        if not mode & (0o001 if scene.host.at(place).is_dir() else 0o004):
            yield Finding(
                "permission-denied",
                tr("the service's user {user} may not use {place}", user=scene.layout.user, place=place),
                tr("{place} has mode {mode:04o}, on the way to {path}", place=place, mode=mode & 0o7777, path=path),
                (f"sudo chmod o+rX {shlex.quote(str(place))}",),
            )
            return


def check_probe_key(scene: Scene) -> Iterator[Finding]:
    path = scene.layout.probe_key
    if scene.state and scene.state.proved and scene.host.exists(path.parent) and not scene.host.exists(path):
        cause = tr("the key with which the service asks itself is gone")
        yield Finding("probe-key-missing", cause, tr("{path}: no such file", path=path), (scene.deploy,))


def check_advisories(scene: Scene) -> Iterator[Finding]:
    proved = scene.state.proved if scene.state else None
    lines = [line.partition("==") for line in proved.engine.packages] if proved else []
    known = advisories.load(scene.host).advisories
    for package, version in ((name, version.partition("+")[0]) for name, _, version in lines):
        found = [each for each in known if each.package == package and each.affects(version)]
        if found:
            names = tr(", ").join(map(_named, found))
            cause = tr("{package} {version} has known flaws: {names}", package=package, version=version, names=names)
            said = [tr("{summary} ({source})", summary=each.summary, source=each.source) for each in found]
            fixed = max((each.fixed for each in found), key=version_key)
            yield Finding(f"advisory-{package}", cause, tr("; ").join(said), (_mended(package, fixed, scene),), NOTE)


def _named(advisory: Advisory) -> str:
    name = "/".join((advisory.id, *advisory.also))
    return tr("{name} ({severity})", name=name, severity=tr(advisory.severity)) if advisory.severity else name


def _mended(package: str, fixed: str, scene: Scene) -> str:
    """The version that this tool was tested with, where that is new enough."""
    if package == "torch":
        return f"sudo vllm-install upgrade --resolve --service {scene.service}"
    tested = Settings.vllm_version if package == "vllm" else Settings.sglang_version
    version = max(tested, fixed, key=version_key)
    return f"sudo vllm-install set {package.upper()}_VERSION={version} --service {scene.service}"


# The model


def check_weights(scene: Scene) -> Iterator[Finding]:
    for model in scene.state.proved.read if scene.state and scene.state.proved else ():
        yield from _of_weights(model, scene)


def _of_weights(model: Model, scene: Scene) -> Iterator[Finding]:
    problems = check_directory(scene.host.at(model.path))
    again = (scene.deploy, f"sudo vllm-install models verify --service {scene.service}")
    if problems:
        yield Finding(
            _id_of(problems[0]),
            tr("the model in {path} is not complete", path=model.path),
            one_line(tr("; ").join(problems)),
            again,
        )
        return
    closed = list(obstacles(model.path, scene.host))
    if closed:
        place, rights = closed[0]
        cause = tr("the service's user {user} cannot read the model", user=scene.layout.user)
        exact = f"sudo chmod o+{rights} {shlex.quote(str(place))}" if rights else scene.deploy
        evidence = one_line(tr("; ").join(check_access(model.path, scene.host)))
        yield Finding("permission-denied" if rights else "weights-missing", cause, evidence, (exact,))


def _id_of(problem: str) -> str:
    """The same name for a fault seen on disk as for one that vLLM reports; files have one name in all languages."""
    if "tokenizer" in problem:
        return "tokenizer-missing"
    if "config.json" in problem or "params.json" in problem:
        return "model-config-damaged"
    return "shard-damaged" if isinstance(problem, Damage) else "weights-missing"


# What was done to it


def check_history(scene: Scene) -> Iterator[Finding]:
    if holder := scene.under_way:
        cause = tr("under way: {command}, {seconds} s", command=holder.command, seconds=holder.seconds)
        wait = f"vllm-install status --service {scene.service} --watch"
        yield Finding("change-under-way", cause, str(scene.layout.change_lock), (wait,), NOTE)
    elif scene.state and scene.state.unfinished:
        cause = tr("{what} was cut off", what=scene.state.unfinished)
        severity = NOTE if scene.active == "active" else FAULT
        yield Finding("change-cut-off", cause, str(scene.layout.state_file), (scene.deploy,), severity)
    elif scene.state and scene.state.history:
        yield from _undone(scene, scene.state.history[-1])


def _undone(scene: Scene, last: Event) -> Iterator[Finding]:
    """For a day: whoever did not see it happen should know that what he expects is not there."""
    yesterday = keys.stamp(datetime.now(timezone.utc) - timedelta(days=1))
    if last.was_taken_back and last.when > yesterday:
        cause = tr("the last change was taken back: {what}", what=one_line(last.what))
        look = f"sudo vllm-install logs {scene.service}"
        yield Finding("change-undone", cause, one_line(f"{last.when} {last.outcome}"), (look,), NOTE)
