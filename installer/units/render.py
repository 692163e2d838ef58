"""From what is wanted to the text of every file; knows how systemd reads what we write."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from installer import __version__
from installer.base.assets import RUNTIME, asset_dir
from installer.base.layout import UNITS, Layout
from installer.base.templates import template
from installer.families.known import family_of
from installer.forms.interpreter import interpreter
from installer.forms.podman import words as container
from installer.spec.keys import Key
from installer.spec.state import text_digest
from installer.spec.target import Target
from installer.spec.vendors import of_kind, variables_of
from installer.units.gateway import gateway_digest, gateway_files, gateway_unit
from installer.units.graph import Member, members, units
from installer.units.syntax import FILTERS, quote_exec

# Not VLLM_…: vLLM warns of variables with that beginning that it does not know.
DIGEST_VARIABLE = "UNIT_DIGEST"
RUNTIME_FILES = (  # a new one comes last: so doctor knows whether those of an earlier tool are whole
    "vllm_launcher.py", "vllm_listen.py", "vllm_watcher.py", "vllm_guard.py", "vllm_connections.py", "vllm_text.py",
    "vllm_flags.py", "vllm_flags.json", "vllm_drain.py", "vllm_systemd.py", "vllm_hold.py", "vllm_supervisor.py",
    "vllm_processes.py", "vllm_handover.py", "vllm_start.py", "vllm_haproxy.py",
    "vllm_certificate.py", "vllm_fallback.py", "vllm_gateway.py", "vllm_hold.lua",
    "vllm_usage.py", "vllm_limits.py", "vllm_count.py", "vllm_queue.py", "vllm_meter.py",
    "vllm_gpus.py", "vllm_notify.py", "vllm_seen.py", "vllm_words.py", "sglang_serve.py", "sglang_flags.json",
    "vllm_command.py", "vllm_callers.py", "vllm_supervision.py", "vllm_main.py", "vllm_successor.py", "vllm_port.py",
    "vllm_usage_file.py", "vllm_usage_slots.py", "vllm_usage_record.py", "vllm_usage_table.py", "vllm_container.py",
    "vllm_channel.py", "vllm_group.py", "vllm_member.py", "vllm_log.py", "vllm_room.py", "vllm_door.py",
)  # fmt: skip
HOMES = ("/home/", "/root/", "/run/user/")
HIDDEN = ("/tmp/", "/var/tmp/", "/dev/", "/proc/", "/sys/", "/run/")  # noqa: S108 they are named, not used

_KEY_WORDS = re.compile(
    r'^(Exec\w+=\S+ \S+ (?:launch|reload))(?: --api-key[ =](?:"(?:[^"\\]|\\.)*"|\S+))+', re.MULTILINE
)
_ALARM = re.compile(r"^OnFailure=.*\n", re.MULTILINE)


@dataclass(frozen=True)
class File:
    text: str
    mode: int = 0o644


def render(target: Target, layout: Layout) -> dict[Path, File]:
    """Every file of ours that this service needs, but for the settings and the probe key."""
    texts = {member.path: unit(target, layout, member.number) for member in members(layout, target)}
    any_text = next(iter(texts.values()))
    texts |= dict(sorted(gateway_files(target, layout, runtime_dir(layout)).items(), reverse=True))
    files = {layout.sysusers: File(template("sysusers.conf.j2", FILTERS).render(layout=layout))}
    runtime = runtime_dir(layout)
    files |= {runtime / name: File(text) for name, text in runtime_files().items()}
    files |= {path: File(text) for path, text in shared_units().items() if path.name in any_text}
    return files | {path: File(text) for path, text in texts.items()}


def shared_units() -> dict[Path, str]:
    """Static units that all services on the host share."""
    return {UNITS / p.name: p.read_text() for p in sorted(asset_dir("units").iterdir())}


@functools.cache
def runtime_files() -> Mapping[str, str]:
    return {name: (RUNTIME / name).read_text() for name in RUNTIME_FILES}


def runtime_dir(layout: Layout) -> Path:
    """Named by content, so that a running service keeps the files it was started with."""
    return layout.runtimes / f"{__version__}-{content_digest(''.join(runtime_files().values()).encode())}"


def content_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def unit(target: Target, layout: Layout, number: int = 0) -> str:
    """The text of one unit: of a replica by its number."""
    if target.replicas and not number:
        return gateway_unit(target, layout, runtime_dir(layout))
    return _unit(target, _member(target, layout, number), process_digest(target, layout, number))


def process_digest(target: Target, layout: Layout, number: int = 0) -> str:
    """Stands for everything about the unit that only a restart applies: all but the keys, and who is told."""
    if target.replicas and not number:
        return gateway_digest(target, layout, runtime_dir(layout))
    text = _unit(target, _member(target, layout, number), "")
    return hashlib.sha256(_ALARM.sub("", without_keys(text)).encode()).hexdigest()[:16]


def generation(target: Target, layout: Layout) -> tuple[str, ...]:
    """Stands for all that serves: two targets of one generation differ in their keys at most."""
    return tuple(process_digest(target, layout, member.number) for member in units(layout, target))


def without_keys(unit_text: str) -> str:
    return _KEY_WORDS.sub(r"\1", unit_text)


def with_keys(unit_text: str, keys: Sequence[Key]) -> str:
    """The same unit with other keys; whatever else was written into it by hand stays."""
    words = quote_exec(_key_words(keys))
    return _KEY_WORDS.sub(lambda found: f"{found[1]} {words}", unit_text)


def has_keys(unit_text: str) -> bool:
    return _KEY_WORDS.search(unit_text) is not None


def _member(target: Target, layout: Layout, number: int) -> Member:
    return next(each for each in members(layout, target) if each.number == number)


def _unit(whole: Target, member: Member, digest: str) -> str:
    target, layout = whole.of(member.number), member.layout
    settings, model = target.settings, target.model
    runtime, boxed = runtime_dir(layout), bool(target.engine.image)
    launcher = str(runtime / "vllm_launcher.py")
    family, engine = family_of(settings), layout.engines / target.engine.id
    python = str(interpreter(target.engine, layout))
    starter = str(runtime / container.STARTER) if boxed else launcher
    environment = {DIGEST_VARIABLE: digest, "HOME": str(layout.cache_dir), **_visible(target)}
    environment |= family.environment(target, engine)
    if target.engine.kind == "cpu" and len(whole.replicas) > 1:
        environment |= family.several_on_cpu
    words = family.arguments(target)
    return template("service.j2", FILTERS).render(
        version=__version__,
        layout=layout,
        member=member,
        neighbour=_neighbour(whole, member),
        settings=settings,
        title=family_of(settings).title,
        kind=target.engine.kind,
        vendor=of_kind(target.engine.kind),
        model_id=model.id,
        exec_start=[python, starter, "launch", *_key_words(target.keys), "--", *words],
        exec_check=[python, launcher, "check", "--", words[0], "--host", settings.host, "--port", str(settings.port)],
        exec_reload=[python, starter, "reload", *_key_words(target.keys), *([] if boxed else ["--", *words])],
        container=container.run_words(target, layout, member.stem, runtime) if boxed else None,
        container_name=container.called(member.stem),
        gpu_nodes=_gpu_nodes(target),
        environment=environment,
        local_only=whole.settings.is_local,
        place=target.place,
        engine_id=target.engine.id,
        group_model=f"{model.id}@{model.commit or model.source}",
        binds=[str(each.path) for each in target.read if str(each.path).startswith(HOMES)],
    )


def _neighbour(target: Target, member: Member) -> str:
    """The replica before this one on a GPU that they share: vLLM measures what is free there while it starts."""
    gpus = {replica.number: {gpu.uuid for gpu in replica.gpus} for replica in target.replicas}
    before = [number for number in gpus if number < member.number and gpus[number] & gpus[member.number]]
    return member.layout.member_name(max(before)) if before else ""


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
    return text_digest(without_keys(text) if path.parent == UNITS and layout.has_unit(path.name) else text)
