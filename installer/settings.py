"""What the user asks for: defaults < /etc/vllm-install/NAME.env < environment < flags, validated, frozen."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from installer.errors import UsageError
from installer.layout import Layout

SERVICE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,25}")
RESERVED = ("vllm-install",)  # its cache directory would be the one that holds everybody's weights
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
BUILTIN = "builtin:tiny"
MINIMUM_VLLM = (0, 25, 1)

# vLLM flags that a setting of ours owns; given twice, the two would contradict each other.
OWNED_FLAGS = {
    "--model": "--model",
    "--revision": "--revision",
    "--host": "--host",
    "--port": "--port",
    "--max-model-len": "--context",
    "--gpu-memory-utilization": "--gpu-memory-utilization",
    "--tensor-parallel-size": "--tensor-parallel-size",
    "-tp": "--tensor-parallel-size",
    "--shutdown-timeout": "--drain",
    "--api-key": "set-apikey",
    "--middleware": "none: the guard is the middleware",
    "--uds": "--host and --port",
    "--served-model-name": "--served-model-name",
    "--allowed-media-domains": "--allowed-media-domains",
    "--hf-token": "HF_TOKEN in the environment: a unit is readable by everybody",
}


def _text(value: str) -> str:
    if not value.isprintable():
        raise ValueError("line breaks, control characters and the like are not allowed")
    return value.strip()


def _optional(value: str) -> str | None:
    return _text(value) or None


def _model(value: str) -> str:
    value = _text(value)
    if value.startswith(("/", "./", "../")):
        return os.path.abspath(value)  # noqa: PTH100 resolve() would follow links; the file must keep a full path
    if value == BUILTIN:
        return value
    if value.startswith("builtin:"):
        raise ValueError(f"the only built-in model is {BUILTIN}")
    if all(HUB_ID.fullmatch(part) for part in value.split("/")) and ".." not in value:
        return value
    raise ValueError("expected a hub id such as Qwen/Qwen3-VL-8B-Instruct, a directory, or builtin:tiny")


def _context(value: str) -> int | None:
    """1024, 32k, 256K or auto; None stands for auto."""
    value = _text(value)
    if value.lower() == "auto":
        return None
    match = re.fullmatch(r"(\d{1,9})([kK]?)", value)
    if not match:
        raise ValueError("expected a number of tokens such as 1024, 32k or 256K, or auto")
    tokens = int(match[1]) * (1024 if match[2] else 1)
    if not 16 <= tokens <= 16 * 1024 * 1024:
        raise ValueError("a context is between 16 and 16777216 tokens")
    return tokens


def _fraction(value: str) -> float:
    number = float(_text(value))
    if not 0.05 <= number <= 1.0:
        raise ValueError("expected a fraction of the GPU's memory between 0.05 and 1.0")
    return number


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"\d{1,9}", _text(value)) or not low <= int(value) <= high:
            raise ValueError(f"expected a whole number between {low} and {high}")
        return int(value)

    return parse


def _address(value: str) -> str:
    value = _text(value)
    if value != "localhost":
        ipaddress.ip_address(value)
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if _text(value) not in choices:
            raise ValueError("expected " + ", ".join(choices[:-1]) + f" or {choices[-1]}")
        return _text(value)

    return parse


def _version(value: str) -> str:
    value = _text(value)
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(\.?(post|rc)\d+)?", value)
    if not match:
        raise ValueError("expected a vLLM version such as 0.32.0")
    if tuple(int(n) for n in match.groups()[:3]) < MINIMUM_VLLM:
        raise ValueError("the oldest vLLM that the guard and launcher work with is 0.25.1")
    return value


def _url(value: str) -> str | None:
    value = _text(value).rstrip("/")
    if value and not re.fullmatch(r"(https?|file)://[^\s\"'\\]+", value):
        raise ValueError("expected a URL such as https://mirror.example/simple")
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "credentials do not belong into a settings file; put them into ~/.netrc or pip's configuration"
        )
    return value or None


def _place(value: str) -> str | None:
    return _url(value) if "://" in value else _optional(value)


def _name(value: str) -> str | None:
    """A word of its own on vLLM's command line, which would take it for a flag if it looked like one."""
    value = _text(value)
    if value.startswith("-"):
        raise ValueError("a name cannot start with -")
    return value or None


