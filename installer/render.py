"""From what is wanted to the text of every file; knows how systemd reads what we write."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from installer import __version__
from installer.assets import RUNTIME, asset_dir
from installer.errors import UsageError
from installer.keys import Key
from installer.language import tr
from installer.layout import Layout
from installer.settings import Settings
from installer.target import Target

# Not VLLM_…: vLLM warns of variables with that beginning that it does not know.
DIGEST_VARIABLE = "UNIT_DIGEST"
RUNTIME_FILES = (
    "vllm_launcher.py", "vllm_listen.py", "vllm_watcher.py", "vllm_guard.py", "vllm_connections.py", "vllm_text.py",
)  # fmt: skip
CPU_MEMORY_SHARE = 0.4
NO_DOMAINS = ("none.invalid",)
HOMES = ("/home/", "/root/", "/run/user/")

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,+@-]+")
_KEY_WORDS = re.compile(r'^(Exec\w+=\S+ \S+ (?:launch|reload))(?: --api-key (?:"(?:[^"\\]|\\.)*"|\S+))+', re.MULTILINE)


@dataclass(frozen=True)
class File:
    text: str
    mode: int = 0o644


# How systemd reads a line


def literal(text: str) -> str:
    """Text that ends a line: no specifier in it is expanded, and the line below stays a line of its own."""
    if text.endswith("\\"):
        raise UsageError(
            tr("{text!r} ends with a backslash, which in a systemd unit joins it with the next line", text=text)
        )
    return _without_specifiers(text)


def quote(word: str) -> str:
    """One word of a list directive, such as NAME=VALUE."""
    return word if _PLAIN_WORD.fullmatch(word) else quote_path(word)


def quote_path(path: str) -> str:
    """A path in BindReadOnlyPaths=, where a bare colon would end it."""
    return '"' + _without_specifiers(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _without_specifiers(text: str) -> str:
    if not text.isprintable():
        raise UsageError(tr("{text!r} holds a character that cannot stand in a systemd unit", text=text))
    return text.replace("%", "%%")


def quote_exec(args: Sequence[str]) -> str:
    """A command line for ExecStart=: the started process receives exactly these arguments."""
    return " ".join(quote(arg).replace("$", "$$") for arg in args)


def split_exec(line: str) -> list[str]:
    """The arguments that systemd makes of an ExecStart= value, ours or written by hand."""
    words: list[str] = []
    for match in re.finditer(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\\.|[^\s"'\\])+""", line):
        pieces = re.findall(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|((?:\\.|[^\s"'\\])+)""", match[0])
        word = "".join(re.sub(r"\\(.)", r"\1", "".join(piece)) for piece in pieces)
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


# Files


def render(target: Target, layout: Layout) -> dict[Path, File]:
    """Every file of ours that this service needs, but for the settings and the probe key."""
    unit_text = unit(target, layout)
    files = {layout.sysusers: File(template("sysusers.conf.j2").render(layout=layout))}
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


def exec_line(unit_text: str, directive: str = "ExecStart") -> list[str]:
    """The arguments of a directive in a unit's text; empty where there is none."""
    joined = unit_text.replace("\\\n", " ")
    found = re.findall(rf"^{directive}\s*=(.*)$", joined, re.MULTILINE)
    return split_exec(found[-1]) if found else []


def environment(unit_text: str) -> dict[str, str]:
    """The variables that a unit's text gives its process; an empty assignment takes back those before it."""
    found: dict[str, str] = {}
    for line in re.findall(r"^[^\S\n]*Environment[^\S\n]*=(.*)$", unit_text, re.MULTILINE):
        words = split_exec(line)
        found = {**found, **dict(word.partition("=")[::2] for word in words)} if words else {}
    return found


def sandbox(unit_text: str) -> list[str]:
    """The directives that confine a service, and those that open its devices, as they stand in its unit."""
    groups = re.findall(r"^SupplementaryGroups=.*$", unit_text, re.MULTILINE)
    part = unit_text.partition("\n# Sandbox\n")[2].partition("\n[Install]")[0]
    return [*groups, *(line for line in part.splitlines() if line and not line.startswith("#"))]


def _unit(target: Target, layout: Layout, digest: str) -> str:
    settings, model = target.settings, target.model
    python = str(layout.engines / target.engine.id / "bin" / "python")
    launcher = str(runtime_dir(layout) / "vllm_launcher.py")
    environment = {DIGEST_VARIABLE: digest, "HOME": str(layout.cache_dir), **_visible(target)}
    if target.toolkit:
        environment |= target.toolkit.environment(layout.engines / target.engine.id)
    return template("service.j2").render(
        version=__version__,
        layout=layout,
        settings=settings,
        kind=target.engine.kind,
        model_id=model.id,
        exec_start=[python, launcher, "launch", *_key_words(target.keys), "--", *serve_arguments(target)],
        exec_check=[python, launcher, "check", "--", "serve", "--host", settings.host, "--port", str(settings.port)],
        exec_reload=[python, launcher, "reload", *_key_words(target.keys)],
        gpu_nodes=_gpu_nodes(target),
        environment=environment,
        local_only=settings.host == "localhost" or settings.host == "::1" or settings.host.startswith("127."),
        bind_model=str(model.path) if str(model.path).startswith(HOMES) else "",
    )


def _visible(target: Target) -> dict[str, str]:
    """The variable by which the engine sees its own GPUs and no others.

    vLLM for ROCm takes no uuid in HIP_VISIBLE_DEVICES (0.32.0); ROCm's runtime takes one in its own variable.
    """
    uuids = [gpu.uuid for gpu in target.gpus]
    if not uuids or not all(uuid.startswith(("GPU-", "MIG-")) for uuid in uuids):
        return {}
    return {"ROCR_VISIBLE_DEVICES" if target.engine.kind == "rocm" else "CUDA_VISIBLE_DEVICES": ",".join(uuids)}


def _gpu_nodes(target: Target) -> list[str]:
    """The device nodes of the service's GPUs; every one there may be where they are not known."""
    nodes = sorted({gpu.node for gpu in target.gpus})
    if nodes and all(nodes):
        return nodes
    return ["/dev/dri"] if target.engine.kind == "rocm" else [f"/dev/nvidia{number}" for number in range(16)]


def serve_arguments(target: Target) -> list[str]:
    """What follows `vllm`: flags of ours, then the user's own, which cannot repeat ours."""
    settings = target.settings
    context = "auto" if settings.max_model_len is None else str(settings.max_model_len)
    words = [
        "serve", str(target.model.path),
        "--served-model-name", target.model.id,
        "--host", settings.host,
        "--port", str(settings.port),
        "--max-model-len", context,
        "--gpu-memory-utilization", str(memory_share(target)),
        "--tensor-parallel-size", str(settings.tensor_parallel_size),
        "--shutdown-timeout", str(settings.drain),
    ]  # fmt: skip
    # An empty list would allow every domain; a name that cannot exist allows none.
    words += ["--allowed-media-domains", *(settings.allowed_media_domains or NO_DOMAINS)]
    profile = target.profile
    if profile.tool_parser:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", profile.tool_parser]
    if profile.reasoning_parser:
        words += ["--reasoning-parser", profile.reasoning_parser]
    if settings.model in settings.trust_remote_code:
        words.append("--trust-remote-code")
    if target.toolkit:
        words += target.toolkit.arguments(settings.vllm_args)
    return [*words, *settings.vllm_args]


def memory_share(target: Target) -> float:
    """On the CPU engine the flag is a share of the host's RAM, of which the GPU default leaves too little free."""
    share = target.settings.gpu_memory_utilization
    return CPU_MEMORY_SHARE if target.engine.kind == "cpu" and share == Settings.gpu_memory_utilization else share


def _key_words(keys: Sequence[Key]) -> list[str]:
    return [word for key in keys for word in ("--api-key", key.argument)]


@functools.cache
def template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset_dir("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 systemd units are not HTML; the filters below do the escaping
    )
    environment.filters |= {"literal": literal, "quote": quote, "quote_path": quote_path, "quote_exec": quote_exec}
    return environment.get_template(name)
