"""The command line of vLLM: what follows `vllm` in a unit's ExecStart."""

from __future__ import annotations

from installer.families.vllm import cuda
from installer.spec.settings import Settings
from installer.spec.target import Target

CPU_MEMORY_SHARE = 0.4
NO_DOMAINS = ("none.invalid",)


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
        words += cuda.arguments(target.toolkit, settings.vllm_args)
    return [*words, *settings.vllm_args]


def memory_share(target: Target) -> float:
    """On the CPU engine the flag is a share of the host's RAM, of which the GPU default leaves too little free."""
    share = target.settings.gpu_memory_utilization
    return CPU_MEMORY_SHARE if target.engine.kind == "cpu" and share == Settings.gpu_memory_utilization else share
