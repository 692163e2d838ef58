"""What the user asks for: defaults < /etc/vllm-install/NAME.env < environment < flags, validated, frozen."""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from installer.base.errors import UsageError
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.runtime import vllm_flags
from installer.spec import values

SERVICE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,25}")
SET_CONTEXT = "set-context"  # the verb whose word is a setting's value
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


# fmt: off
@dataclass(frozen=True)
class Settings:
    """Everything a user can choose for one service."""

    service: str = "qwen3vl"
    model: str = setting(
        "Qwen/Qwen3-VL-8B-Instruct", values.model, "Hub id, directory, or builtin:tiny.", "MODEL_NAME MODEL_PATH",
        "NAME", flags=("--model",), adopt=None)
    revision: str | None = setting(
        None, values.optional, "Branch, tag or commit of the model on the hub.", "MODEL_REVISION", "REV",
        flags=("--revision",))
    models_dir: str | None = setting(
        None, values.path, "Directory that a relative MODEL_PATH is looked up in.", "MODELS_DIR", "DIR",
        brief="Directory in which a relative --model is looked up first.")
    served_model_name: str | None = setting(
        None, values.name, "Model id that clients use (default: the model's own).", "SERVED_MODEL_NAME", "NAME",
        flags=("--served-model-name",), adopt=None)
    max_model_len: int | None = setting(
        1024, values.context, "Context length: 1024, 32k, 256K or auto.", "MAX_MODEL_LEN", "TOKENS", option="--context",
        flags=("--max-model-len",), adopt=values.tokens, unsaid="auto", memory=False)
    gpu_memory_utilization: float = setting(
        0.95, values.fraction, "Share of the GPU's memory for this service.", "GPU_MEMORY_UTILIZATION GPU_MEMORY_UTIL",
        "SHARE", brief="Share of the GPU's memory", flags=("--gpu-memory-utilization",), unsaid="0.92", memory=False)
    tensor_parallel_size: int = setting(
        1, values.whole(1, 64), "Number of GPUs that share the model.", "TENSOR_PARALLEL_SIZE TP_SIZE", "N",
        flags=("--tensor-parallel-size",))
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
    engine: str = setting(
        "auto", values.one_of("auto", "cuda", "cpu", "rocm"), "Which build of vLLM: auto, cuda, cpu or rocm.", "ENGINE",
        "KIND", brief="Build of vLLM: auto, cuda, cpu or rocm")
    cuda_toolkit: str = setting(
        "auto", values.one_of("auto", "none", "wheels", "host"),
        "CUDA compiler for more of FlashInfer and DeepGEMM: auto, none, wheels or host.", "CUDA_TOOLKIT", "WHICH",
        brief="CUDA compiler: auto, none, wheels or host")
    vllm_version: str = setting("0.32.0", values.version, "Version of vLLM.", "VLLM_VERSION", "VERSION")
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
    vllm_args: tuple[str, ...] = setting((), _vllm_args, "Any other flags for vLLM.", "VLLM_ARGS", option="--")
# fmt: on

    @property
    def model_id(self) -> str:
        """The name under which clients ask for the model."""
        if self.served_model_name:
            return self.served_model_name
        return self.model.rstrip("/").rpartition("/")[2] if self.model.startswith("/") else self.model


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


def load_settings(
    service: str,
    file: Mapping[str, str | None],
    environment: Mapping[str, str],
    flags: Mapping[str, str],
) -> Settings:
    """Merge the three sources over the defaults; `flags` is keyed by field name, the others by setting name."""
    settings = Settings(service=check_service(service))
    settings_file = str(Layout(service).settings_file)
    settings = _apply(settings, _by_field(file, settings_file), settings_file)
    variables = tr("the environment")
    set_variables = {name: value for name, value in environment.items() if value}
    settings = _apply(settings, _by_field(set_variables, variables), variables)
    return _apply(settings, {name: (FIELDS[name].typed, value) for name, value in flags.items()}, "")