def _path(value: str) -> str | None:
    value = _text(value)
    if value and not value.startswith("/"):
        raise ValueError("expected an absolute path")
    return value or None


def _flag(value: str) -> bool:
    lowered = _text(value).lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expected yes or no")


def _domains(value: str) -> tuple[str, ...]:
    domains = tuple(shlex.split(_text(value)))
    for domain in domains:
        if not re.fullmatch(r"\w[\w.-]*", domain):
            raise ValueError(f"{domain!r} is not a domain; expected names such as images.example, with spaces between")
    return domains


def _vllm_args(value: str) -> tuple[str, ...]:
    return check_vllm_args(tuple(shlex.split(_text(value))))


def check_vllm_args(args: tuple[str, ...]) -> tuple[str, ...]:
    for arg in args:
        _text(arg)
        name = arg.partition("=")[0].replace("_", "-")
        # vLLM takes abbreviations too: --api-k is --api-key, -t is -tp.
        meant = [flag for flag in OWNED_FLAGS if flag.startswith(name)] if name.strip("-") and name[0] == "-" else []
        if meant:
            raise ValueError(f"{name} is set by vllm-install itself (use {OWNED_FLAGS[meant[0]]})")
    if args and not args[0].startswith("-"):
        raise ValueError(f"expected a vLLM flag, found {args[0]!r}")
    return args


def setting(default: Any, parse: Callable[[str], Any], help: str, *names: str) -> Any:
    """A field of Settings: its default, its parser, a line of help, and its names in file and environment."""
    return field(default=default, metadata={"names": names, "parse": parse, "help": help})


@dataclass(frozen=True)
class Settings:
    """Everything a user can choose for one service."""

    service: str = "qwen3vl"
    model: str = setting(
        "Qwen/Qwen3-VL-8B-Instruct", _model, "Hub id, directory, or builtin:tiny.", "MODEL_NAME", "MODEL_PATH"
    )
    revision: str | None = setting(None, _optional, "Branch, tag or commit of the model on the hub.", "MODEL_REVISION")
    models_dir: str | None = setting(None, _path, "Directory that a relative MODEL_PATH is looked up in.", "MODELS_DIR")
    served_model_name: str | None = setting(
        None, _name, "Model id that clients use (default: the model's own).", "SERVED_MODEL_NAME"
    )
    max_model_len: int | None = setting(1024, _context, "Context length: 1024, 32k, 256K or auto.", "MAX_MODEL_LEN")
    gpu_memory_utilization: float = setting(
        0.95,
        _fraction,
        "Share of the GPU's memory for this service.",
        "GPU_MEMORY_UTILIZATION",
        "GPU_MEMORY_UTIL",
    )
    tensor_parallel_size: int = setting(
        1, _whole(1, 64), "Number of GPUs that share the model.", "TENSOR_PARALLEL_SIZE", "TP_SIZE"
    )
    host: str = setting("0.0.0.0", _address, "Address to listen on.", "LISTEN_HOST")  # noqa: S104 the key guards it
    port: int = setting(8000, _whole(1, 65535), "Port to listen on.", "PORT")
    drain: int = setting(30, _whole(0, 3600), "Seconds that running requests get to finish at a stop.", "DRAIN_SECONDS")
    allowed_media_domains: tuple[str, ...] = setting(
        (),
        _domains,
        "Domains that images and videos may be fetched from (default: none).",
        "ALLOWED_MEDIA_DOMAINS",
    )
    engine: str = setting(
        "auto",
        _one_of("auto", "cuda", "cpu", "rocm"),
        "Which build of vLLM: auto, cuda, cpu or rocm.",
        "ENGINE",
    )
    vllm_version: str = setting("0.32.0", _version, "Version of vLLM.", "VLLM_VERSION")
    python: str | None = setting(
        None, _path, "Interpreter for the engine (default: found on the host).", "ENGINE_PYTHON"
    )
    index_url: str | None = setting(None, _url, "Package index instead of PyPI.", "INDEX_URL")
    find_links: str | None = setting(None, _place, "Directory or page with further wheels.", "FIND_LINKS")
    offline: bool = setting(False, _flag, "Use what is on this host already; no network.", "OFFLINE")
    hf_endpoint: str | None = setting(None, _url, "Mirror of the model hub.", "HF_ENDPOINT")
    vllm_args: tuple[str, ...] = setting((), _vllm_args, "Any other flags for vLLM.", "VLLM_ARGS")

    @property
    def model_id(self) -> str:
        """The name under which clients ask for the model."""
        if self.served_model_name:
            return self.served_model_name
        return self.model.rstrip("/").rpartition("/")[2] if self.model.startswith("/") else self.model


