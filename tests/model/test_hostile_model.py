"""Model directories and metrics as nobody means them: no traceback and no waiting, but a sentence, or nothing."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.base.errors import UsageError
from installer.base.host import Host
from installer.look import load
from installer.look.watch import in_seconds
from installer.memory import capacity
from installer.memory.device import Device
from installer.memory.shape import read_shape
from installer.model import profiles
from installer.model.checkpoint import check_access, check_directory
from installer.model.model_about import About
from installer.model.summary import describe, summarise
from installer.spec.settings import Settings
from installer.units.api import gauge
from installer.weights import verify
from tests.memory.test_capacity import H200, model, safetensors

CPU = Device("cpu", 24 * 2**30, 0.4)
NAMES = (
    "config.json", "tokenizer.json", "model.safetensors", "model-2.safetensors", "model.safetensors.index.json",
    "preprocessor_config.json", "tokenizer_config.json", "chat_template.jinja", "pytorch_model.bin", "SHA256SUMS",
    "below",
)  # fmt: skip
ODD = st.one_of(
    st.sampled_from([
        math.nan, math.inf, -math.inf, 1e308, -1, 0, 1, True, None, "", "8", [], {}, [math.nan], {"a": math.inf},
        10**400, 2**31, 2**63, 10**12, 0.5,
    ]),
    st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5),
)  # fmt: skip
FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "intermediate_size", "max_position_embeddings", "rope_scaling", "rope_parameters", "layer_types", "sliding_window",
    "sliding_window_pattern", "hybrid_override_pattern", "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank",
    "qk_rope_head_dim", "index_topk", "attn_layer_indices", "full_attention_interval", "attn_layer_period",
    "attn_layer_offset", "num_kv_shared_layers", "mamba_n_heads", "mamba_d_state", "mamba_n_groups", "conv_L_cache",
    "linear_attn_config", "quantization_config", "tie_word_embeddings", "torch_dtype", "architectures", "model_type",
    "text_config", "vision_config", "mm_tokens_per_image", "auto_map",
)  # fmt: skip
INNER = (
    "factor", "rope_type", "patch_size", "spatial_merge_size", "image_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_heads", "head_dim", "full_attn_layers", "quant_method", "bits", "config_groups",
)  # fmt: skip
CONFIGS = st.dictionaries(
    st.sampled_from(FIELDS), st.one_of(ODD, st.lists(ODD, max_size=4), st.dictionaries(st.sampled_from(INNER), ODD))
)


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """What waits for ever fails instead."""

    def over(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it never ends")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def look_at(path: Path) -> list[str]:
    """Everything that reads a model's directory, one after the other; what is wrong with it, in words."""
    problems = check_directory(path) + check_directory(path, with_pickles=True)
    problems += check_access(path, Host())
    problems += describe(summarise(path))
    problems += map(str, verify._checksums(path))
    for context in (None, 4096):
        wanted = Settings(max_model_len=context)
        for device in (H200, CPU):
            try:
                found = capacity.estimate(read_shape(path, wanted), device, wanted)
            except UsageError as error:
                problems.append(str(error))
                continue
            if found.cache.groups:
                problems += [*capacity.describe(found), capacity.judge(found, 4096).reason]
                json.dumps(found.to_json(), allow_nan=False)
    return problems


