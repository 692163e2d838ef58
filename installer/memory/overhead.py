"""What vLLM takes on a GPU besides weights and cache: its largest step, its CUDA graphs, and its libraries.

vLLM measures this at every start; what is computed here stands in for the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.sizes import GIB, MIB
from installer.memory.device import Device
from installer.memory.shape import Shape
from installer.model.model_config import count_in

LIBRARIES = 256 * MIB  # cuBLAS, kernels loaded while profiling
COMMUNICATION = 1024 * MIB  # NCCL and all-reduce buffers, with several GPUs
GRAPHS = 256 * MIB  # the first of them, with what attention loads and lays out for its first run
GRAPH_OF_A_LAYER = 160 * 1024  # for one size of step, in pieces around attention
WHOLE_GRAPH_OF_A_LAYER = 190 * 1024  # for one size of step, attention within: 6.6 MiB for 36 layers
LEAST_WHOLE_GRAPH = MIB  # what vLLM counts at least
LARGEST_GRAPH = 512  # tokens
# Lists that each request may bring: tokens that it allows, biases (with how much), ends at, forbids, asks about.
SAMPLING_LISTS = 4 * (1024 + 2 * 1024 + 128 + (1024 + 129) + 128)
CPU_LOGIT = 16  # bytes: as computed, in 32 bits, its probability, its random draw
CPU_PROCESS = 670 * MIB  # a worker of the CPU engine that has compiled a model of next to no size


@dataclass(frozen=True)
class Batch:
    """How much vLLM schedules in one step."""

    tokens: int
    requests: int


def batch(shape: Shape, device: Device, context: int) -> Batch:
    """vLLM's defaults for a server on this device, or the flags given. The share of it that vLLM may use is no part."""
    flags = shape.flags
    if device.is_cpu:
        tokens, requests = 2048 * shape.gpus, 128 * shape.gpus
    elif device.memory >= 160 * GIB:
        tokens, requests = 16384, 1024
    elif device.memory >= 70 * GIB and "a100" not in device.name.lower():
        tokens, requests = 8192, 1024
    else:
        tokens, requests = 2048, 256
    requests = flags.max_num_seqs or requests
    if device.is_cpu and shape.config.is_mla:  # no chunked prefill there
        tokens = max(context, tokens)
    tokens = flags.max_num_batched_tokens or min(tokens, requests * context)
    return Batch(tokens, requests if flags.max_num_seqs else min(requests, tokens))


def gpu_overhead(shape: Shape, step: Batch, context: int) -> int:
    """Bytes on one GPU, at a first start: later ones do without what compiling takes."""
    communication = COMMUNICATION if shape.gpus > 1 else 0
    buffers, kept, encoding = _images(shape, step)
    forward = _forward(shape, step) + _mla_workspace(shape, step, context)
    running = _experts(shape, step) + max(forward, _logits(shape, step))
    moment = max(encoding, kept + running, kept + _compiling(shape, step))
    return LIBRARIES + communication + graphs(shape, step) + sampling(shape, step) + buffers + moment


def graphs(shape: Shape, step: Batch) -> int:
    """CUDA graphs as vLLM estimates them: in pieces for each size of step, and once more whole where all decode.

    The pieces it captures for a trial. Of the whole ones it captures two, and counts the second for all others. It is
    for the sizes that vLLM takes by itself: with those of families/vllm/cuda.py it is less, for 36 layers by 0.2 GiB.
    """
    if shape.flags.eager:
        return 0
    layers = shape.config.layers // shape.flags.pipeline_parallel
    pieces = _sizes(min(2 * step.requests, LARGEST_GRAPH)) * GRAPH_OF_A_LAYER * layers
    whole = _sizes(min(step.requests, LARGEST_GRAPH)) * max(LEAST_WHOLE_GRAPH, WHOLE_GRAPH_OF_A_LAYER * layers)
    return GRAPHS + pieces + whole


