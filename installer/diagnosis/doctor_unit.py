"""What doctor looks at in the unit: whether systemd can load it, its drop-ins, and what was edited by hand."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from installer.base.language import mark, tr
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.runtime.vllm_text import one_line
from installer.units.render import fingerprint, render

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
