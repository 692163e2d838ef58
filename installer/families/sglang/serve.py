"""The command line of SGLang: what follows the launcher's keys in a unit's ExecStart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.families.family import say_unheeded
from installer.runtime import vllm_flags
from installer.runtime.vllm_words import SGLANG
from installer.spec.settings import Settings
from installer.spec.target import Target
from installer.spec.values import NO_DOMAINS

# With which only vLLM can do anything.
WITHOUT_COUNTERPART = ("scheduling", "cuda_toolkit", "vllm_args")
MOST_MEMORY = {"cpu": 0.1}
RESIZING = ("--cpu-offload-gb", "--dtype", "--load-format", "--pp-size", "--quantization")


def serve_arguments(target: Target) -> list[str]:
    """Flags of ours, then the user's own, which cannot repeat ours."""
    settings, profile = target.settings, target.profile
    words = ["sglang", "--model-path", str(target.model.path), "--served-model-name", target.model.id]
    words += ["--host", settings.host, "--port", str(settings.port)]
    if settings.max_model_len:
        words += ["--context-length", str(settings.max_model_len)]
    if share := memory_share(settings, target.engine.kind):
        words += ["--mem-fraction-static", f"{share:g}"]
    words += ["--tp-size", str(settings.tensor_parallel_size)]
    words += ["--allowed-media-domains", *(settings.allowed_media_domains or NO_DOMAINS)]
    if profile.tool_parser:
        words += ["--tool-call-parser", profile.tool_parser]
    if profile.reasoning_parser:
        words += ["--reasoning-parser", profile.reasoning_parser]
    if settings.model in settings.trust_remote_code:
        words.append("--trust-remote-code")
    return [*words, *_without_gpu(target, settings), *settings.sglang_args]


def _without_gpu(target: Target, settings: Settings) -> list[str]:
    """What it would look for a GPU for."""
    if target.engine.kind != "cpu":
        return []
    given = vllm_flags.given(settings.sglang_args, SGLANG)
    usual = {"--device": "cpu", "--attention-backend": "torch_native", "--sampling-backend": "pytorch"}
    words = [word for name, value in usual.items() if name not in given for word in (name, value)]
    return [*words, "--disable-overlap-schedule"]


def memory_share(settings: Settings, kind: str) -> float:
    """Of weights and cache, where the user asked for one: its own choice is by the GPU's size; 0 for that."""
    share = settings.gpu_memory_utilization
    return MOST_MEMORY.get(kind, 0.0) if share == Settings.gpu_memory_utilization else share


def keeps_weights(settings: Settings) -> bool:
    return not any(
        vllm_flags.meant(flag, RESIZING, SGLANG) for flag in vllm_flags.parse(settings.sglang_args, SGLANG)[1]
    )


def environment(target: Target, engine: Path) -> dict[str, str]:
    del engine
    on_cpu = {"SGLANG_USE_CPU_ENGINE": "1"} if target.engine.kind == "cpu" else {}
    return {"SGLANG_HOST_IP": "127.0.0.1", **on_cpu}


def _check_name(settings: Settings) -> None:
    """It takes one, and would ask for an adapter by what follows a colon."""
    if len(settings.served_model_name) > 1 or ":" in settings.model_id:
        names = settings.served_model_name or (settings.model_id,)
        raise UsageError(
            tr("SGLang cannot serve under {names}: it takes one name, without a colon", names=" ".join(names)),
            tr("give it another name: --served-model-name NAME"),
        )


def _check_adapters(settings: Settings) -> None:
    """Its clients would have to ask for MODEL:ADAPTER, or name it in a field of SGLang's own."""
    if settings.lora:
        raise UsageError(
            tr("LORA is not translated for SGLang, whose clients ask for adapters in another way"),
            tr("serve with vLLM: --engine-family vllm, or without the adapters: --lora ''"),
        )


def check_words(settings: Settings, warn: Callable[[str], None]) -> None:
    """Refuse what no version has; and say which settings mean nothing to this family."""
    _check_name(settings)
    _check_adapters(settings)
    known = vllm_flags.load_table(SGLANG.table)
    places, flags = vllm_flags.parse(settings.sglang_args, SGLANG)
    if places:
        raise UsageError(tr("expected an SGLang flag, found {word!r}", word=places[0]))
    for flag in flags:
        if not known.is_known(flag.name):
            text = tr("SGLang {version} has no flag {name}", version=known.version, name=flag.name)
            if settings.sglang_version != known.version:
                warn(text)
                continue
            raise UsageError(text, tr("nothing was changed"))
    say_unheeded("SGLang", WITHOUT_COUNTERPART, settings, warn)