def sampling(shape: Shape, step: Batch) -> int:
    """What vLLM keeps for whatever the requests may ask of their sampling, whether one ever asks or not.

    How often each request has said each word of the vocabulary; which words its prompt has, which its grammar allows.
    """
    masks = 2 * -(-shape.config.vocabulary // 32)
    return step.requests * (4 * (shape.config.vocabulary + masks) + SAMPLING_LISTS)


def cpu_overhead(shape: Shape, step: Batch) -> int:
    """Bytes of the worker: it packs embedding and head once more for its kernels and keeps the originals."""
    packed = 2 * shape.config.vocabulary * shape.config.hidden * shape.flags.model_bytes // shape.tensor_parallel
    logits = min(step.requests, step.tokens) * shape.config.vocabulary * CPU_LOGIT
    return CPU_PROCESS + packed + logits + _experts(shape, step) + _forward(shape, step)


def _sizes(largest: int) -> int:
    """How many sizes of step have graphs: 1, 2 and 4 tokens, then every 8th and 16th number."""
    return 3 + min(largest, 248) // 8 + max(0, largest - 240) // 16


def _forward(shape: Shape, step: Batch) -> int:
    """The largest moment of one layer: the residual, a copy or two of it, and the widest thing computed from it."""
    config, parallel = shape.config, shape.tensor_parallel
    attention = 2 * (config.heads + 2 * config.kv_heads) * config.head_dim // parallel
    dense = 0 if config.experts_per_token else 3 * config.intermediate // parallel
    return step.tokens * shape.flags.model_bytes * (4 * config.hidden + max(attention, dense))


def _experts(shape: Shape, step: Batch) -> int:
    """Two work areas for what goes into the experts and comes out of them; once there, they stay."""
    config = shape.config
    expert = config.expert_size // shape.tensor_parallel
    width = max(expert, config.hidden) + max(2 * expert, config.hidden)
    return step.tokens * config.experts_per_token * shape.flags.model_bytes * width


def _compiling(shape: Shape, step: Batch) -> int:
    """The compiler tries the first kernel on made-up inputs, a second embedding among them, and two outputs.

    Not where images are seen: their models look words up before what is compiled.
    """
    config = shape.config
    if shape.flags.eager or "vision_config" in config.top:
        return 0
    embedding = config.vocabulary // shape.tensor_parallel * config.hidden
    return shape.flags.model_bytes * (embedding + 2 * step.tokens * config.hidden)


def _logits(shape: Shape, step: Batch) -> int:
    """vLLM's trial step samples neither by top-k nor by top-p, so no logit is copied or sorted."""
    hidden = (step.tokens + step.requests) * shape.config.hidden
    return shape.flags.model_bytes * (hidden + min(step.requests, step.tokens) * shape.config.vocabulary)


def _mla_workspace(shape: Shape, step: Batch, context: int) -> int:
    """Long prompts are worked through in pieces of the cache that are expanded to whole heads."""
    config = shape.config
    if not config.is_mla:
        return 0
    tokens = min(max(8 * context, 4 * step.requests * 64), 64 * 1024)
    head = config.number("qk_nope_head_dim") + config.number("v_head_dim")
    latent = config.number("kv_lora_rank") + config.number("qk_rope_head_dim")
    return tokens * shape.flags.model_bytes * (latent + config.heads * head // shape.tensor_parallel)


def _images(shape: Shape, step: Batch) -> tuple[int, int, int]:
    """Bytes of buffers, of a full load of encoded images, and of the largest moment while encoding them."""
    config = shape.config
    vision = config.top.get("vision_config")
    if not shape.image_tokens or not isinstance(vision, dict):
        return 0, 0, 0
    tokens = max(step.tokens, shape.image_tokens)
    merged = count_in(vision, "spatial_merge_size", default=1) ** 2
    fixed = count_in(config.top, "mm_tokens_per_image", default=0)
    if fixed:  # pooled to this many, whatever the image
        side = count_in(vision, "image_size", default=896) // count_in(vision, "patch_size", default=14)
        merged = max(1, side**2 // fixed)
    indexes = vision.get("deepstack_visual_indexes")
    levels = 1 + (len(indexes) if isinstance(indexes, list) else 0)
    buffers = step.tokens * config.hidden * 2 * levels + _positions(shape)
    kept = tokens * config.hidden * 2 * levels
    width = count_in(vision, "hidden_size", "embed_dim", "width", default=1024)
    widest = max(8 * width, 2 * count_in(vision, "intermediate_size", default=4 * width))
    return buffers, kept, kept + tokens * merged * 2 * (4 * width + widest)


def _positions(shape: Shape) -> int:
    """Where positions in videos run on, their table is four times as long as the context. Not in newer Qwen models."""
    rope = shape.config.section("rope_parameters") or shape.config.section("rope_scaling")
    factor = 1 if str(shape.config.top.get("model_type")).startswith(("qwen3_vl", "qwen3_5")) else 4
    return factor * shape.limit * shape.config.head_dim * 2 if "mrope_section" in rope else 0
