"""What each layer of a model keeps in vLLM's cache on one GPU."""

from __future__ import annotations

from dataclasses import dataclass

from installer.families.vllm.memory_flags import Flags
from installer.memory.kv import Kind, Layer
from installer.model.model_config import Config, number_in

# The spellings of layer kinds in config.json: in lists of words, or one letter a layer.
FULL = ("full_attention", "attention", "chunked_attention", "deepseek_sparse_attention", "hybrid", "*", "full")
WINDOW = ("sliding_attention", "sliding_window", "local_attention", "local")
STATE = ("linear_attention", "mamba", "mamba2", "conv", "short_conv", "kda", "hybrid", "M", "linear")
NOTHING = ("-", "E", "mlp", "moe", "none")
ALL_KINDS = FULL + WINDOW + STATE + NOTHING

MAMBA2_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
FP8_SPARSE_MLA = 656  # DeepSeek's own packed format: 512 numbers of 8 bits, their scales, 64 of 16 bits
STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Layers:
    """In the model's order; `certain` is False where something in config.json is not known here."""

    layers: tuple[Layer, ...]
    certain: bool = True


def layers_of(config: Config, flags: Flags, tensor_parallel: int, on_cpu: bool) -> Layers:
    names = _names(config)
    # Trailing layers that read the cache of earlier ones have none of their own.
    names = names[: len(names) - config.number("num_kv_shared_layers")]
    state = _state(config, flags, tensor_parallel, on_cpu) if any(name in STATE for name in names) else 0
    kept: list[Layer] = []
    for name in names:
        if name in WINDOW and config.window:
            kept.append(Layer(Kind.WINDOW, _token(config, flags, tensor_parallel), config.window))
        elif name in FULL or name in WINDOW or name not in ALL_KINDS:
            kept.append(Layer(Kind.FULL, _token(config, flags, tensor_parallel, is_global=True)))
        if name in STATE and state:
            kept.append(Layer(Kind.STATE, state))
    certain = all(name in ALL_KINDS for name in names) and (state > 0 or not any(name in STATE for name in names))
    return Layers(tuple(kept), certain and bool(kept) and _is_known(config, flags))


def states_per_request(config: Config, flags: Flags) -> int:
    """The running state; with prefix caching one that an earlier block ended with; Mamba2 also one for the prompt."""
    if not flags.prefix_caching:
        return 1
    return 3 if config.number(*MAMBA2_HEADS) else 2


def _is_known(config: Config, flags: Flags) -> bool:
    odd = ("block_configs", "compress_ratios", "encoder_layers", "cross_attention_layers")
    packed = flags.kv_cache_dtype.startswith(("turboquant", "ultraquant"))
    return not any(config.text.get(name) for name in odd) and not packed


def _names(config: Config) -> list[str]:
    """One word for each layer."""
    count = config.layers
    for field in ("layer_types", "layers_block_type"):
        listed = config.text.get(field)
        if isinstance(listed, list) and listed:
            return [str(word) for word in listed[:count]]
    if config.word("hybrid_override_pattern"):
        return list(config.word("hybrid_override_pattern")[:count])
    if config.family == "falcon_h1":
        return ["hybrid"] * count
    listed = config.text.get("attn_type_list")
    if isinstance(listed, list):
        return ["attention" if kind == 1 else "linear_attention" for kind in listed[:count]]
    full = _full_layers(config, count)
    if full is not None:
        return ["attention" if i in full else "mamba" for i in range(count)]
    return _by_window(config, count)


def _full_layers(config: Config, count: int) -> set[int] | None:
    """The layers with attention in a model whose others keep a state; None for a model without states."""
    for field, first in (("attn_layer_indices", 0), ("full_attn_idxs", 0), ("full_attn_layers", 1)):
        listed = config.text.get(field, config.section("linear_attn_config").get(field))
        if isinstance(listed, list):
            return {int(number) - first for i in listed if (number := number_in(i)) is not None}
    interval = config.number("full_attention_interval")
    if interval:
        return set(range(interval - 1, count, interval))
    period = config.number("attn_layer_period")
    return set(range(config.number("attn_layer_offset"), count, period)) if period else None


def _by_window(config: Config, count: int) -> list[str]:
    if not config.window:
        return ["full_attention"] * count
    pattern = config.number("sliding_window_pattern")
    return ["full_attention" if pattern and (i + 1) % pattern == 0 else "sliding_attention" for i in range(count)]