def whole(path: Path, **config: object) -> Path:
    """A directory that is complete, whatever its configuration says."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    safetensors(path / "model.safetensors", {"model.layers.0.x": 64})
    return path


# One at a time


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": math.nan},
        {"max_position_embeddings": math.inf},
        {"num_hidden_layers": 1e308},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": -4},
        {"num_attention_heads": 0, "head_dim": 0},
        {"rope_scaling": {"rope_type": "linear", "factor": math.nan}},
        {"rope_scaling": {"rope_type": "linear", "factor": 10**400}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        {"vision_config": {"patch_size": 0, "image_size": 224}},
        {"vision_config": {"image_size": math.inf}},
        {"vision_config": {"image_size": 224}, "mm_tokens_per_image": 0},
        {"attn_layer_indices": ["x", None, math.inf, 1]},
        {"hybrid_override_pattern": "M" * 10**6},
        {"layer_types": [[], {}, None, math.nan]},
    ],
)
def test_a_configuration_with_odd_numbers_is_counted_with_or_left_out(
    tmp_path: Path, config: dict[str, object]
) -> None:
    look_at(model(whole(tmp_path / "odd"), **config))


def test_a_number_of_5000_digits_is_a_damaged_file(tmp_path: Path) -> None:
    path = whole(tmp_path)
    (path / "config.json").write_text(f'{{"hidden_size": {"9" * 5000}}}')
    (path / "model.safetensors.index.json").write_text(f'{{"metadata": {{"total_size": {"9" * 5000}}}}}')
    said = "\n".join(look_at(path))
    assert "config.json is damaged" in said
    assert "model.safetensors.index.json is damaged" in said


def test_a_configuration_that_tells_no_layers_is_said_nothing_of(tmp_path: Path) -> None:
    wanted = Settings(max_model_len=4096)
    assert capacity.estimate(read_shape(whole(tmp_path), wanted), H200, wanted).cache.groups == ()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def immense(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)


def nested(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [pipe, loop, endless, immense, nested, Path.mkdir])
def test_a_file_that_is_none_is_named_or_passed_over(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    path = whole(tmp_path)
    (path / name).unlink(missing_ok=True)
    make(path / name)
    said = "\n".join(look_at(path))
    if name in ("config.json", "model.safetensors") and make is not Path.mkdir:
        assert f"{path / name} " in said


def test_directories_without_an_end_are_left_where_nothing_is_read(tmp_path: Path) -> None:
    path = whole(tmp_path / "deep")
    here = os.open(path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert look_at(path)
    # So deep a tree is more than pytest's own removal can take.
    while (path / "d").exists():
        (path / "d").rename(tmp_path / "next")
        if (tmp_path / "next/d").exists():
            (tmp_path / "next/d").rename(path / "d")
        (tmp_path / "next").rmdir()


def test_a_shape_that_multiplies_for_hours_is_no_shape(tmp_path: Path) -> None:
    path = whole(tmp_path)
    header = json.dumps({"a": {"dtype": "U8", "shape": [10**30] * 400_000, "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "has no shape" in "\n".join(look_at(path))


def test_a_template_that_opens_and_never_closes_is_read_once(tmp_path: Path) -> None:
    assert not profiles.of(About({"architectures": ["Qwen3ForCausalLM"]}, "{%" * 2_000_000)).tool_parser
    shown = "<tool_call>{%- if tools %}{{ tools | tojson }}{%- endif %}"
    assert profiles.of(About({"architectures": ["Qwen3ForCausalLM"]}, "{% x {% y {" + shown)).tool_parser


# Any number of them


@settings(max_examples=150)
@given(config=CONFIGS)
def test_any_configuration(tmp_path_factory: pytest.TempPathFactory, config: dict[str, object]) -> None:
    base = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 320,
    }
    look_at(whole(tmp_path_factory.mktemp("any"), **base | config))


CONTENTS = st.one_of(
    st.binary(max_size=60),
    ODD.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(("weight_map", "metadata", "size", "max_pixels", "chat_template", "total_size")), ODD
    ).map(lambda value: json.dumps(value).encode()),
    st.lists(st.sampled_from(NAMES), max_size=3).map(
        lambda names: json.dumps({"weight_map": dict(enumerate(map(str, names)))}).encode()
    ),
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries({"dtype": st.sampled_from(["U8", "F4", "?"]), "shape": ODD, "data_offsets": ODD}),
    ).map(lambda header: (text := json.dumps(header).encode()) and len(text).to_bytes(8, "little") + text),
)
ENTRIES = st.dictionaries(
    st.sampled_from(NAMES), st.one_of(CONTENTS, st.sampled_from([pipe, loop, endless, immense, nested, Path.mkdir]))
)


@settings(max_examples=120)
@given(entries=ENTRIES)
def test_any_directory(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, bytes | Callable[[Path], None]]
) -> None:
    path = tmp_path_factory.mktemp("any")
    for name, content in entries.items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            content(path / name)
    look_at(path)


# Metrics


METRICS = (
    "vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting",
    "vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:cache_config_info",
    "vllm:time_to_first_token_seconds_bucket",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e999", "²", "٣", "9" * 5000, "", "-1", "1_0", "0x1", "1" + " " * 50]),
    st.floats().map(str), st.integers(-10, 10**30).map(str), st.text(max_size=4),
)  # fmt: skip
LABELS = st.dictionaries(
    st.sampled_from(("le", "engine", "kv_cache_size_tokens", "block_size", "num_gpu_blocks")), VALUES, max_size=4
).map(lambda labels: ",".join(f'{name}="{value}"' for name, value in labels.items()))
LINES = st.builds(lambda name, labels, value: f"{name}{{{labels}}} {value}", st.sampled_from(METRICS), LABELS, VALUES)


@settings(max_examples=200)
@given(lines=st.lists(LINES, max_size=12), later=st.lists(LINES, max_size=6))
def test_any_metrics(lines: list[str], later: list[str]) -> None:
    first, second = load.read_metrics("\n".join(lines)), load.read_metrics("\n".join(lines + later))
    for found in (first, second):
        told = [found.running, found.waiting, found.cache_used, found.generated, found.prompted] if found else []
        assert all(math.isfinite(value) for value in told if value is not None)
    if first and second:
        waits = load.since(first.first_token, second.first_token)
        for share in (0.5, 0.9, 0.99):
            value = load.quantile(waits, share)
            assert value is None or in_seconds(value)


@pytest.mark.parametrize("value", ["NaN", "1e999", "-Inf"])
def test_a_gauge_that_is_no_number_is_none(value: str) -> None:
    assert gauge(f"vllm:num_requests_running {value}\n", "vllm:num_requests_running") is None


@pytest.mark.parametrize("tokens", ["²", "9" * 5000, "٣"])
def test_a_cache_of_a_size_that_is_no_number_is_unknown(tokens: str) -> None:
    line = f'vllm:cache_config_info{{kv_cache_size_tokens="{tokens}",block_size="16",num_gpu_blocks="{tokens}"}} 1.0\n'
    told = load.read_metrics(line + "vllm:num_requests_running 1.0\n")
    assert told is not None
    assert told.cache_tokens is None
