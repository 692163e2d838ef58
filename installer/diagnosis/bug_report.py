"""A report for a bug tracker: what a stranger needs to help, and nothing that opens anything."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from installer import __version__
from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.diagnosis.doctor import Diagnosis
from installer.diagnosis.redact import MASK, Redactor, harvest
from installer.diagnosis.scene import Scene
from installer.runtime.vllm_text import harmless
from installer.spec.engine import Engine
from installer.spec.settings import NAMES
from installer.units import journal, keyring

JOURNAL_LINES = 2000
LARGEST = 2 << 20  # bytes of one file; of a longer one the end
# Where secrets of this host are kept; they are read to be recognised elsewhere, never packed.
SECRET_FILES = (".netrc", ".cache/huggingface/token", ".cache/huggingface/stored_tokens", ".pip/pip.conf",
                ".config/pip/pip.conf", ".config/uv/uv.toml", ".docker/config.json", ".git-credentials")  # fmt: skip
HOST_FILES = ("/etc/pip.conf", "/etc/environment", "/etc/apt/auth.conf")
# Variables of a unit whose values may be shown.
OPEN_VARIABLES = re.compile(
    r"(VLLM|TRITON|TORCH|TORCHINDUCTOR|FLASHINFER|CUDA|NCCL|OMP|HF_HUB|TRANSFORMERS|PYTHON)_?\w*|HOME|PATH|LANG"
    r"|UNIT_DIGEST|HOLD|DRAIN|HEAR_OUT|LIMITS|MAX_QUEUED|TTFT|DOOR"  # ours
)
COMMANDS = (("uname", "-a"), ("df", "-h"), ("free", "-m"), ("nvidia-smi",), ("rocm-smi",), ("systemctl", "--version"))


def write(scene: Scene, found: Diagnosis, path: Path) -> None:
    """Pack what doctor found and what it looked at; readable by its owner alone."""
    if scene.host.exists(path):
        raise Refused(tr("{path} exists already", path=path), tr("choose another name for the report"))
    redactor = redactor_of(scene, f"sk-{scene.service}- sk-probe- vllm-install vllm-{scene.service}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, make in _parts(scene, found):
            try:
                text = make()
            except (InstallError, OSError) as error:
                text = f"could not be had: {error}\n"
            _add(archive, f"{scene.service}-report/{name}", harmless(redactor(text[-LARGEST:])))
    # It takes text; bytes pass through unharmed in this form.
    scene.host.write_out(path, packed.getvalue().decode(errors="surrogateescape"), 0o600, force=False)


def redactor_of(scene: Scene, harmless: str | None) -> Redactor:
    """For what is to leave this host."""
    digests: set[str] = set()
    with contextlib.suppress(InstallError, OSError):
        digests = {key.digest for key in keyring.unit_keys(scene.host, scene.layout)}
    return Redactor(_secrets(scene), harmless, digests)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors="replace")
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))


def _parts(scene: Scene, found: Diagnosis) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "versions.txt", lambda: _versions(scene)
    yield "findings.json", lambda: _json(dataclasses.asdict(found))
    yield "facts.json", lambda: _json(dataclasses.asdict(scene.facts))
    yield "unit.txt", lambda: _units(scene)
    yield "settings.txt", lambda: _settings(scene)
    yield "state.json", lambda: scene.file(scene.layout.state_file) or "none\n"
    yield "systemd.txt", lambda: "".join(_shown(part) for part in scene.parts)
    yield "journal.txt", lambda: _journal(scene.host, *(f"--unit={part.member.name}" for part in scene.parts))
    if scene.is_gateway:
        yield "gateway.txt", lambda: f"{scene.gateway or 'it does not say'}\n"
    yield "kernel.txt", lambda: _journal(scene.host, "_TRANSPORT=kernel", "--grep=NVRM|amdgpu|oom|Killed process")
    for command in COMMANDS:
        if scene.host.which(command[0]):
            yield f"{command[0]}.txt", functools.partial(_output, scene.host, command)


def _shown(part: Scene) -> str:
    name = f"# {part.member.name}\n" if part.number else ""
    return name + "".join(f"{name}={value}\n" for name, value in part.unit.items())


def _output(host: Host, command: tuple[str, ...]) -> str:
    return host.run(*command, check=False, timeout=20).stdout


def _versions(scene: Scene) -> str:
    proved = scene.state.proved if scene.state else None
    release = scene.host.read(Path("/etc/os-release")) or scene.host.read(Path("/usr/lib/os-release")) or ""
    return f"vllm-install {__version__}\n{_engine(proved.engine) if proved else ''}{release}"


def _engine(engine: Engine) -> str:
    """Without the checksums of a lock: everybody has them, and they hide the versions."""
    lock = "tested lock" if engine.is_tested else "resolved"
    packages = "\n".join(engine.packages)
    return f"vLLM {engine.vllm_version} ({engine.kind}), {engine.python}, {lock}\n{packages}\n"


def _json(value: object) -> str:
    def other(item: object) -> object:
        return sorted(map(str, item)) if isinstance(item, (set, frozenset)) else str(item)

    return json.dumps(_with_text_keys(value), indent=1, default=other) + "\n"


def _with_text_keys(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def _journal(host: Host, *matches: str) -> str:
    return "".join(f"{entry.text}\n" for entry in journal.entries(host, JOURNAL_LINES, *matches))


def _unit_paths(scene: Scene) -> list[Path]:
    found = [path for part in scene.parts for path in (part.member.path, *_drop_ins(part))]
    return [*found, *scene.configuration]


def _drop_ins(part: Scene) -> list[Path]:
    return [Path(path) for path in part.unit.get("DropInPaths", "").split()]


def _units(scene: Scene) -> str:
    """Comments are left out, and the values of variables that we do not know."""
    text = ""
    for path in _unit_paths(scene):
        shown = [_without_values(line) for line in _uncommented(scene.file(path) or "")]
        text += "\n".join([f"# {path}", *shown, ""])
    return text


def _without_values(line: str) -> str:
    name, equals, value = line.partition("=")
    if name.strip() == "SetCredential":
        return f"{name}={MASK}"
    if not equals or name.strip() != "Environment":
        return line
    words = re.findall(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\S+", value)
    variables = [word.strip("\"'").partition("=") for word in words]
    return f"{name}=" + " ".join(f"{n}={v if OPEN_VARIABLES.fullmatch(n) else MASK}" for n, _, v in variables)


def _settings(scene: Scene) -> str:
    lines = _uncommented(scene.file(scene.layout.settings_file) or "")
    known = [line.partition("=")[0].replace("export", "").strip() in NAMES for line in lines]
    return "".join(f"{line if is_ours else MASK}\n" for line, is_ours in zip(lines, known, strict=True))


def _uncommented(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", ";"))]


def _secrets(scene: Scene) -> set[str]:
    """Whatever is secret on this host, as far as we can find it."""
    homes = dict.fromkeys((Path("/root"), Path(os.environ.get("HOME") or "/root")))
    places = [home / name for home in homes for name in SECRET_FILES] + [Path(name) for name in HOST_FILES]
    texts = [scene.file(path) or "" for path in (*places, *_unit_paths(scene), scene.layout.settings_file)]
    found = {value for text in texts for value in harvest(text)}
    found |= harvest("\n".join(f"{name}={value}" for name, value in os.environ.items()))
    holders = [path for path in places if path.name == "token"]
    holders += [Path(name) for name in (scene.settings.hf_token_file,) if name]
    tokens = [scene.file(path) or "" for path in holders]
    environment = re.findall(r"^Environment=(.*)$", "\n".join(texts), re.MULTILINE)
    for word in re.findall(r"\"[^\"]*\"|'[^']*'|\S+", "\n".join(environment)):
        name, _, value = word.strip("\"'").partition("=")
        if not OPEN_VARIABLES.fullmatch(name):
            found.add(value)
    return found | {scene.settings.notify_url or "", scene.probe_key or "", *(token.strip() for token in tokens)}