FIELDS = {f.name: f for f in fields(Settings) if f.metadata}
NAMES = {name: f.name for f in FIELDS.values() for name in f.metadata["names"]}


def load(
    service: str,
    file: Mapping[str, str | None],
    environment: Mapping[str, str],
    flags: Mapping[str, str],
) -> Settings:
    """Merge the three sources over the defaults; `flags` is keyed by field name, the others by setting name."""
    settings = Settings(service=check_service(service))
    settings_file = str(Layout(service).settings_file)
    settings = _apply(settings, _by_field(file, settings_file), settings_file)
    set_variables = {name: value for name, value in environment.items() if value}
    settings = _apply(settings, _by_field(set_variables, "the environment"), "the environment")
    return _apply(settings, {name: (_option(name), value) for name, value in flags.items()}, "")


def _option(attribute: str) -> str:
    """What the user typed for a setting."""
    return {"max_model_len": "--context", "vllm_args": "--"}.get(attribute, "--" + attribute.replace("_", "-"))


def field_named(name: str) -> str:
    """The setting that a user means by PORT, port or --port."""
    plain = name.lstrip("-").replace("-", "_")
    attribute = NAMES.get(plain.upper(), plain.lower())
    attribute = "max_model_len" if attribute == "context" else attribute
    if attribute not in FIELDS:
        near = difflib.get_close_matches(plain.upper(), NAMES, n=1)
        raise UsageError(
            f"{name!r} is not a setting" + (f"; did you mean {near[0]}?" if near else ""),
            f"settings: {', '.join(NAMES)}",
        )
    return attribute


def check_service(name: str) -> str:
    if not SERVICE_NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"{name!r} cannot be a service name",
            "use a lower-case letter followed by up to 25 letters, digits, - or _, for example qwen3vl",
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
            first = found[attribute][0]
            raise UsageError(
                f"{first}={found[attribute][1]!r} and {name}={value!r} in {where} contradict each other",
                "both mean the same setting; remove one of them",
            )
        found.setdefault(attribute, (name, value))
    return found


def _apply(settings: Settings, values: Mapping[str, tuple[str, str]], where: str) -> Settings:
    changed = {}
    for attribute, (name, value) in values.items():
        try:
            changed[attribute] = FIELDS[attribute].metadata["parse"](value)
        except ValueError as error:
            place = f" in {where}" if where else ""
            raise UsageError(f"{name}={value!r}{place}: {error}") from None
    return replace(settings, **changed)


def to_text(attribute: str, value: object) -> str:
    """A field's value as it is written into the settings file; parsing it gives the value back."""
    if value is None:
        return "auto" if attribute == "max_model_len" else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return shlex.join(value)
    return str(value)