def field_named(name: str) -> str:
    """The setting that a user means by PORT, port or --port."""
    plain = name.lstrip("-").replace("-", "_")
    by_option = {about.typed[2:].replace("-", "_"): each for each, about in FIELDS.items() if about.metavar}
    attribute = NAMES.get(plain.upper()) or by_option.get(plain.lower(), plain.lower())
    if attribute not in FIELDS:
        near = difflib.get_close_matches(plain.upper(), NAMES, n=1)
        raise UsageError(
            tr("{name!r} is not a setting", name=name) + (tr("; did you mean {near}?", near=near[0]) if near else ""),
            tr("settings: {names}", names=", ".join(NAMES)),
        )
    return attribute


def assigned(assignments: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE words by field name."""
    flags = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(
                tr("{assignment!r} is not NAME=VALUE", assignment=assignment), tr("for example: PORT=8001")
            )
        attribute = field_named(name)
        check_typed(attribute, name, value)
        flags[attribute] = value
    return flags


def check_typed(attribute: str, typed: str, value: str) -> None:
    """An error names the setting as it was typed, whatever it is called elsewhere."""
    _apply(Settings(), {attribute: (typed, value)}, "")


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


def _by_field(source: Mapping[str, str | None], where: str) -> dict[str, tuple[str, str]]:
    """field -> (name used, value); two names for one field must agree."""
    found: dict[str, tuple[str, str]] = {}
    for name, attribute in NAMES.items():
        value = source.get(name)
        if value is None:
            continue
        if attribute in found and found[attribute][1] != value:
            first, other = found[attribute]
            raise UsageError(
                tr(
                    "{first}={found!r} and {name}={value!r} in {where} contradict each other",
                    first=first, found=other, name=name, value=value, where=where,
                ),
                tr("both mean the same setting; remove one of them"),
            )  # fmt: skip
        found.setdefault(attribute, (name, value))
    return found


def _apply(settings: Settings, given: Mapping[str, tuple[str, str]], where: str) -> Settings:
    changed = {}
    for attribute, (name, value) in given.items():
        try:
            changed[attribute] = FIELDS[attribute].parse(value)
        except ValueError as error:
            said = f"{name} {value!r}" if name in ("--", SET_CONTEXT) else f"{name}={value!r}"
            place = tr("{assignment} in {where}", assignment=said, where=where) if where else said
            raise UsageError(tr("{what}: {why}", what=place, why=error), _example(attribute, name)) from None
    return replace(settings, **changed)


def _example(attribute: str, typed: str) -> str:
    """What a setting looks like, where its default is an example of that."""
    if typed == SET_CONTEXT:
        return tr("for example: {example}", example=f"{SET_CONTEXT} 32k")
    default = to_text(attribute, getattr(Settings, attribute))
    if not default:
        return tr("see: vllm-install deploy --help")
    example = f"{named(attribute)}={default}"
    if attribute != "offline":
        example = tr("{first} or {second}", first=example, second=f"{FIELDS[attribute].typed} {default}")
    return tr("for example: {example}", example=example)


def to_text(attribute: str, value: object) -> str:
    """A field's value as it is written into the settings file; parsing it gives the value back."""
    if value is None:
        return "auto" if attribute == "max_model_len" else ""
    if attribute == "port" and not value:
        return "auto"
    if attribute == "gpus" and isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return shlex.join(value)
    return str(value)


def of_text(attribute: str, text: str) -> Any:
    """The value that `to_text` wrote, not judged: what could be chosen once need not be a choice of today."""
    default = getattr(Settings, attribute)
    if text == "auto" and isinstance(default, int):
        return None if attribute == "max_model_len" else 0
    if isinstance(default, bool):
        return text == "yes"
    if isinstance(default, tuple):
        return tuple(text.split(",") if attribute == "gpus" else shlex.split(text))
    return type(default)(text) if isinstance(default, int | float) else text or default
