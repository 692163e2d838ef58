"""What vLLM takes on a GPU besides weights and cache: its largest step, its CUDA graphs, and its libraries.

vLLM measures this at every start; what is computed here stands in for the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

from installer.memory.shape import Shape

GIB = 1024**3
MIB = 1024**2

LIBRARIES = 256 * MIB  # cuBLAS, kernels loaded while profiling
COMMUNICATION = 1024 * MIB  # NCCL and all-reduce buffers, with several GPUs
GRAPHS = 256 * MIB
GRAPHS_PER_LAYER = 8 * MIB
SAMPLER_BYTES = 16  # of one logit: as computed, in 32 bits, its probability, its random draw
CPU_PROCESS = 670 * MIB  # a worker of the CPU engine that has compiled a model of next to no size


@dataclass(frozen=True)
class Batch:
    """How much vLLM schedules in one step."""

    tokens: int
    requests: int


def batch(shape: Shape, memory: int, context: int, on_cpu: bool) -> Batch:
    """vLLM's defaults for a server on this device, or the flags given."""
    flags = shape.flags
    if on_cpu:
        tokens, requests = 2048 * shape.gpus, 128 * shape.gpus
    elif memory >= 160 * GIB:
        tokens, requests = 16384, 1024
    elif memory >= 70 * GIB:
        tokens, requests = 8192, 1024
    else:
        tokens, requests = 2048, 256
    requests = flags.max_num_seqs or requests
    if on_cpu and shape.config.is_mla:  # no chunked prefill there
        tokens = max(context, tokens)
    tokens = flags.max_num_batched_tokens or min(tokens, requests * context)
    return Batch(tokens, requests if flags.max_num_seqs else min(requests, tokens))


def gpu_overhead(shape: Shape, step: Batch, context: int) -> int:
    """Bytes on one GPU."""
    layers = shape.config.layers // shape.flags.pipeline_parallel
    graphs = 0 if shape.flags.eager else GRAPHS + GRAPHS_PER_LAYER * layers
    communication = COMMUNICATION if shape.gpus > 1 else 0
    kept, encoding = _images(shape, step)
    forward = _forward(shape, step) + _mla_workspace(shape, step, context)
    return LIBRARIES + communication + graphs + max(encoding, kept + forward, kept + _sampler(shape, step))


def cpu_overhead(shape: Shape, step: Batch) -> int:
    """Bytes of the worker: it packs embedding and head once more for its kernels and keeps the originals."""
    packed = 2 * shape.config.vocabulary * shape.config.hidden * shape.flags.model_bytes // shape.tensor_parallel
    logits = min(step.requests, step.tokens) * shape.config.vocabulary * SAMPLER_BYTES
    return CPU_PROCESS + packed + logits + _forward(shape, step)


def _forward(shape: Shape, step: Batch) -> int:
    """The largest moment of one layer: the residual, a copy or two of it, and the widest thing computed from it."""
    config, parallel, size = shape.config, shape.tensor_parallel, shape.flags.model_bytes
    attention = 2 * (config.heads + 2 * config.kv_heads) * config.head_dim // parallel
    dense = 3 * config.intermediate // parallel
    experts = 0
    if config.experts_per_token:
        expert = config.expert_size // parallel
        experts = config.experts_per_token * (max(2 * expert, config.hidden) + expert)
        dense = 0
    return step.tokens * size * (4 * config.hidden + max(attention, dense, experts))


def _mla_workspace(shape: Shape, step: Batch, context: int) -> int:
    """Long prompts are worked through in pieces of the cache that are expanded to whole heads."""
    config = shape.config
    if not config.is_mla:
        return 0
    tokens = min(max(8 * context, 4 * step.requests * 64), 64 * 1024)
    head = config.number("qk_nope_head_dim") + config.number("v_head_dim")
    latent = config.number("kv_lora_rank") + config.number("qk_rope_head_dim")
    return tokens * shape.flags.model_bytes * (latent + config.heads * head // shape.tensor_parallel)


def _sampler(shape: Shape, step: Batch) -> int:
    hidden = 2 * step.tokens * shape.config.hidden * shape.flags.model_bytes
    return hidden + min(step.requests, step.tokens) * shape.config.vocabulary * SAMPLER_BYTES


def _images(shape: Shape, step: Batch) -> tuple[int, int]:
    """Bytes of a full load of encoded images, and of the largest moment while encoding them."""
    vision = shape.config.top.get("vision_config")
    if not shape.image_tokens or not isinstance(vision, dict):
        return 0, 0

    def number(*names: str, default: int) -> int:
        return next((value for name in names if isinstance(value := vision.get(name), int)), default)

    tokens = max(step.tokens, shape.image_tokens)
    merged = number("spatial_merge_size", default=1) ** 2
    fixed = shape.config.top.get("mm_tokens_per_image")
    if isinstance(fixed, int):  # pooled to this many, whatever the image
        merged = max(1, (number("image_size", default=896) // number("patch_size", default=14)) ** 2 // fixed)
    deep = vision.get("deepstack_visual_indexes")
    kept = tokens * shape.config.hidden * 2 * (1 + (len(deep) if isinstance(deep, list) else 0))
    width = number("hidden_size", "embed_dim", "width", default=1024)
    widest = max(8 * width, 2 * number("intermediate_size", default=4 * width))
    return kept, kept + tokens * merged * 2 * (4 * width + widest)
