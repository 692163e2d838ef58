"""What doctor looks at second: everything of the service that lies on disk, as it is against as it was made."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from installer.base.errors import InstallError, UsageError
from installer.base.language import mark, tr
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.forms.venv import python_of
from installer.forms.venv.engines import MARKER, is_complete
from installer.model.checkpoint import Damage, check_access, check_directory, obstacles
from installer.runtime.vllm_text import one_line
from installer.spec import guessing, keys, settings_file
from installer.spec.model import Model
from installer.spec.settings import FIELDS, load_settings
from installer.spec.state import Event
from installer.units import keyring
from installer.units.render import RUNTIME_FILES, content_digest, fingerprint, render, runtime_dir
from installer.units.systemd import has_user

SOON = timedelta(days=7)
ON, OFF = r"(1|yes|true|on)", r"(0|no|false|off)"
# Directives with which the real vLLM was seen not to start, not to serve, or not to be watched.
BREAKING = (
    ("MemoryDenyWriteExecute", ON, mark("vLLM makes code while it runs")),
    ("NoExecPaths", r".+", mark("vLLM loads libraries that it compiled")),
    ("ProcSubset", r"pid", mark("vLLM reads /proc/meminfo")),
    ("PrivateNetwork", ON, mark("nobody could reach it")),
    ("Type", r"(?!notify).*", mark("systemd would not hear when it is ready")),
    ("NotifyAccess", r"(?!all).*", mark("the watcher could not report")),
    ("KillMode", r"(?!mixed).*", mark("a stop would cut running requests off or leave processes behind")),
    ("RuntimeDirectory", r".*", mark("the keys in force lie there")),
    ("LoadCredential", r"", mark("the watcher's key comes that way")),
    ("SystemCallFilter", r"~.*@resources.*", mark("ZeroMQ would abort")),
    ("RestrictAddressFamilies", r"none|~.*AF_(UNIX|INET6?|NETLINK)\b.*", mark("vLLM's processes talk by it")),
    ("TimeoutStartSec", r"\d{1,2}(s|sec)?", mark("loading a model takes longer")),
    ("Environment", r".*VLLM_USE_RUST_FRONTEND=[\"']?1.*", mark("that server takes no guard")),
)
WEAKENING = (
    ("User", r"(root|0)", mark("the service would be root")),
    (r"NoNewPrivileges|PrivateDevices|PrivateTmp|PrivateUsers|RestrictNamespaces|RestrictSUIDSGID|ProtectSystem"
     r"|ProtectHome|ProtectKernel\w+|ProtectControlGroups|LockPersonality", OFF, mark("a part of the sandbox is off")),
    ("CapabilityBoundingSet|AmbientCapabilities", r".+", mark("it would have privileges")),
    ("SystemCallFilter|IPAddressDeny", r"", mark("a part of the sandbox is off")),
)  # fmt: skip


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


# The unit


def check_unit(scene: Scene) -> Iterator[Finding]:
    text, path = scene.unit_text, scene.member.path
    if text is None:
        yield Finding(
            "unit-missing", tr("{path} is gone", path=path), tr("{path}: no such file", path=path), (scene.deploy,)
        )
    elif text == "" or scene.unit.get("LoadState") == "masked":
        yield _masked(scene, path if text == "" else Path(scene.unit.get("FragmentPath") or path))
    elif (evidence := _load_error(scene)) and not (scene.unit.get("DropInPaths") and _is_as_made(scene, text)):
        yield Finding(
            "unit-invalid",
            tr("systemd cannot load {path}", path=path),
            one_line(evidence),
            (f"{scene.deploy} --discard-edits",),
        )


def _masked(scene: Scene, link: Path) -> Finding:
    """`systemctl unmask` knows the link in place of our unit; one that goes before it is there because of somebody."""
    unit = scene.member.stem
    away = f"sudo rm {shlex.quote(str(link))} && sudo systemctl daemon-reload && sudo systemctl start {unit}"
    command = f"sudo systemctl unmask {unit} && {scene.deploy}" if link == scene.member.path else away
    cause = tr("{unit} is masked: somebody switched it off on purpose", unit=unit)
    return Finding("unit-masked", cause, tr("{path} is a link to /dev/null", path=link), (command,))


def _load_error(scene: Scene) -> str:
    """Why systemd cannot load the unit; "" where it can, or has never heard of it."""
    state = scene.unit.get("LoadState", "")
    return "" if state in ("", "loaded", "not-found", "masked") else scene.unit.get("LoadError") or state


def _is_as_made(scene: Scene, text: str) -> bool:
    path = scene.member.path
    return scene.state is not None and fingerprint(text, path, scene.layout) in scene.state.owned.get(str(path), ())


def check_dropins(scene: Scene) -> Iterator[Finding]:
    """They go before the unit that they change: what systemd cannot load is the sum of both."""
    paths = [Path(path) for path in scene.unit.get("DropInPaths", "").split()]
    found = [
        finding
        for path in paths
        for line in (scene.file(path) or "").splitlines()
        for finding in _dropin_line(scene, path, line.strip())
    ]
    yield from found
    error, text = _load_error(scene), scene.unit_text
    if paths and error and text and _is_as_made(scene, text) and not any(each.severity == FAULT for each in found):
        cause = tr("systemd cannot load {unit} with its drop-ins", unit=scene.member.name)
        evidence = one_line(f"{', '.join(map(str, paths))}: {error}")
        yield Finding("dropin-breaks", cause, evidence, (f"sudo systemctl edit {scene.member.stem}",))


def _dropin_line(scene: Scene, path: Path, line: str) -> Iterator[Finding]:
    name, equals, value = (part.strip() for part in line.partition("="))
    if not equals or name.startswith(("#", ";")):
        return
    unit = scene.member.stem
    away = f"sudo sed -i {shlex.quote(f'/^ *{name} *=/d')} {shlex.quote(str(path))} && sudo systemctl daemon-reload"
    command = f"{away} && sudo systemctl restart {unit}"
    evidence = one_line(f"{path}: {name}=…" if name == "Environment" else f"{path}: {line}")
    if why := "" if scene.is_gateway else _why(BREAKING, name, value):
        yield Finding(
            "dropin-breaks",
            tr("a drop-in sets {name}, with which vLLM cannot work: {why}", name=name, why=why),
            evidence,
            (command,),
        )
    elif why := _why(WEAKENING, name, value):
        yield Finding(
            "dropin-weakens", tr("a drop-in sets {name}: {why}", name=name, why=why), evidence, (command,), NOTE
        )
    elif name == "ExecStart":
        breaks = scene.has_failed or bool(_load_error(scene))
        cause = (
            tr("a drop-in replaces the command line, and with it the service does not start")
            if breaks
            else tr("a drop-in replaces the command line: what runs is not what was proved")
        )
        flags = f"sudo vllm-install set VLLM_ARGS='...' --service {scene.service}"
        severity = FAULT if breaks else NOTE
        yield Finding("dropin-flags", cause, f"{path}: ExecStart=…", (command, flags), severity)


def _why(table: tuple[tuple[str, str, str], ...], name: str, value: str) -> str:
    return next((tr(why) for key, bad, why in table if re.fullmatch(key, name) and re.fullmatch(bad, value, re.I)), "")


def check_unit_edited(scene: Scene) -> Iterator[Finding]:
    """An edit by hand is the admin's right; it is the cause only of what nothing else explains."""
    yield from _edited(scene, scene.member.path, scene.unit_text)
    for path in scene.configuration:
        yield from _edited(scene, path, scene.file(path))


