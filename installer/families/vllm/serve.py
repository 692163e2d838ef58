"""The command line of vLLM: what follows `vllm` in a unit's ExecStart."""

from __future__ import annotations

from collections.abc import Sequence

from installer.families.vllm import cuda
from installer.runtime import vllm_flags
from installer.spec.settings import FIELDS, Settings, to_text
from installer.spec.target import Target
from installer.spec.values import NO_DOMAINS

CPU_MEMORY_SHARE = 0.4
MEET_WITHIN = "600"  # seconds
FIRST = ("served_model_name", "host", "port")  # as units have had it: another order would be another unit


def serve_arguments(target: Target) -> list[str]:
    """What follows `vllm`: flags of ours, then the user's own, which cannot repeat ours."""
    words, told = ["serve", str(target.model.path)], _told(target)
    for name in sorted(FIELDS, key=lambda name: name not in FIRST):
        text = to_text(name, getattr(target.settings, name)) if FIELDS[name].flags else ""
        words += told[name] if name in told else [FIELDS[name].flags[0], text] if text else []
    if target.toolkit:
        words += cuda.kernels(target.toolkit, target.settings.vllm_args)
        words += cuda.graphs(target.toolkit, target.settings.vllm_args)
    return [*words, *_together(target), *target.settings.vllm_words]


def _together(target: Target) -> list[str]:
    """Where the hosts of a group meet, and that none of them waits for another for longer than it takes to start."""
    settings, place = target.settings, target.place
    if place is None:
        return []
    return [
        "--nnodes", str(len(settings.group_hosts)), "--node-rank", str(place.rank),
        "--master-addr", settings.group_hosts[0], "--master-port", str(settings.group_port + 1),
        "--distributed-timeout-seconds", MEET_WITHIN, "--cpu-distributed-timeout-seconds", MEET_WITHIN,
    ]  # fmt: skip


def _told(target: Target) -> dict[str, Sequence[str]]:
    """By settings: what host and model make of them, where vLLM is not told the value itself."""
    settings, profile = target.settings, target.profile
    tools, reasoning = profile.tool_parser, profile.reasoning_parser
    return {
        **dict.fromkeys(("model", "revision", "hf_token_file"), ()),  # it is given a directory, and fetches nothing
        "served_model_name": ("--served-model-name", *(settings.served_model_name or (target.model.id,))),
        "lora": _adapters(target),
        "gpu_memory_utilization": ("--gpu-memory-utilization", str(memory_share(settings, target.engine.kind))),
        "allowed_media_domains": ("--allowed-media-domains", *(settings.allowed_media_domains or NO_DOMAINS)),
        "tool_call_parser": ("--enable-auto-tool-choice", "--tool-call-parser", tools) if tools else (),
        "reasoning_parser": ("--reasoning-parser", reasoning) if reasoning else (),
        "scheduling": ("--scheduling-policy", settings.scheduling)
        if settings.scheduling != Settings.scheduling
        else (),
        "trust_remote_code": ("--trust-remote-code",) if settings.model in settings.trust_remote_code else (),
    }


def _adapters(target: Target) -> Sequence[str]:
    """With room for the largest; what is not named here cannot be loaded later."""
    if not target.adapters:
        return ()
    rank = max(adapter.rank for adapter in target.adapters)
    room = next(room for room in vllm_flags.load_table().choices["--max-lora-rank"] if int(room) >= rank)
    named = (f"{adapter.model.id}={adapter.model.path}" for adapter in target.adapters)
    return ("--enable-lora", "--max-lora-rank", room, "--lora-modules", *named)


def memory_share(settings: Settings, kind: str) -> float:
    """On the CPU engine the flag is a share of the host's RAM, of which the GPU default leaves too little free."""
    share = settings.gpu_memory_utilization
    return CPU_MEMORY_SHARE if kind == "cpu" and share == Settings.gpu_memory_utilization else share
