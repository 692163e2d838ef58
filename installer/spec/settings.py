"""The table of settings: everything that a user can choose for a service, and how it is written."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from installer.base.errors import UsageError
from installer.base.language import mark, tr
from installer.runtime import vllm_flags
from installer.runtime.vllm_words import SGLANG
from installer.spec import values

SERVICE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,25}")
PODMAN = "podman"  # RUNTIME=, where not a virtual environment
BY_COMMAS = ("gpus", "lora", "group_hosts", "gateway_hosts")  # lists that are written with commas between
# The cache directory that holds everybody's weights, the throwaway servers' units, and the unit that makes GPU nodes.
RESERVED = re.compile(r"vllm-install(-.*)?|vllm-nvidia-nodes")


@dataclass(frozen=True)
class Setting:
    """Everything about one thing that a user can choose: options, help, template, reference and more come from here."""

    default: Any
    parse: Callable[[str], Any]
    help: str
    names: tuple[str, ...]  # in file and environment; the first is the one of today
    metavar: str = ""
    brief: str = ""  # the line of --help, where it is not the one above
    option: str = ""
    flags: tuple[str, ...] = ()  # of vLLM, that are ours to set: what it becomes, and what goes with that
    instead: str = ""  # what to use instead of them, where it is not the option
    adopt: Callable[[Sequence[str]], str] | None = values.last  # from the values of such a flag
    unsaid: str = ""  # what it is for vLLM where nothing is said, if that is not our default
    memory: bool = True  # whether a start with another value says nothing about the memory of this one

    @property
    def is_switch(self) -> bool:
        return "/" in self.option

    @property
    def typed(self) -> str:
        return self.option.partition("/")[0]


def setting(default: Any, parse: Callable[[str], Any], help: str, names: str, metavar: str = "", **more: Any) -> Any:
    """A field of Settings, with everything about it beside its name."""
    about = Setting(default, parse, help, tuple(names.split()), metavar, **more)
    return field(default=default, metadata={"about": about})


def _vllm_args(value: str) -> tuple[str, ...]:
    """Flags for vLLM itself, but none that is ours, or that nobody can have."""
    args = tuple(shlex.split(values.text(value)))
    for flag in vllm_flags.parse(args)[1]:
        if owned := vllm_flags.meant(flag, owned_flags()):
            raise ValueError(
                tr(
                    "{name} is set by vllm-install itself (use {instead})",
                    name=flag.words[0].partition("=")[0].replace("_", "-"),
                    instead=tr(owned_flags()[owned]),
                )
            )
    if refused := vllm_flags.refused(args):
        raise ValueError(tr("{flag} cannot be used: {why}", flag=refused[0], why=tr(refused[1])))
    if args and not args[0].startswith("-"):
        raise ValueError(tr("expected a vLLM flag, found {word!r}", word=args[0]))
    return args


def _sglang_args(value: str) -> tuple[str, ...]:
    """The same for SGLang: its flags for what are settings here, and those that would go round guard or watcher."""
    args = tuple(shlex.split(values.text(value)))
    for flag in vllm_flags.parse(args, SGLANG)[1]:
        if owned := vllm_flags.meant(flag, OWNED_OF_SGLANG, SGLANG):
            raise ValueError(
                tr(
                    "{name} is set by vllm-install itself (use {instead})",
                    name=owned,
                    instead=tr(OWNED_OF_SGLANG[owned]),
                )
            )
    if refused := vllm_flags.refused(args, SGLANG):
        raise ValueError(tr("{flag} cannot be used: {why}", flag=refused[0], why=tr(refused[1])))
    return args


# Flags of SGLang that are ours to set, and what to use instead.
OWNED_OF_SGLANG = {
    "--model-path": "--model", "--host": "--host", "--port": "--port", "--served-model-name": "--served-model-name",
    "--context-length": "--context", "--mem-fraction-static": "--gpu-memory-utilization",
    "--tp-size": "--tensor-parallel-size", "--allowed-media-domains": "--allowed-media-domains",
    "--tool-call-parser": "--tool-call-parser", "--reasoning-parser": "--reasoning-parser",
    "--trust-remote-code": "--trust-remote-code",
    "--skip-server-warmup": mark("none: it always has it"), "--enable-metrics": mark("none: it always has it"),
    "--revision": "--revision",
}  # fmt: skip


# fmt: off
@dataclass(frozen=True)
class Settings:
    """Everything a user can choose for one service."""

    service: str = "qwen3vl"
    model: str = setting(
        "Qwen/Qwen3-VL-8B-Instruct", values.model, "Hub id, directory, auto, or builtin:tiny.", "MODEL_NAME MODEL_PATH",
        "NAME", flags=("--model",), adopt=None)
    revision: str | None = setting(
        None, values.optional, "Branch, tag or commit of the model on the hub.", "MODEL_REVISION", "REV",
        flags=("--revision",))
    models_dir: str | None = setting(
        None, values.path, "Directory that a relative MODEL_PATH is looked up in.", "MODELS_DIR", "DIR",
        brief="Directory in which a relative --model is looked up first.")
    served_model_name: tuple[str, ...] = setting(
        (), values.names, "Model ids that clients use, with spaces between (default: the model's own).",
        "SERVED_MODEL_NAME", "NAMES", brief="Model ids that clients use [default: the model's own]",
        flags=("--served-model-name",), adopt=None)
    lora: tuple[str, ...] = setting(
        (), values.adapters, "LoRA adapters: NAME=DIRECTORY or NAME=HUB-ID, with commas between.", "LORA", "LIST",
        brief="LoRA adapters, NAME=DIRECTORY or NAME=HUB-ID",
        flags=("--lora-modules", "--enable-lora", "--max-lora-rank"), adopt=None)
    max_model_len: int | None = setting(
        1024, values.context, "Context length: 1024, 32k, 256K or auto.", "MAX_MODEL_LEN", "TOKENS", option="--context",
        flags=("--max-model-len",), adopt=values.tokens, unsaid="auto", memory=False)
    gpu_memory_utilization: float = setting(
        0.95, values.fraction, "Share of the GPU's memory for this service.", "GPU_MEMORY_UTILIZATION GPU_MEMORY_UTIL",
        "SHARE", brief="Share of the GPU's memory", flags=("--gpu-memory-utilization",), unsaid="0.92", memory=False)
    tensor_parallel_size: int = setting(
        1, values.whole(1, 64), "Number of GPUs that share the model.", "TENSOR_PARALLEL_SIZE TP_SIZE", "N",
        flags=("--tensor-parallel-size",))
    replicas: int = setting(
        1, values.whole(1, 64), "Engines that serve the same model, each with GPUs of its own.", "REPLICAS", "N",
        memory=False)
    gpus: tuple[str, ...] = setting(
        values.AUTO, values.gpus, "Which GPUs: auto, or their uuids, indices or PCI addresses.", "GPUS", "LIST",
        brief="GPUs by uuid, index or PCI address [default: auto, the free ones]", memory=False)
    host: str = setting(
        "0.0.0.0", values.address, "Address to listen on.", "LISTEN_HOST", "ADDRESS",  # noqa: S104 the key guards it
        flags=("--host",), memory=False)
    port: int = setting(
        8000, values.port, "Port to listen on, or auto for the next free one.", "PORT", "PORT",
        brief="Port to listen on, or auto for a free one", flags=("--port",), memory=False)
    drain: int = setting(
        30, values.whole(0, 3600), "Seconds that running requests get to finish at a stop.", "DRAIN_SECONDS", "SECONDS",
        brief="Time that running requests get to finish at a stop", flags=("--shutdown-timeout",), memory=False)
    hold: int = setting(
        120, values.whole(0, 3600), "Seconds that callers wait while the engine starts anew; 0 refuses them at once.",
        "HOLD", "SECONDS", brief="Time that callers wait for a restart; 0 refuses them", memory=False)
    tls: str = setting(
        "none", values.one_of("none", "self"), "TLS without a certificate of your own: self makes one, or none.", "TLS",
        "WHICH", brief="TLS by a certificate made here: self, or none", memory=False)
    tls_cert: str | None = setting(
        None, values.path, "File with the certificate for TLS and those above it (PEM).", "TLS_CERT", "FILE",
        memory=False)
    tls_key: str | None = setting(
        None, values.path, "File with the certificate's private key, for root alone.", "TLS_KEY", "FILE", memory=False)
    routing: str = setting(
        "leastconn", values.one_of("leastconn", "session"),
        "Which replica is asked: leastconn, the least busy one, or session, that of the conversation.", "ROUTING",
        "HOW", brief="Which replica is asked: leastconn or session", memory=False)
    fallback_url: str | None = setting(
        None, values.endpoint, "API that answers while no replica is up; prompts leave this host then.",
        "FALLBACK_URL", "URL", brief="API to ask while no replica is up", memory=False)
    fallback_key_file: str | None = setting(
        None, values.path, "File with the key for FALLBACK_URL, for root alone.", "FALLBACK_KEY_FILE", "FILE",
        memory=False)
    fallback_model: str | None = setting(
        None, values.name, "Model to ask FALLBACK_URL for (default: the one that was asked for).", "FALLBACK_MODEL",
        "NAME", brief="Model to ask there [default: as asked]", memory=False)
    max_queued: int = setting(
        0, values.whole(0, 1_000_000), "Requests that may wait for their first token; more get 503. 0: any number.",
        "MAX_QUEUED", "N", brief="Requests that may wait for their first token; 0: any number", memory=False)
    ttft: str = setting(
        "", values.latency, "Refuse who would wait longer than this for a first token: 2s, 500ms (default: nobody).",
        "TTFT", "TIME", brief="Refuse who would wait longer for a first token, as 2s [default: nobody]", memory=False)
    target_ttft: str = setting(
        "", values.latency, "Alert where one in twenty waits longer than this for a first token: 2s (default: never).",
        "TARGET_TTFT", "TIME", brief="Alert where one in twenty waits longer for a first token", memory=False)
    target_itl: str = setting(
        "", values.latency, "Alert where one token in twenty takes longer than this: 50ms (default: never).",
        "TARGET_ITL", "TIME", brief="Alert where one token in twenty takes longer, as 50ms", memory=False)
    scheduling: str = setting(
        "fcfs", values.one_of("fcfs", "priority"), "Whose turn it is: fcfs, or priority, by `keys limit --priority`.",
        "SCHEDULING", "POLICY", brief="Whose turn it is: fcfs, or priority of keys", flags=("--scheduling-policy",),
        memory=False)
    group_hosts: tuple[str, ...] = setting(
        (), values.hosts, "Addresses of the hosts that serve one model together, the head's first (default: this one).",
        "GROUP_HOSTS", "LIST", brief="Hosts that serve one model together, the head first [default: this one]")
    group_port: int = setting(
        29500, values.whole(1024, 65534),
        "Port by which the hosts of a group reach one another; the engines of one model meet at the next one.",
        "GROUP_PORT", "PORT", brief="Port by which hosts of a group reach one another", memory=False)
    group_key_file: str | None = setting(
        None, values.path, "File with the key that a group's hosts have in common, for root alone.", "GROUP_KEY_FILE",
        "FILE", brief="File with the key of a group, for root alone", memory=False)
    gateway_hosts: tuple[str, ...] = setting(
        (), values.peers, "Addresses of hosts that answer for one another, each its own service; with --hosts: auto.",
        "GATEWAY_HOSTS", "LIST", brief="Hosts that answer for one another; with --hosts: auto", memory=False)
    allowed_media_domains: tuple[str, ...] = setting(
        (), values.domains, "Domains that images and videos may be fetched from (default: none).",
        "ALLOWED_MEDIA_DOMAINS", "NAMES", brief="Domains that images may come from [default: none]",
        flags=("--allowed-media-domains",), adopt=values.named_domains)
    tool_call_parser: str = setting(
        "auto", values.parser, "How tool calls are read: auto, none, or a parser's name.", "TOOL_CALL_PARSER", "NAME",
        brief="Reads tool calls: auto, none or a name", flags=("--tool-call-parser", "--enable-auto-tool-choice"),
        unsaid="none")
    reasoning_parser: str = setting(
        "auto", values.parser, "How reasoning is told apart: auto, none, or a parser's name.", "REASONING_PARSER",
        "NAME", brief="Reads reasoning: auto, none or a name", flags=("--reasoning-parser",), unsaid="none")
    engine_family: str = setting(
        "vllm", values.one_of("vllm", "sglang"), "Which engine serves: vllm, or sglang.", "ENGINE_FAMILY", "NAME")
    runtime: str = setting(
        "venv", values.one_of("venv", PODMAN),
        "What the engine runs in: venv, Python packages of its own, or podman, a container.", "RUNTIME", "FORM",
        brief="What the engine runs in: venv or podman")
    image: str | None = setting(
        None, values.image, "Image for RUNTIME=podman: one that is here, or a file made by podman save.", "IMAGE",
        "REF", brief="Image of the container, or file made by podman save")
    engine: str = setting(
        "auto", values.one_of("auto", "cuda", "cpu", "rocm"), "Which build of vLLM: auto, cuda, cpu or rocm.", "ENGINE",
        "KIND", brief="Build of vLLM: auto, cuda, cpu or rocm")
    cuda_toolkit: str = setting(
        "auto", values.one_of("auto", "none", "wheels", "host"),
        "CUDA compiler for more of FlashInfer and DeepGEMM: auto, none, wheels or host.", "CUDA_TOOLKIT", "WHICH",
        brief="CUDA compiler: auto, none, wheels or host")
    vllm_version: str = setting("0.32.0", values.version, "Version of vLLM.", "VLLM_VERSION", "VERSION")
    sglang_version: str = setting(
        "0.5.23", values.sglang_version, "Version of SGLang, where that serves.", "SGLANG_VERSION", "VERSION")
    python: str | None = setting(
        None, values.path, "Interpreter for the engine (default: found on the host).", "ENGINE_PYTHON", "PATH")
    index_url: str | None = setting(None, values.url, "Package index instead of PyPI.", "INDEX_URL", "URL")
    find_links: str | None = setting(
        None, values.place, "Directory or page with further wheels.", "FIND_LINKS", "PLACE")
    offline: bool = setting(
        False, values.flag, "Use what is on this host already; no network.", "OFFLINE", option="--offline/--online",
        brief="Use only what is here already.")
    hf_endpoint: str | None = setting(None, values.url, "Mirror of the model hub.", "HF_ENDPOINT", "URL")
    download_connections: int = setting(
        16, values.whole(1, 32), "Connections to the model hub at once, at most.", "DOWNLOAD_CONNECTIONS", "N",
        brief="Connections to the model hub, at most")
    allow_pickle: tuple[str, ...] = setting(
        (), values.models, "Models whose weights may be pickles, which run code when loaded.", "ALLOW_PICKLE", "NAMES")
    trust_remote_code: tuple[str, ...] = setting(
        (), values.models, "Models whose own Python code may run in the service.", "TRUST_REMOTE_CODE", "NAMES",
        flags=("--trust-remote-code",), instead=mark("--trust-remote-code NAME before the --"), adopt=None)
    hf_token_file: str | None = setting(
        None, values.path, "File that holds the hub's token.", "HF_TOKEN_PATH", "FILE",
        brief="File that holds the token for gated models.", flags=("--hf-token",), adopt=None,
        instead=mark("HF_TOKEN in the environment: a unit is readable by everybody"))
    model_sources: tuple[str, ...] = setting(
        ("hub",), values.sources, "Where models come from, in order: hub, modelscope, URLs of mirrors.",
        "MODEL_SOURCES", "LIST", brief="Sources in order: hub, modelscope, mirrors' URLs")
    notify_command: tuple[str, ...] = setting(
        (), values.command, "Command that is told of failures and changes: a program's full path, and its words.",
        "NOTIFY_COMMAND", "COMMAND", brief="Command that is told of failures and changes", memory=False)
    notify_url: str | None = setting(
        None, values.webhook, "URL that is told of failures and changes, or a file of root's that holds it.",
        "NOTIFY_URL", "URL", brief="URL, or file with it, that is told of failures and changes", memory=False)
    notify_form: str = setting(
        "json", values.one_of("json", "slack"), "What NOTIFY_URL is sent: json, or slack, text as Slack takes it.",
        "NOTIFY_FORM", "FORM", brief="What that URL is sent: json or slack", memory=False)
    sglang_args: tuple[str, ...] = setting(
        (), _sglang_args, "Any other flags for SGLang.", "SGLANG_ARGS", "FLAGS")
    vllm_args: tuple[str, ...] = setting((), _vllm_args, "Any other flags for vLLM.", "VLLM_ARGS", option="--")
# fmt: on

    @property
    def model_id(self) -> str:
        """The name under which clients ask for the model."""
        if self.served_model_name:
            return self.served_model_name[0]
        return self.model.rstrip("/").rpartition("/")[2] if self.model.startswith("/") else self.model

    def of_adapter(self, given: str) -> Settings:
        """As if one of LORA were the model: it comes from the same places by the same rules."""
        name, _, source = given.partition("=")
        place, _, revision = (source, "", "") if source.startswith("/") else source.partition("@")
        return replace(self, model=place, revision=revision or None, served_model_name=(name,))

    @property
    def wants_cuda_12(self) -> bool:
        """An index or folder of builds for older drivers says so in its name."""
        return "cu12" in f"{self.index_url} {self.find_links}"

    @property
    def vllm_words(self) -> tuple[str, ...]:
        """VLLM_ARGS, and what a group means by default: a part of the model's layers on each of its hosts."""
        if not self.group_hosts or "--pipeline-parallel-size" in vllm_flags.given(self.vllm_args):
            return self.vllm_args
        return (*self.vllm_args, "--pipeline-parallel-size", str(len(self.group_hosts)))

    @property
    def is_local(self) -> bool:
        """Whether it listens on this host only."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def has_tls(self) -> bool:
        return self.tls != "none" or self.tls_cert is not None

    @property
    def notifies(self) -> bool:
        """Whether anybody wants to be told what becomes of the service."""
        return bool(self.notify_command or self.notify_url)


def _table() -> Iterator[tuple[str, Setting]]:
    for each in fields(Settings):
        if about := each.metadata.get("about"):
            yield each.name, replace(about, option=about.option or "--" + each.name.replace("_", "-"))


FIELDS = dict(_table())
NAMES = {name: attribute for attribute, about in FIELDS.items() for name in about.names}
# vLLM flags that are no setting, and no user's to give either.
OUTSIDE = {
    "--api-key": "set-apikey",
    "--middleware": mark("none: the guard is the middleware"),
    "--uds": mark("--host and --port"),
}


@functools.cache
def owned_flags() -> dict[str, str]:
    """The flags of vLLM that are ours, and what to use instead: given twice, the two would contradict each other."""
    owned = {flag: about.instead or about.typed for about in FIELDS.values() for flag in about.flags} | OUTSIDE
    switches = set(owned) & set(vllm_flags.load_table().switches)
    return owned | {vllm_flags.opposite(flag): owned[flag] for flag in switches}


def brief_help(attribute: str) -> str:
    """The line of --help for a setting's option, which says what it is unless given."""
    about, default = FIELDS[attribute], to_text(attribute, FIELDS[attribute].default)
    line = re.sub(r" \((default: .*)\)\.$", r" [\1]", about.brief or about.help)
    return line if not default or about.is_switch or "[default" in line else f"{line.rstrip('.')} [default: {default}]"