def _edited(scene: Scene, path: Path, text: str | None) -> Iterator[Finding]:
    state = scene.state
    if not state or not text or not state.proved:
        return
    if fingerprint(text, path, scene.layout) in state.owned.get(str(path), ()):
        return
    made = render(state.proved, scene.layout)[path].text
    changed = [
        line
        for line in difflib.unified_diff(made.splitlines(), text.splitlines(), lineterm="", n=0)
        if re.match(r"[-+](?![-+])", line) and "--api-key" not in line
    ]
    discard = f"{scene.deploy} --discard-edits"
    commands = (f"sudo systemctl edit {path.name}", discard) if path == scene.member.path else (discard,)
    severity = FAULT if scene.has_failed else NOTE
    yield Finding(
        "unit-edited",
        tr("{path} was edited by hand", path=path),
        one_line("  ".join(changed) or tr("its command line")),
        commands,
        severity,
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
    home = layout.engines / state.proved.engine.id
    python = python_of(home)
    if not is_complete(host, layout, state.proved.engine.id):
        what = python if not host.at(python).exists() else home / MARKER
        link = tr(", a link to {target}", target=host.at(what).readlink()) if host.at(what).is_symlink() else ""
        cause = tr("the engine {path} is missing or not complete", path=home)
        yield Finding("engine-missing", cause, tr("{path} is not there", path=what) + link, (scene.deploy,))
        return
    yield from _closed(scene, python)
    yield from _closed(scene, Path(host.at(python).resolve()) if host.root == Path("/") else python)


def check_runtime(scene: Scene) -> Iterator[Finding]:
    """The files that vLLM runs with lie in a directory that is named by their content; an earlier tool has fewer."""
    proved = scene.state.proved if scene.state else None
    if proved is None or not is_complete(scene.host, scene.layout, proved.engine.id):
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


# Settings and keys


def check_settings(scene: Scene) -> Iterator[Finding]:
    path = scene.layout.settings_file
    edit = f"sudoedit {path}"
    try:
        values = settings_file.parse(scene.host.read(path) or "", path)
        wanted = load_settings(scene.service, values, {}, {})
    except UsageError as error:
        yield Finding("settings-malformed", tr("the settings file is not valid"), one_line(error.message), (edit,))
        return
    for warning in settings_file.unknown(values):
        yield Finding("settings-unknown", tr("{what}: {why}", what=path, why=warning), str(path), (edit,), NOTE)
    proved = scene.state.proved.settings if scene.state and scene.state.proved else None
    changed = [name for name in FIELDS if proved and getattr(wanted, name) != getattr(proved, name)]
    if changed:
        names = ", ".join(FIELDS[name].names[0] for name in changed)
        cause = tr("the settings file was changed, but not put into force: {names}", names=names)
        yield Finding("settings-not-applied", cause, str(path), (scene.deploy,), NOTE)


def check_keys(scene: Scene) -> Iterator[Finding]:
    unit, now = keyring.first_unit(scene.host, scene.layout), datetime.now(timezone.utc)
    new = f"sudo vllm-install set-apikey --service {scene.service}"
    try:
        held = [key for key in keyring.unit_keys(scene.host, scene.layout) if key.name != keys.PROBE]
    except InstallError as error:
        yield Finding("key-malformed", error.message, str(unit), (f"sudoedit {unit}", scene.deploy))
        return
    asking = [key for key in held if key.role != "metrics"]
    alive = [key for key in asking if not keys.is_expired(key, keys.stamp(now))]
    if scene.unit_text and not alive:
        cause = tr("every key that can ask the model has expired") if asking else tr("no key can ask the model")
        yield Finding(
            "keys-expired",
            cause,
            tr(", ").join(tr("{name} until {expiry}", name=k.name, expiry=k.expiry) for k in asking),
            (new,),
        )
    for key in held:
        if key.expiry and key in alive and key.expiry < keys.stamp(now + SOON) and not key.is_grace:
            # Its clients go on with it until it ends, and not only until somebody reads this.
            again = f"{new} --name {key.name} --keep-old {SOON.days}d"
            yield Finding(
                "key-expires",
                tr("the key {name} expires soon", name=key.name),
                tr("until {expiry}", expiry=key.expiry),
                (again,),
                NOTE,
            )
        if guessing.is_first_guess(key.digest) or (key.plain and guessing.is_weak(key.plain)):
            cause = tr(
                "the key {name} can be guessed: its digest is public, and among the first that anybody tries",
                name=key.name,
            )
            yield Finding("key-guessable", cause, str(unit), (f"{new} --name {key.name}",))
        if key.plain:
            cause = tr("the key {name} stands in the unit as it is: every local user can read it", name=key.name)
            yield Finding("key-plain", cause, str(unit), (f"{new} --name {key.name}",), NOTE)


def check_same_keys(scene: Scene) -> Iterator[Finding]:
    """A key that only one replica knows works now and then; one that was revoked may still work somewhere."""
    first, *others = keyring.key_units(scene.host, scene.layout) or [scene.member]
    held = _in_force(scene, first.path)
    for path in (unit.path for unit in others):
        if differ := sorted({name for name, _ in _in_force(scene, path) ^ held}):
            cause = tr("{path} has other keys than {first}", path=path, first=first.path)
            yield Finding("keys-differ", cause, tr(", ").join(differ), (scene.deploy,))


def _in_force(scene: Scene, path: Path) -> frozenset[tuple[str, str]]:
    """The keys that a unit would put into force; none where it could not start with them."""
    try:
        return keyring.in_force(keyring.keys_in(scene.file(path) or ""))
    except InstallError:
        return frozenset()


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
