"""The memory estimate: cache bytes and blocks as vLLM has them, weights by the files, verdicts with numbers."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.errors import UsageError
from installer.families.family import Refusal
from installer.families.vllm.log import read_refusal, read_report
from installer.families.vllm.memory_flags import Flags
from installer.memory.capacity import Estimate, Outlook, describe, estimate, judge, table
from installer.memory.device import Device
from installer.memory.kv import Cache, Kind, Layer, Rules, arrange
from installer.memory.kv_layers import layers_of
from installer.memory.overhead import batch, graphs, sampling
from installer.memory.shape import Shape, read_shape
from installer.model import builtin
from installer.spec.calibration import Calibration
from installer.spec.settings import Settings
from tests.kit.boot.surroundings import REPO

CONFIGS = REPO / "tests/fixtures/configs"
GIB = 1024**3
H200 = Device("cuda", 143771 * 1024**2, 0.92)
CPU = Device("cpu", 24 * GIB, 0.4)
SPARK = Device("cuda", 127600748 << 10, 0.5, "NVIDIA GB10", is_unified=True)


def settings(context: int | None = 32768, *args: str, gpus: int = 1) -> Settings:
    return Settings(max_model_len=context, vllm_args=args, tensor_parallel_size=gpus)


def shape_of(name: str, *args: str, gpus: int = 1) -> Shape:
    return read_shape(CONFIGS / name, settings(None, *args, gpus=gpus))


def on(name: str, context: int | None, *args: str, device: Device = H200, gpus: int = 1) -> Estimate:
    return estimate(shape_of(name, *args, gpus=gpus), device, settings(context, *args, gpus=gpus))


def model(path: Path, **config: object) -> Path:
    """A model directory with nothing but a configuration and the size of its weights."""
    base = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 320,
        "max_position_embeddings": 8192,
    }
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(base | config))
    (path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 1000000}, "weight_map": {}}')
    return path


def layers_in(path: Path, *args: str, gpus: int = 1) -> tuple[Cache, Estimate]:
    chosen = settings(4096, *args, gpus=gpus)
    result = estimate(read_shape(path, chosen), H200, chosen)
    return result.cache, result


# Bytes per token


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("qwen3-vl-8b", 147456),
        ("qwen3-8b", 147456),
        ("qwen3-32b", 262144),
        ("qwen3-30b-a3b", 98304),
        ("qwen2.5-7b", 57344),
        ("llama-3.1-8b", 131072),
        ("deepseek-v2-lite", 27 * (512 + 64) * 2),
        ("gpt-oss-20b", 24 * 8 * 64 * 2 * 2),
        ("gemma-3-12b", 48 * 8 * 256 * 2 * 2),
        ("granite-4.0-h-tiny", 4 * 4 * 128 * 2 * 2),
    ],
)
def test_bytes_per_token_are_vllms(name: str, per_token: int) -> None:
    assert on(name, 32768).kv_per_token == per_token


@pytest.mark.parametrize(
    ("flags", "gpus", "per_token"),
    [
        ((), 1, 147456),
        (("--kv-cache-dtype", "fp8"), 1, 73728),
        (("--kv_cache_dtype=fp8_e4m3",), 1, 73728),
        (("--dtype", "float32"), 1, 294912),
        (("--dtype", "float32", "--kv-cache-dtype", "bfloat16"), 1, 147456),
        (("--kv-cache-dtype", "int8_per_token_head"), 1, 36 * 8 * 2 * (128 + 4)),
        (("--kv-cache-dtype", "nvfp4"), 1, 36 * 8 * 2 * (64 + 8)),
        ((), 2, 73728),
        ((), 16, 36 * 128 * 2 * 2),  # 8 heads on 16 GPUs: each GPU holds one
        (("--pipeline-parallel-size", "2"), 1, 73728),
    ],
)
def test_flags_and_gpus_change_the_bytes_per_token(flags: tuple[str, ...], gpus: int, per_token: int) -> None:
    assert on("qwen3-8b", 32768, *flags, gpus=gpus).kv_per_token == per_token


def test_a_checkpoint_can_ask_for_an_8_bit_cache(tmp_path: Path) -> None:
    plain = model(tmp_path / "plain")
    quantized = model(
        tmp_path / "fp8", quantization_config={"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}
    )
    assert layers_in(plain)[1].kv_per_token == 2 * layers_in(quantized)[1].kv_per_token


def test_latent_attention_is_not_divided_among_gpus() -> None:
    assert on("deepseek-v2-lite", 4096, gpus=4).kv_per_token == on("deepseek-v2-lite", 4096).kv_per_token


def test_sparse_latent_attention_keeps_an_index_beside_the_cache(tmp_path: Path) -> None:
    path = model(
        tmp_path, model_type="deepseek_v32", kv_lora_rank=512, qk_rope_head_dim=64, index_topk=2048, index_head_dim=128
    )
    assert layers_in(path)[1].kv_per_token == 4 * (656 + 132)


def test_only_the_language_model_counts() -> None:
    assert shape_of("qwen3-vl-8b").limit == 262144
    assert shape_of("gemma-3-12b").limit == 131072


# Blocks


def test_memory_for_a_request_is_whole_blocks_and_the_empty_one() -> None:
    cache = arrange((Layer(Kind.FULL, 100),) * 3, Rules(16, 0, 16))
    assert cache.block_bytes == 4800
    assert cache.needed(1) == 2 * 4800
    assert cache.needed(16) == 2 * 4800
    assert cache.needed(17) == 3 * 4800
    assert cache.largest(3 * 4800, 10**6) == 32
    assert cache.largest(3 * 4800 - 1, 10**6) == 16
    assert cache.largest(4800, 10**6) == 0
    assert cache.tokens(10 * 4800 + 4799, 32) == 160


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIGS.iterdir())])
def test_the_largest_context_is_the_last_that_fits(name: str) -> None:
    cache = on(name, 32768).cache
    memory = 2 * GIB
    largest = cache.largest(memory, 10**8)
    assert cache.needed(largest) <= memory < cache.needed(largest + 1)
    assert cache.largest(memory, 100) == 100


def test_windows_bound_what_a_request_takes() -> None:
    rules = Rules(block_size=16, in_flight=64, state_alignment=16)
    cache = arrange((Layer(Kind.FULL, 10), Layer(Kind.WINDOW, 10, 33)) * 2, rules)
    assert len(cache.groups) == 2
    assert cache.block_bytes == 2 * 10 * 16
    # 1600 tokens in full, and 32 + 64 in the window, which may begin within a block.
    assert cache.blocks(1600) == 100 + 7
    assert cache.blocks(8) == 1 + 2
    assert (
        arrange((Layer(Kind.FULL, 10), Layer(Kind.WINDOW, 10, 33)) * 2, rules, keep_windows=False).blocks(1600) == 100
    )


def test_five_windows_to_one_full_layer_make_six_groups() -> None:
    cache = on("gemma-3-12b", 32768).cache
    assert [group.kind for group in cache.groups].count(Kind.WINDOW) == 5
    assert [group.kind for group in cache.groups].count(Kind.FULL) == 1
    assert cache.block_bytes == 8 * 16 * 8192


def test_uneven_kinds_are_padded() -> None:
    # 26 layers, 22 with a window: groups of 4, the last ones short.
    cache = on("gemma-3-1b", 8192).cache
    assert len(cache.groups) == 1 + 6
    near = arrange((Layer(Kind.FULL, 10),) * 13 + (Layer(Kind.WINDOW, 10, 32),) * 12, Rules(16, 0, 16))
    assert (len(near.groups), near.block_bytes) == (2, 13 * 160)


def test_smaller_tokens_fill_the_common_page() -> None:
    rules = Rules(block_size=16, in_flight=0, state_alignment=16)
    whole = arrange((Layer(Kind.FULL, 20), Layer(Kind.WINDOW, 10, 1024)), rules)
    assert (whole.block_bytes, [group.block_size for group in whole.groups]) == (320, [16, 32])
    padded = arrange((Layer(Kind.FULL, 30), Layer(Kind.WINDOW, 20, 1024)), rules)
    assert (padded.block_bytes, [group.block_size for group in padded.groups]) == (480, [16, 16])


def test_a_block_grows_until_it_holds_a_state() -> None:
    cache = on("granite-4.0-h-tiny", 32768).cache
    state = (3072 + 2 * 128) * 3 * 2 + 48 * 64 * 128 * 2
    tokens = -(-state // (2048 * 16)) * 16
    assert cache.rules.block_size == tokens
    assert cache.block_bytes == 4 * tokens * 2048
    assert cache.blocks(tokens) == 1 + 9 * 3
    without = on("granite-4.0-h-tiny", 32768, "--no-enable-prefix-caching").cache
    assert without.blocks(tokens) == 1 + 9


def test_linear_attention_keeps_a_state_less_than_mamba(tmp_path: Path) -> None:
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32}
    cache, _ = layers_in(model(tmp_path, model_type="qwen3_next", linear_value_head_dim=32, **linear))
    assert cache.blocks(1) == 1 + 3 * 2


def test_states_are_wider_on_the_cpu() -> None:
    with_prefixes = on("granite-4.0-h-tiny", 32768, "--kv-cache-memory-bytes", "1G", device=CPU)
    assert with_prefixes.kv_tokens == 74752  # as vLLM printed it
    assert on("granite-4.0-h-tiny", 4096, device=CPU).cache.rules.block_size == 896
    assert on("granite-4.0-h-tiny", 4096).cache.rules.block_size == 400


@pytest.mark.parametrize(
    ("config", "states"),
    [
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*", "mamba_num_heads": 8, "mamba_head_dim": 8,
          "n_groups": 2, "ssm_state_size": 32}, [(64 + 2 * 2 * 32) * 3 * 2 + 8 * 8 * 32 * 4] * 2),
        ({"model_type": "qwen3_next", "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
          "linear_value_head_dim": 32}, [(2 * 64 + 128) * 3 * 2 + 4 * 32 * 32 * 2] * 3),
        ({"model_type": "kimi_linear", "linear_attn_config": {"full_attn_layers": [4], "num_heads": 4, "head_dim": 32,
          "short_conv_kernel_size": 4}}, [3 * 128 * 3 * 2 + 4 * 32 * 32 * 4] * 3),
        ({"model_type": "lfm2", "layer_types": ["conv", "conv", "full_attention", "conv"]}, [64 * 2 * 2] * 3),
        ({"model_type": "jamba", "num_hidden_layers": 8}, [(128 * 3 + 128 * 16) * 2] * 7),
        ({"model_type": "falcon_h1", "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 32, "mamba_d_ssm": 128,
          "mamba_d_conv": 4, "num_hidden_layers": 2}, [(128 + 64) * 3 * 2 + 8 * 16 * 32 * 2] * 2),
    ],
)  # fmt: skip
def test_states_of_the_families(tmp_path: Path, config: dict[str, object], states: list[int]) -> None:
    shape = read_shape(model(tmp_path, **config), settings())
    found = layers_of(shape.config, shape.flags, 1, on_cpu=False)
    assert [layer.size for layer in found.layers if layer.kind is Kind.STATE] == states
    assert found.certain
    assert any(layer.kind is Kind.FULL for layer in found.layers)


def test_layers_that_share_another_ones_cache_have_none(tmp_path: Path) -> None:
    assert layers_in(model(tmp_path, num_kv_shared_layers=1))[1].kv_per_token == 3 * 4 * 16 * 2 * 2


def test_a_window_that_is_switched_off_is_none() -> None:
    assert {group.kind for group in on("qwen2.5-7b", 32768).cache.groups} == {Kind.FULL}


def test_windows_everywhere_bound_the_whole_cache(tmp_path: Path) -> None:
    cache, _ = layers_in(model(tmp_path, model_type="mistral", sliding_window=256))
    assert [group.kind for group in cache.groups] == [Kind.WINDOW]
    assert cache.blocks(10**6) == cache.blocks(10**7)


# Weights


def safetensors(path: Path, tensors: dict[str, int]) -> None:
    header, end = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def test_weights_are_those_of_the_files(tmp_path: Path) -> None:
    path = model(tmp_path)
    assert read_shape(path, settings()).weights == 1000000  # no file there yet: what the index says
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    safetensors(path / "one.safetensors", {"a": 600, "model.layers.3.x": 40})
    safetensors(path / "consolidated.safetensors", {"a": 600})
    assert read_shape(path, settings()).weights == 640


def test_weights_that_vllm_leaves_out(tmp_path: Path) -> None:
    path = model(tmp_path, tie_word_embeddings=True)
    (path / "model.safetensors.index.json").unlink()
    safetensors(path / "model.safetensors", {"a": 600, "lm_head.weight": 50, "mtp.0.x": 30, "model.layers.4.x": 20})
    assert read_shape(path, settings()).weights == 600


def test_weights_are_converted_unless_quantized(tmp_path: Path) -> None:
    assert read_shape(model(tmp_path / "wide", torch_dtype="float32"), settings()).weights == 500000
    quantized = model(tmp_path / "q", torch_dtype="float32", quantization_config={"quant_method": "gptq"})
    assert read_shape(quantized, settings()).weights == 1000000
    assert shape_of("qwen3-8b", "--dtype", "float32").weights == 2 * 16381470720
    embedding = 2 * 151936 * 4096 * 2
    assert shape_of("qwen3-8b", "--quantization", "fp8").weights == (16381470720 - embedding) // 2 + embedding


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        read_shape(tmp_path, settings())
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UsageError, match=r"config\.json"):
        read_shape(tmp_path, settings())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="no JSON object"):
        read_shape(tmp_path, settings())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no weights"):
        read_shape(tmp_path, settings())


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 8192),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 8192),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}}, 16384),
        ({"max_position_embeddings": None}, 2048),
        ({"max_position_embeddings": 4096, "n_positions": 1024}, 1024),
    ],
)
def test_the_models_own_limit(tmp_path: Path, config: dict[str, object], limit: int) -> None:
    assert read_shape(model(tmp_path, **config), settings()).limit == limit


# Flags


def test_flags_in_every_spelling() -> None:
    flags = Flags.of(("--max_num_seqs=8", "-pp", "2", "--max-num-batched-tokens", "4k", "--enforce-eager", "-q", "fp8"))
    assert (flags.max_num_seqs, flags.pipeline_parallel, flags.max_num_batched_tokens) == (8, 2, 4000)
    assert flags.eager
    assert flags.quantization == "fp8"
    assert not Flags.of(("--enforce-eager", "--no-enforce-eager")).eager  # the last one counts
    assert Flags.of(("--enforce", "-sc", "{}")) == Flags(eager=True, speculative=True)
    assert Flags.of(("--kv-cache-memory-bytes", "1.5G")).kv_cache_memory == 3 * GIB // 2
    with pytest.raises(UsageError, match="--block-size many"):
        Flags.of(("--block-size", "many"))


def test_what_a_step_holds_follows_the_device() -> None:
    def step(device: Device, context: int = 32768, name: str = "qwen3-8b", *args: str) -> tuple[int, int]:
        found = batch(shape_of(name, *args), device, context)
        return found.tokens, found.requests

    assert step(H200) == (8192, 1024)
    assert step(replace(H200, share=0.1)) == (8192, 1024)  # a small share of a large GPU is still a large GPU
    assert step(replace(H200, memory=80 * GIB)) == (8192, 1024)
    assert step(replace(H200, memory=80 * GIB, name="NVIDIA A100-SXM4-80GB")) == (2048, 256)
    assert step(replace(H200, memory=24 * GIB)) == (2048, 256)
    assert step(replace(H200, memory=180 * GIB)) == (16384, 1024)
    assert step(CPU)[0] == 2048
    assert step(H200, 1024, "qwen3-8b", "--max-num-seqs", "2") == (2048, 2)
    assert step(CPU, 32768, "deepseek-v2-lite")[0] == 32768


AS_ON_24_GB = ("--max-num-batched-tokens", "2048", "--max-num-seqs", "256")


@pytest.mark.parametrize(
    ("name", "share", "args", "weights", "available"),
    [
        ("qwen3-8b", 0.92, (), 15.27, 111.84),
        ("qwen2.5-7b", 0.92, (), 14.29, 112.98),
        ("llama-3.1-8b", 0.92, (), 15.00, 112.28),
        ("qwen3-32b", 0.92, (), 61.03, 65.75),
        ("deepseek-v2-lite", 0.92, (), 29.34, 97.95),
        ("qwen3-8b", 0.17, AS_ON_24_GB, 15.27, 7.08),
    ],
)
def test_what_computing_takes_is_what_vllm_found(
    name: str, share: float, args: tuple[str, ...], weights: float, available: float
) -> None:
    """On an H200 with empty caches. vLLM 0.25.1 counted neither the CUDA graphs of these nor what sampling keeps."""
    device = replace(H200, share=share)
    shape = shape_of(name, *args)
    step = batch(shape, device, 32768)
    uncounted = graphs(shape, step) + sampling(shape, step)
    found = device.usable / GIB - weights - available
    tolerance = 0.32 if name == "deepseek-v2-lite" else 0.06  # latent attention's work area came after the measuring
    assert (on(name, 32768, *args, device=device).overhead - uncounted) / GIB == pytest.approx(found, abs=tolerance)


EARLIER_WINDOWS = ("--no-async-scheduling",)  # vLLM 0.25.1 keeps one step in flight, as 0.32.0 does with this


@pytest.mark.parametrize(
    ("name", "share", "args", "reported"),
    [
        ("qwen3-8b", 0.92, (), 814368),
        ("qwen2.5-7b", 0.92, (), 2115440),
        ("llama-3.1-8b", 0.92, (), 919824),
        ("qwen3-32b", 0.92, (), 269312),
        ("qwen3-30b-a3b", 0.92, (), 744656),
        ("qwen3-vl-8b", 0.92, (), 805584),
        ("deepseek-v2-lite", 0.92, (), 3381392),
        ("gemma-3-1b", 0.92, EARLIER_WINDOWS, 12607281),
        ("gpt-oss-20b", 0.92, EARLIER_WINDOWS, 3898116),
    ],
)
def test_a_large_share_is_predicted_within_a_thirtieth(
    name: str, share: float, args: tuple[str, ...], reported: int
) -> None:
    """What vLLM 0.25.1 printed on an H200; what it did not count is little beside so large a cache."""
    assert on(name, 32768, *args, device=replace(H200, share=share)).kv_tokens == pytest.approx(reported, rel=1 / 30)


def test_a_small_share_of_a_large_gpu_is_predicted_within_a_tenth(tmp_path: Path) -> None:
    """What 0.32.0 printed on an H200, in a service that deploy had made; and 0.25.1, for a step as on 24 GB.

    That one had besides what it did not count.
    """
    device = replace(H200, share=0.17)
    small, shape = on("qwen3-8b", 32768, *AS_ON_24_GB, device=device), shape_of("qwen3-8b", *AS_ON_24_GB)
    step = batch(shape, device, 32768)
    uncounted = graphs(shape, step) + sampling(shape, step)
    assert small.cache.tokens(small.available_kv + uncounted, 32768) == pytest.approx(51568, rel=0.1)
    for file, content in builtin.files().items():
        (tmp_path / file).write_bytes(content)
    tiny = estimate(read_shape(tmp_path, settings(4096)), replace(H200, share=0.05), settings(4096))
    assert tiny.kv_tokens == pytest.approx(6829008, rel=0.02)


@pytest.mark.parametrize(
    ("name", "share", "context", "available", "reported"),
    [
        ("qwen3-vl-8b", 0.90, 32768, 104.85, 763504),
        ("qwen3-vl-8b", 0.25, 65536, 13.98, 101792),
        ("qwen3-8b-fp8", 0.20, 32768, 16.11, 117280),
        ("qwen3-8b", 0.17, 16384, 5.41, 39392),
    ],
)
def test_what_vllm_0_32_reported_is_predicted(
    name: str, share: float, context: int, available: float, reported: int
) -> None:
    """On an H200 without a CUDA toolkit. The start at 0.25 was warm, which with images makes no difference."""
    result = on(name, context, device=replace(H200, share=share))
    assert result.kv_tokens == pytest.approx(reported, rel=0.1)
    assert result.available_kv == pytest.approx(available * GIB, abs=GIB // 2)
    assert result.cache.tokens(round(available * GIB), context) == pytest.approx(reported, rel=0.001)


def test_what_requests_may_ask_of_their_sampling_is_there_from_the_start() -> None:
    """How often each token came: a number for each word of the vocabulary and each request, whole on every GPU."""
    few, many = (on("qwen3-8b", 32768, "--enforce-eager", "--max-num-seqs", n).overhead for n in ("1", "1001"))
    assert many - few > 1000 * 151936 * 4
    both = on("qwen3-8b", 32768, "--enforce-eager", gpus=2).overhead
    assert both > on("qwen3-8b", 32768, "--enforce-eager", "--max-num-seqs", "1", gpus=2).overhead + 1000 * 151936 * 4


def test_positions_in_videos_run_on_in_the_models_that_vllm_says(tmp_path: Path) -> None:
    rope = {"rope_scaling": {"mrope_section": [2, 3, 3]}, "vision_config": {}, "max_position_embeddings": 2**20}

    def overhead(name: str) -> int:
        return layers_in(model(tmp_path / name, model_type=name, **rope))[1].overhead

    table = 2**20 * 16 * 2
    assert overhead("qwen2_vl") - overhead("qwen3_vl") == 3 * table == overhead("qwen2_vl") - overhead("qwen3_5")


def test_less_to_compute_leaves_more_cache() -> None:
    plain = on("qwen3-vl-8b", 32768).overhead
    assert on("qwen3-vl-8b", 32768, "--enforce-eager").overhead < plain
    assert on("qwen3-vl-8b", 32768, "--max-num-seqs", "16").overhead < plain
    assert on("qwen3-vl-8b", 32768, "--language-model-only").overhead < plain
    assert on("qwen3-vl-8b", 32768, "--max-num-batched-tokens", "65536").overhead > plain
    assert on("qwen3-8b", 32768, gpus=2).overhead > on("qwen3-8b", 32768).overhead
    assert on("qwen3-8b", 32768, gpus=2).weights == 16381470720 // 2


def test_windows_hold_as_many_tokens_as_vllm_says() -> None:
    result = on("gpt-oss-20b", 4096, "--kv-cache-memory-bytes", "1G", device=CPU)
    assert result.kv_tokens == 27934  # as vLLM printed it


def test_memory_set_by_flag_is_taken_as_it_is() -> None:
    result = on("qwen3-8b", 4096, "--kv-cache-memory-bytes", "1G", device=CPU)
    assert (result.available_kv, result.margin) == (GIB, 0)
    assert result.largest_context == 7040  # what vLLM itself says of this model with 1 GiB
    assert judge(result, 7040).answer is Outlook.FITS
    assert judge(result, 7041).answer is Outlook.CANNOT


# Verdicts


def test_verdicts_come_with_the_numbers() -> None:
    result = replace(on("qwen3-8b", 32768), available_kv=4 * GIB, margin=GIB, limit=262144)
    # 147456 bytes a token: 4 GiB hold 29127 tokens, in blocks of 16.
    assert judge(result, 16384).answer is Outlook.FITS
    close = judge(result, 30000)
    assert close.answer is Outlook.CLOSE
    assert judge(result, 28000).answer is Outlook.CLOSE
    refused = judge(result, 262144)
    assert refused.answer is Outlook.CANNOT
    assert refused.largest == 29104
    assert refused.reason == (
        "262144 tokens need 36.00 GiB of cache and about 4.00 GiB is free, enough for about 29104"
    )
    assert refused.to_json()["largest_context"] == 29104
    assert judge(replace(result, certain=False), 262144).answer is Outlook.CLOSE
    assert judge(result, 262145).reason == "262145 tokens are more than the model's own limit of 262144"
    assert judge(replace(result, certain=False), 262145).answer is Outlook.CANNOT


def test_a_model_larger_than_the_gpu() -> None:
    result = on("qwen3-32b", 1024, device=Device("cuda", 24 * GIB, 0.92))
    assert result.available_kv < 0
    assert (result.largest_context, result.kv_tokens) == (0, 0)
    verdict = judge(result, 1024)
    assert verdict.answer is Outlook.CANNOT
    assert verdict.available == 0
    assert all(row.requests == 0 for row in table(result))


def test_auto_settles_on_what_fits() -> None:
    small = on("llama-3.1-8b", None, device=Device("cuda", 24 * GIB, 0.92))
    assert small.context == small.largest_context < 131072
    assert on("llama-3.1-8b", None).context == 131072


def test_the_table_has_every_context_once() -> None:
    result = on("qwen3-vl-8b", 5000)
    rows = table(result)
    assert [row.context for row in rows] == sorted({row.context for row in rows})
    assert {1024, 5000, 32768, 262144} <= {row.context for row in rows}
    assert rows[-1].context == 262144
    assert [row.requests for row in rows] == sorted((row.requests for row in rows), reverse=True)
    for row in rows:
        assert row.requests == result.available_kv // result.cache.block_bytes // -(-row.context // 16)
    assert len(describe(result)) == 3 + len(rows)
    assert json.loads(json.dumps(result.to_json()))["rows"][0]["context"] == 1024


def test_layers_nobody_knows_refuse_nothing(tmp_path: Path) -> None:
    path = model(tmp_path, layer_types=["holographic"] * 4, max_position_embeddings=10**8)
    chosen = settings(10**7)
    result = estimate(read_shape(path, chosen), Device("cuda", 8 * GIB, 0.5), chosen)
    assert judge(result, 10**8).answer is Outlook.CLOSE


# What vLLM says

START = """\
(APIServer pid=1) INFO non-default args: {'max_model_len': 32768, 'gpu_memory_utilization': 0.5}
(EngineCore pid=2) INFO [core.py:1] Initializing a V1 LLM engine (v0.32.0) with config
(EngineCore pid=2) INFO [gpu_model_runner.py:1] Model loading took 15.27 GiB memory and 3.2 seconds
(EngineCore pid=2) INFO [gpu_worker.py:1] Available KV cache memory: 51.25 GiB
(EngineCore pid=2) INFO [kv_cache_utils.py:1] GPU KV cache size: 373,184 tokens, Maximum concurrency for 32,768 tokens per request: 11.39x
(EngineCore pid=2) INFO [gpu_model_runner.py:1] Graph capturing finished in 5 secs, took 0.61 GiB
""".splitlines()  # noqa: E501 as vLLM prints it


def test_the_report_of_a_start_is_read() -> None:
    assert read_report(START) == Calibration(
        available=round(51.25 * GIB),
        tokens=373184,
        context=32768,
        weights=round(15.27 * GIB),
        graphs=round(0.61 * GIB),
        share=0.5,
    )
    assert read_report(START[:4]) is None
    assert read_report([]) is None


def test_the_last_start_counts_and_the_smallest_gpu() -> None:
    first = [line.replace("51.25", "9.00") for line in START]
    second = [*START[1:3], START[3].replace("51.25", "51.20"), *START[3:]]
    report = read_report(first + second)
    assert report is not None
    assert report.available == round(51.20 * GIB)


def test_the_cpu_engine_has_words_of_its_own() -> None:
    lines = [
        "INFO [cpu_worker.py:248] Auto set (1.21/23.47) GiB for KV cache on node 0, with 2.35 GiB requested memory "
        "for the worker. 1.14 GiB memory was consumed by non-kv usages.",
        "INFO [kv_cache_utils.py:2336] CPU KV cache size: 1,269,248 tokens, "
        "Maximum concurrency for 1,024 tokens per request: 1239.50x",
    ]
    report = read_report(lines)
    assert report is not None
    assert (report.available, report.tokens, report.context) == (round(1.21 * GIB), 1269248, 1024)
    assert report.other == round(1.14 * GIB)


def test_a_refusal_is_read() -> None:
    lines = [
        "ERROR ValueError: To serve at least one request with the model's max seq len (262144), (36.0 GiB KV ",
        "cache is needed, which is larger than the available KV cache memory (23.95 GiB). Based on the available ",
        "memory, the estimated maximum model length is 174352. Try increasing `gpu_memory_utilization`",
    ]
    assert read_refusal(lines) == Refusal(262144, 36.0, 23.95, 174352)
    assert read_refusal(lines[:2]) == Refusal(262144, 36.0, 23.95, 0)
    assert read_refusal(["ValueError: No available memory for the cache blocks. Try"]) == Refusal()
    assert read_refusal(["RuntimeError: CUDA out of memory"]) is None


def test_a_calibration_gives_back_what_was_measured() -> None:
    report = read_report(START)
    device = replace(H200, share=0.5)
    again = estimate(shape_of("qwen3-8b"), device, settings(32768), report)
    assert again.calibrated
    assert again.available_kv == round(51.25 * GIB)
    assert again.weights == round(15.27 * GIB)
    assert again.margin < estimate(shape_of("qwen3-8b"), device, settings(32768)).margin
    # A larger share is that much more cache; what computing takes does not change with it.
    larger = estimate(shape_of("qwen3-8b"), replace(H200, share=0.6), settings(32768), report)
    assert larger.overhead == again.overhead
    assert larger.available_kv - again.available_kv == replace(H200, share=0.6).usable - device.usable


@pytest.mark.parametrize(
    ("name", "share", "context", "reported"), [("llama-3.2-1b", 0.25, 8192, 52096), ("qwen3-0.6b", 0.25, 4096, 28160)]
)
def test_the_cpu_engine_is_predicted_within_a_tenth(name: str, share: float, context: int, reported: int) -> None:
    """What vLLM 0.32.0 printed on a host of this much memory."""
    result = on(name, context, device=Device("cpu", round(23.54 * GIB), share))
    assert abs(result.kv_tokens / reported - 1) < 0.1


def test_the_cpu_engine_has_its_share_of_the_ram() -> None:
    result = on("qwen3-8b", 4096, device=CPU)
    assert result.weights + result.overhead + result.available_kv == CPU.usable == -(-24 * GIB * 4 // 10)


def test_the_driver_keeps_nothing_for_itself_of_memory_that_is_the_hosts() -> None:
    assert SPARK.usable == SPARK.memory // 2
    assert replace(SPARK, is_unified=False).usable < SPARK.memory // 2 - 200 * 2**20