def named(attribute: str) -> str:
    """The first name of a setting in the settings file."""
    return FIELDS[attribute].names[0]


def check_service(name: str) -> str:
    if RESERVED.fullmatch(name):
        raise UsageError(
            tr("{name!r} cannot be a service name: it is one of our own", name=name),
            tr("choose another name, for example qwen3vl"),
        )
    if not SERVICE_NAME.fullmatch(name):
        raise UsageError(
            tr("{name!r} cannot be a service name", name=name),
            tr("use a lower-case letter followed by up to 25 letters, digits, - or _, for example qwen3vl"),
        )
    return name


def to_text(attribute: str, value: object) -> str:
    """A field's value as it is written into the settings file; parsing it gives the value back."""
    if value is None:
        return "auto" if attribute == "max_model_len" else ""
    if attribute == "port" and not value:
        return "auto"
    if attribute in BY_COMMAS and isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return shlex.join(value)
    return str(value)


def _by_commas(text: str) -> list[str]:
    return text.split(",") if text else []


def of_text(attribute: str, text: str) -> Any:
    """The value that `to_text` wrote, not judged: what could be chosen once need not be a choice of today."""
    default = getattr(Settings, attribute)
    if text == "auto" and isinstance(default, int):
        return None if attribute == "max_model_len" else 0
    if isinstance(default, bool):
        return text == "yes"
    if isinstance(default, tuple):
        divided = dict.fromkeys(BY_COMMAS, _by_commas) | {"served_model_name": values.words}
        return tuple(divided.get(attribute, shlex.split)(text))
    return type(default)(text) if isinstance(default, int | float) else text or default
