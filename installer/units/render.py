"""From what is wanted to the text of every file; knows how systemd reads what we write."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from installer import __version__
from installer.base.assets import RUNTIME, asset_dir
from installer.base.layout import Layout
from installer.base.templates import template
from installer.families.vllm import cuda
from installer.families.vllm.serve import serve_arguments
from installer.forms.venv import python_of
from installer.spec.keys import Key
from installer.spec.state import text_digest
from installer.spec.target import Target
from installer.spec.vendors import of_kind, variables_of
from installer.units.graph import members
from installer.units.syntax import FILTERS, quote_exec

# Not VLLM_…: vLLM warns of variables with that beginning that it does not know.
DIGEST_VARIABLE = "UNIT_DIGEST"
RUNTIME_FILES = (  # a new one comes last: so doctor knows whether those of an earlier tool are whole
    "vllm_launcher.py", "vllm_listen.py", "vllm_watcher.py", "vllm_guard.py", "vllm_connections.py", "vllm_text.py",
    "vllm_flags.py", "vllm_flags.json", "vllm_drain.py", "vllm_systemd.py", "vllm_hold.py", "vllm_supervisor.py",
    "vllm_processes.py", "vllm_handover.py", "vllm_start.py",
)  # fmt: skip
HOMES = ("/home/", "/root/", "/run/user/")
HIDDEN = ("/tmp/", "/var/tmp/", "/dev/", "/proc/", "/sys/", "/run/")  # noqa: S108 they are named, not used

_KEY_WORDS = re.compile(
    r'^(Exec\w+=\S+ \S+ (?:launch|reload))(?: --api-key[ =](?:"(?:[^"\\]|\\.)*"|\S+))+', re.MULTILINE
)


@dataclass(frozen=True)
class File:
    text: str
    mode: int = 0o644


# How systemd reads a line


# Files


def render(target: Target, layout: Layout) -> dict[Path, File]:
    """Every file of ours that this service needs, but for the settings and the probe key."""
    unit_text = unit(target, layout)
    files = {layout.sysusers: File(template("sysusers.conf.j2", FILTERS).render(layout=layout))}
    runtime = runtime_dir(layout)
    for name in RUNTIME_FILES:
        files[runtime / name] = File((RUNTIME / name).read_text())
    files |= {path: File(text) for path, text in shared_units().items() if path.name in unit_text}
    files[layout.unit] = File(unit_text)
    return files


def shared_units() -> dict[Path, str]:
    """Static units that all services on the host share."""
    return {Path("/etc/systemd/system") / p.name: p.read_text() for p in sorted(asset_dir("units").iterdir())}


def runtime_dir(layout: Layout) -> Path:
    """Named by content, so that a running service keeps the files it was started with."""
    content = b"".join((RUNTIME / name).read_bytes() for name in RUNTIME_FILES)
    return layout.runtimes / f"{__version__}-{content_digest(content)}"


def content_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def unit(target: Target, layout: Layout) -> str:
    return _unit(target, layout, process_digest(target, layout))


def process_digest(target: Target, layout: Layout) -> str:
    """Stands for everything about the unit that only a restart applies: all of it but the keys."""
    return hashlib.sha256(without_keys(_unit(target, layout, "")).encode()).hexdigest()[:16]


def without_keys(unit_text: str) -> str:
    return _KEY_WORDS.sub(r"\1", unit_text)


def with_keys(unit_text: str, keys: Sequence[Key]) -> str:
    """The same unit with other keys; whatever else was written into it by hand stays."""
    words = quote_exec(_key_words(keys))
    return _KEY_WORDS.sub(lambda found: f"{found[1]} {words}", unit_text)


def _unit(target: Target, layout: Layout, digest: str) -> str:
    settings, model = target.settings, target.model
    python = str(python_of(layout.engines / target.engine.id))
    launcher = str(runtime_dir(layout) / "vllm_launcher.py")
    environment = {DIGEST_VARIABLE: digest, "HOME": str(layout.cache_dir), **_visible(target)}
    if target.toolkit:
        environment |= cuda.environment(target.toolkit, layout.engines / target.engine.id)
    return template("service.j2", FILTERS).render(
        version=__version__,
        layout=layout,
        settings=settings,
        kind=target.engine.kind,
        model_id=model.id,
        exec_start=[python, launcher, "launch", *_key_words(target.keys), "--", *serve_arguments(target)],
        exec_check=[python, launcher, "check", "--", "serve", "--host", settings.host, "--port", str(settings.port)],
        exec_reload=[python, launcher, "reload", *_key_words(target.keys), "--", *serve_arguments(target)],
        gpu_nodes=_gpu_nodes(target),
        environment=environment,
        local_only=settings.host == "localhost" or settings.host == "::1" or settings.host.startswith("127."),
        bind_model=str(model.path) if str(model.path).startswith(HOMES) else "",
    )


def _visible(target: Target) -> dict[str, str]:
    """The variable by which the engine sees its own GPUs and no others."""
    uuids = [gpu.uuid for gpu in target.gpus]
    if not uuids or not all(uuid.startswith(("GPU-", "MIG-")) for uuid in uuids):
        return {}
    return {variables_of(target.engine.kind)[0]: ",".join(uuids)}


def _gpu_nodes(target: Target) -> list[str]:
    """The device nodes of the service's GPUs; every one there may be where they are not known."""
    nodes = sorted({gpu.node for gpu in target.gpus})
    if nodes and all(nodes):
        return nodes
    vendor = of_kind(target.engine.kind)
    return list(vendor.nodes) if vendor else []


def _key_words(keys: Sequence[Key]) -> list[str]:
    return [word for key in keys for word in ("--api-key", key.argument)]


def fingerprint(text: str, path: Path, layout: Layout) -> str:
    """A unit's keys may be edited by hand: they are the unit's to say. Nothing else is."""
    return text_digest(without_keys(text) if path in [member.path for member in members(layout)] else text)
