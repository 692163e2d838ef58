"""From vLLM's own flags and variables to our settings: what is kept, what is dropped and why, what clients notice."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from installer.adoption import old_compose, served
from installer.adoption.container import ENVIRONMENT, PATHS
from installer.adoption.old import Old, read_text
from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.checks.placement import gpus_of_one
from installer.diagnosis.redact import Masked
from installer.families.vllm import serve_flags
from installer.runtime import vllm_flags
from installer.runtime.vllm_flags import NO_TLS, TLS_FLAGS, Flag, opposite
from installer.runtime.vllm_text import one_line
from installer.spec import keys
from installer.spec.asked import load_settings
from installer.spec.settings import FIELDS, Settings, to_text
from installer.spec.vendors import VARIABLES, is_uuid
from installer.units.render import HIDDEN, HOMES

READ = {flag for about in FIELDS.values() if about.adopt for flag in about.flags}
READ |= {"--model", "--served-model-name", "--api-key", "--config", *FIELDS["lora"].flags}
DROPPED = {
    "--trust-remote-code": mark(
        "it lets the model's own code run; allow it for this model with TRUST_REMOTE_CODE=MODEL"
    ),
    "--middleware": mark("the guard that checks the keys is the service's middleware"),
    "--hf-token": mark(
        "every local user can read a unit; put the token into a file and name it with HF_TOKEN_PATH=FILE"
    ),
    "--download-dir": mark("models lie in a cache that all services share, read-only to them"),
    "--disable-log-stats": mark("without statistics a full queue looks like a hang"),
    "--log-config-file": mark("the journal keeps the log"),
    "--uds": mark("the service listens on TCP, where it is watched and guarded: LISTEN_HOST and PORT"),
}
GONE = ("--disable-log-requests", "--swap-space", "--use-v2-block-manager", "--num-scheduler-steps", "--device",
        "--worker-use-ray", "--engine-use-ray", "--disable-frontend-multiprocessing", "--max-seq-len-to-capture",
        "--guided-decoding-backend", "--num-lookahead-slots", "--preemption-mode", "--multi-step-stream-outputs",
        "--enable-reasoning", "--task", "--disable-async-output-proc", "--scheduler-delay-factor")  # fmt: skip
REFUSED = {
    "--grpc": mark("a gRPC server would answer without a key"),
    "--headless": mark("a server without an API cannot be proved"),
    "--nnodes": mark("one service is one host"),
    "--node-rank": mark("one service is one host"),
}
CARRIED = re.compile("|".join(VARIABLES) + r"|CUDA_DEVICE_ORDER|(?:NCCL|GLOO|OMP|PYTORCH|VLLM)_\w+")
# Ours to set, or no business of a hardened service: code from elsewhere, debugging routes, pickles over the wire.
NOT_CARRIED = re.compile(
    r"VLLM_(?:API_KEY|CACHE_ROOT|CONFIG_ROOT|ASSETS_CACHE|HOST_IP|PORT|USE_RUST_FRONTEND|NO_USAGE_STATS|USE_MODELSCOPE"
    r"|ALLOW_RUNTIME_LORA_UPDATING"
    r"|LOGGING_CONFIG_PATH|SERVER_DEV_MODE|ALLOW_INSECURE_SERIALIZATION|PLUGINS|RPC_BASE_PATH|MEDIA_URL_\w+"
    r"|KEEP_ALIVE_ON_ENGINE_DEATH|VERSION|IMAGE\w*|SERVICE\w*)|\w*(?:KEY|TOKEN|SECRET|PASS)\w*"
)
SECRET = re.compile(r"(?:\w*_)?(?:KEY|TOKEN|SECRET|PASS|PASSWORD|CREDENTIALS?)(?:_\w*)?")
FOR_VLLM = re.compile(r"(?:VLLM|HF|HUGGING_FACE|CUDA|HIP|ROCR|NCCL|TORCH|TRITON|PYTORCH|OMP|LD|PYTHON)_?\w*")


@dataclass(frozen=True)
class Adoption:
    """What a hand-written deployment becomes."""

    settings: Settings
    keys: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]  # what is not carried over, and why
    clients: tuple[str, ...]  # what clients will and will not notice
    redact: Masked
    caches: tuple[Path, ...] = ()  # of the hub's, from which weights need not be fetched again


@dataclass
class _Reading:
    """What the flags say, collected in their order."""

    fields: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)


def translate(
    old: Old, service: str, file: Mapping[str, str | None], wishes: Mapping[str, str], host: Host, *, new_key: bool
) -> Adoption:
    """`wishes` are settings by field name that win over what was found."""
    model, flags = _flags(old, host)
    last = {flag.name: flag for flag in flags}
    reading = _Reading(notes=list(old.notes))
    if old.unit and old.unit != f"{service}.service":
        reading.notes.append(
            tr("{path} still holds what it held, a key too; remove it when it is not needed", path=old.files[0])
        )
    typed = model or (last["--model"].value if "--model" in last else "")
    reading.fields |= served.model(old, typed, host)
    _known(old, last, reading)
    _adapters(old, last, reading, host)
    for flag in flags:
        if flag.name not in READ:
            _other(old, flag, reading, host)
    if reading.others:
        reading.fields["vllm_args"] = shlex.join(reading.others)
    _variables(old, reading)
    held = _keys(old, last, reading, new_key=new_key)
    settings = load_settings(service, file, {}, {**reading.fields, **wishes})
    if (named := _named_gpus(old)) and len(named) == gpus_of_one(settings):
        reading.fields["gpus"] = ",".join(named)
    settings = _same_model_id(settings, typed, last, reading, wishes, service, file)
    secrets = {*held, *_given_keys(old, last), *(last["--hf-token"].values if "--hf-token" in last else ())}
    secrets |= {value for name, value in old.environment.items() if SECRET.fullmatch(name) and not value.isdigit()}
    carried = tuple(_carried(old, reading))
    caches = tuple(served.caches(old, last, settings, host))
    for each in caches:
        reading.notes.append(
            tr(
                "{path} stays as it is; what is served of it is taken into a cache of our own, not fetched again",
                path=each,
            )
        )
    return Adoption(settings, held, carried, tuple(reading.notes), tuple(reading.clients), Masked(secrets), caches)


def _flags(old: Old, host: Host) -> tuple[str | None, list[Flag]]:
    """Those of the command line, after those of the file that it names with --config: the last one wins."""
    model, flags = serve_flags.parse(_printable(old.words))
    for flag in [flag for flag in flags if flag.name == "--config"]:
        path = Path(old.on_host(flag.value))
        words: list[str] = []
        for name, value in old_compose.load_compose(read_text(path, host), str(path)).items():
            if isinstance(value, dict):
                raise Refused(
                    tr("{path}: {name} holds a mapping", path=path, name=one_line(name)),
                    tr("write it on the command line, as JSON"),
                )
            values = [str(each) for each in value] if isinstance(value, list) else [str(value)]
            if not values or values[0].lower() == "false":
                continue
            words += [f"--{name}"] if values[0].lower() in ("true", "") else [f"--{name}", *values]
        words = ["--model" if word == "--model_tag" else word for word in _printable(words)]
        model_there, there = serve_flags.parse(words)
        model, flags = model or model_there, [*there, *flags]
    return model, flags


def _printable(words: Sequence[str]) -> Sequence[str]:
    """The words, unless one of them could not stand in a unit, and would steer the terminal that shows it."""
    odd = next((word for word in words if not word.isprintable()), None)
    if odd is not None:
        raise Refused(
            tr("the old command holds a line break or a control character: {word}", word=one_line(odd, 60)),
            tr("take it out of the old command first"),
        )
    return words


def _known(old: Old, last: Mapping[str, Flag], reading: _Reading) -> None:
    """Flags that are settings of ours; what is not said keeps the meaning that it has for vLLM."""
    fields = reading.fields
    for name, about in FIELDS.items():
        flag = last.get(about.flags[0]) if about.flags else None
        if flag and about.adopt:
            fields[name] = about.adopt(flag.values)
        elif about.unsaid:
            fields[name] = about.unsaid
    if "--enable-auto-tool-choice" not in last:
        fields["tool_call_parser"] = FIELDS["tool_call_parser"].unsaid
    if old.listens:
        fields["host"], fields["port"] = old.listens[0], str(old.listens[1])
    if "--allowed-media-domains" not in last:
        reading.notes.append(
            tr(
                "images and videos by URL are refused, so that nobody makes this host fetch any address; "
                "name domains with ALLOWED_MEDIA_DOMAINS"
            )
        )


def _other(old: Old, flag: Flag, reading: _Reading, host: Host) -> None:
    known = vllm_flags.load_table()
    name = flag.base
    if refused := NO_TLS if name.startswith(TLS_FLAGS) else REFUSED.get(name):
        raise Refused(
            tr("{name} cannot be carried over: {reason}", name=name, reason=tr(refused)),
            tr("take it out of the old command first"),
        )
    if name in DROPPED:
        reading.notes.append(tr("{name} is dropped: {reason}", name=name, reason=tr(DROPPED[name])))
    elif opposite(name) in (*DROPPED, *READ):
        return
    elif not known.is_known(name) and name in GONE:
        reading.notes.append(
            tr("{name} is dropped: vLLM {version} has no such flag any more", name=name, version=known.version)
        )
    elif not known.is_known(name) and name != "-O":
        near = serve_flags.near(name)
        raise Refused(
            tr("vLLM {version} has no flag {name}", version=known.version, name=name)
            + (tr("; is {near} meant?", near=near) if near else ""),
            tr("mend or remove it in the old command, then adopt that"),
        )
    else:
        value = flag.value if name in PATHS else ""
        is_path = value.startswith(("/", ".")) or (value and host.exists(Path(old.on_host(value))))
        reading.others += [name, _readable(old, flag, host)] if is_path else flag.words


def _adapters(old: Old, last: Mapping[str, Flag], reading: _Reading, host: Host) -> None:
    named = last["--lora-modules"].values if "--lora-modules" in last else ()
    reading.fields["lora"] = served.adapters(old, named, host)
    at_run_time = old.environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").lower() in ("1", "true")
    if at_run_time or ("--enable-lora" in last and not named):
        reading.notes.append(
            tr("adapters that clients load at run time: none can be; name them with LORA=NAME=DIRECTORY")
        )


def _readable(old: Old, flag: Flag, host: Host) -> str:
    path = old.on_host(flag.value)
    if not host.exists(Path(path)):
        raise Refused(
            tr("{flag} {value} does not lie on this host", flag=flag.name, value=flag.value),
            tr("copy it here, and name it by its full path"),
        )
    if path.startswith((*HOMES, *HIDDEN)):
        raise Refused(
            tr("{flag} {path} is hidden from the service by its sandbox", flag=flag.name, path=path),
            tr("move it, for example to /srv"),
        )
    return path


def _variables(old: Old, reading: _Reading) -> None:
    if endpoint := old.environment.get("HF_ENDPOINT"):
        reading.fields["hf_endpoint"] = endpoint
    if old.environment.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        reading.fields["model_sources"] = "modelscope"


def _named_gpus(old: Old) -> tuple[str, ...]:
    """GPUs that a variable names by their uuids alone are as well a setting, which counts them among all services."""
    values = [old.environment[name] for name in VARIABLES if name in old.environment]
    words = tuple(values[0].split(",")) if len(values) == 1 else ()
    return words if all(map(is_uuid, words)) else ()


def _given_keys(old: Old, last: Mapping[str, Flag]) -> tuple[str, ...]:
    return (
        last["--api-key"].values if "--api-key" in last else tuple(filter(None, [old.environment.get("VLLM_API_KEY")]))
    )


def _keys(old: Old, last: Mapping[str, Flag], reading: _Reading, *, new_key: bool) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(filter(None, _given_keys(old, last))))
    if old.keys and not new_key:
        reading.clients.append(tr("the API keys stay as they are"))
        return ()
    if new_key or not given:
        reading.clients.append(
            tr("a new API key is made and shown once; the old one stops working")
            if given or old.has_secret
            else tr("a new API key is made and shown once; until now everybody was answered without one")
        )
        return ()
    for key in given:
        try:
            keys.check_plain(key)
        except UsageError as error:
            raise Refused(
                tr("the key cannot be taken over: {message}", message=error.message),
                tr("let a new one be made: --new-key"),
            ) from None
    reading.clients.append(
        tr("the API key stays the same; the unit holds no more than a digest")
        if len(given) == 1
        else tr("the {count} API keys stay the same; the unit holds no more than a digest", count=len(given))
    )
    return given


def _same_model_id(
    settings: Settings, typed: str, last: Mapping[str, Flag], reading: _Reading, wishes: Mapping[str, str],
    service: str, file: Mapping[str, str | None],
) -> Settings:  # fmt: skip
    """Clients go on asking for the model by the name they know."""
    names = last["--served-model-name"].values if "--served-model-name" in last else (typed,)
    if "served_model_name" not in wishes and names != (settings.model_id,):
        reading.fields["served_model_name"] = to_text("served_model_name", names)
    settings = load_settings(service, file, {}, {**reading.fields, **wishes})
    served = settings.served_model_name or (settings.model_id,)
    now, then = tr(", ").join(served), tr(", ").join(names)
    reading.clients.append(
        tr("the model id is {name}, as before", name=then)
        if set(names) <= set(served)
        else tr("the model id is {name} instead of {before}", name=now, before=then)
    )
    before = (reading.fields.get("host", Settings.host), reading.fields.get("port", str(Settings.port)))
    port = to_text("port", settings.port)
    stays = before == (settings.host, port) and "--uds" not in last
    reading.clients.append(
        tr("it listens on {host} port {port}, as before", host=settings.host, port=port)
        if stays
        else tr("it listens on {host} port {port}", host=settings.host, port=port)
    )
    reading.clients.append(tr("every route but /health and /ping needs the key; /metrics too"))
    return settings


def _carried(old: Old, reading: _Reading) -> list[tuple[str, str]]:
    """Variables that vLLM's work depends on, and that are nobody's secret."""
    carried, left = [], []
    for name, value in sorted(old.environment.items()):
        if ENVIRONMENT.get(name) == value or (name in VARIABLES and "gpus" in reading.fields):
            continue  # of what export writes; said by a setting
        if CARRIED.fullmatch(name) and not NOT_CARRIED.fullmatch(name) and value.isprintable():
            carried.append((name, value))
        elif FOR_VLLM.fullmatch(name) and name not in ("VLLM_API_KEY", "HF_ENDPOINT", "VLLM_USE_MODELSCOPE"):
            left.append(name)
    if left:
        reading.notes.append(tr("not carried over from the environment: {names}", names=", ".join(left)))
    return carried