def _token(config: Config, flags: Flags, tensor_parallel: int, is_global: bool = False) -> int:
    """Bytes that one token takes in one layer on one GPU."""
    dtype = "fp8" if flags.kv_cache_dtype == "auto" and config.has_fp8_cache else flags.kv_cache_dtype
    if config.is_mla:
        return _mla_token(config, dtype, flags.model_bytes)
    heads, size = config.kv_heads, config.head_dim
    if is_global:
        heads = config.number("num_global_key_value_heads", default=heads)
        size = config.number("global_head_dim", default=size)
    # With more GPUs than heads each GPU still holds one.
    return 2 * max(1, heads // tensor_parallel) * _head(size, dtype, flags.model_bytes)


def _head(size: int, dtype: str, model_bytes: int) -> int:
    """Bytes of one key or one value of one head, with the scales that go with it."""
    if dtype.endswith("_per_token_head"):
        return size // (2 if dtype.startswith("int4") else 1) + 4
    if dtype.startswith("nvfp4"):
        return size // 2 + size // 16
    if dtype.startswith("fp8") or dtype.startswith(("turboquant", "ultraquant")):
        return size
    return size * (2 if dtype in ("float16", "bfloat16") else model_bytes)


def _mla_token(config: Config, dtype: str, model_bytes: int) -> int:
    """One latent vector for all heads, the same on every GPU; sparse attention keeps an index key beside it."""
    size = config.number("kv_lora_rank") + config.number("qk_rope_head_dim")
    index = config.number("index_head_dim") if config.number("index_topk") else 0
    if index:
        packed = dtype.startswith("fp8") or dtype == "auto"
        return (FP8_SPARSE_MLA if packed else size * 2) + index + 4 * -(-index // 128)
    return _head(size, dtype, model_bytes)


def _state(config: Config, flags: Flags, tensor_parallel: int, on_cpu: bool) -> int:
    """Bytes of one sequence's state in one layer on one GPU; 0 for a kind that is not known here."""
    convolution, recurrent = _state_numbers(config, tensor_parallel)
    conv_bytes = STATE_BYTES.get(flags.mamba_cache_dtype, flags.model_bytes)
    chosen = flags.mamba_ssm_cache_dtype
    if chosen == "auto":
        chosen = config.word("mamba_ssm_cache_dtype") or config.word("mamba_ssm_dtype")
    if on_cpu or config.family in ("kimi_linear", "minimax_text_01", "minimax_m1"):
        chosen = "float32"
    return convolution * conv_bytes + recurrent * STATE_BYTES.get(chosen, conv_bytes)


def _state_numbers(config: Config, tensor_parallel: int) -> tuple[int, int]:
    """How many numbers the convolution and the recurrence keep."""
    number = config.number
    if number("linear_num_value_heads"):
        keys = number("linear_num_key_heads") * number("linear_key_head_dim")
        values = number("linear_num_value_heads") * number("linear_value_head_dim")
        convolution = (2 * keys + values) * (number("linear_conv_kernel_dim", default=4) - 1)
        return convolution // tensor_parallel, values * number("linear_key_head_dim") // tensor_parallel
    if config.section("linear_attn_config"):
        section = Config(config.top, config.section("linear_attn_config"))
        heads, size = section.number("num_heads"), section.number("head_dim")
        convolution = 3 * heads * size * (section.number("short_conv_kernel_size", default=4) - 1)
        return convolution // tensor_parallel, heads * size * size // tensor_parallel
    if number("conv_L_cache"):
        return number("conv_dim", default=config.hidden) * (number("conv_L_cache") - 1) // tensor_parallel, 0
    if config.text.get("attn_type_list"):
        return 0, config.heads * config.head_dim**2 // tensor_parallel
    return _mamba_numbers(config, tensor_parallel)


def _mamba_numbers(config: Config, tensor_parallel: int) -> tuple[int, int]:
    number = config.number
    heads = number(*MAMBA2_HEADS)
    size = number("mamba_d_state", "ssm_state_size", "state_size")
    kernel = number("mamba_d_conv", "conv_kernel") - 1
    inner = number("mamba_d_ssm", "mamba_intermediate") or number("mamba_expand", "expand", default=2) * config.hidden
    if not heads:  # the first kind of Mamba has no heads
        return inner * max(kernel, 0) // tensor_parallel, inner * size // tensor_parallel
    head = number("mamba_d_head", "mamba_head_dim", "mamba_headdim")
    if config.family == "nemotron_h":
        inner = heads * head
    groups = number("mamba_n_groups", "n_groups", "mamba_ngroups", default=1)
    # Groups that cannot be divided among the GPUs are held by each.
    groups += tensor_parallel - groups if groups % tensor_parallel else 0
    return (inner + 2 * groups * size) * kernel // tensor_parallel, heads * head * size // tensor_parallel
