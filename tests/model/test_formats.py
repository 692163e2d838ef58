"""Formats of checkpoints: recognised from their files, and refused where vLLM or the hardware cannot run them."""

from __future__ import annotations

import dataclasses

import pytest

from installer.model.formats import check_format, recognise
from installer.model.model_about import About
from installer.spec.facts import Gpu
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from tests.checks.test_preflight import HEALTHY

SAFE = ("config.json", "model.safetensors")
W4A16 = {"weights": {"num_bits": 4, "type": "int"}}
W8A8 = {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8, "type": "float"}}


def quantized(**described: object) -> About:
    return About({"architectures": ["Qwen3ForCausalLM"], "quantization_config": described}, names=frozenset(SAFE))


FORMATS = {
    "bfloat16": About({"torch_dtype": "bfloat16"}, names=frozenset(SAFE)),
    "FP8": quantized(quant_method="fp8", weight_block_size=[128, 128]),
    "compressed-tensors w4a16": quantized(quant_method="compressed-tensors", config_groups={"group_0": W4A16}),
    "compressed-tensors w8a8 (FP8)": quantized(quant_method="compressed-tensors", config_groups={"group_0": W8A8}),
    "AWQ 4-bit": quantized(quant_method="awq", bits=4),
    "GPTQ 8-bit": quantized(quant_method="gptq", bits=8),
    "MXFP4": quantized(quant_method="mxfp4"),
    "ModelOpt NVFP4": quantized(quant_method="modelopt", quant_algo="NVFP4"),
    "ModelOpt FP8": About({}, quantization={"quantization": {"quant_algo": "FP8"}}, names=frozenset(SAFE)),
    "bitsandbytes": quantized(quant_method="bitsandbytes", load_in_4bit=True),
    "GGUF": About({}, names=frozenset(("config.json", "model-Q4_K_M.gguf"))),
}


@pytest.mark.parametrize("name", FORMATS)
def test_parity_row_11_formats_are_recognised(name: str) -> None:
    assert recognise(FORMATS[name]).name == name


def problems(
    name: str,
    kind: str = "cuda",
    capability: tuple[int, int] = (9, 0),
    settings: Settings | None = None,
    flags: str = "",
) -> list[Problem]:
    gpu = Gpu("nvidia", "Some GPU", capability=capability, memory_total=80 * 2**30)
    facts = dataclasses.replace(HEALTHY, gpus=(gpu,), cpu_flags=frozenset(flags.split()))
    return list(check_format(FORMATS[name], "org/model", kind, settings or Settings(), facts))


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"bitsandbytes", "GGUF"}))
def test_what_runs_is_not_refused(name: str) -> None:
    assert problems(name) == []


@pytest.mark.parametrize(
    ("name", "kind", "capability", "why"),
    [
        ("bitsandbytes", "cuda", (9, 0), "has no such method"),
        ("MXFP4", "cuda", (7, 5), "it needs compute capability 8.0, and Some GPU has 7.5"),
        ("ModelOpt FP8", "cuda", (7, 5), "it needs compute capability 8.0"),
        ("ModelOpt NVFP4", "cpu", (9, 0), "for GPUs only"),
        ("FP8", "cpu", (9, 0), "needs AMX"),
        ("GGUF", "cuda", (9, 0), "vllm-gguf-plugin"),
    ],
)
def test_parity_row_11_what_cannot_run_is_refused_with_what_would(
    name: str, kind: str, capability: tuple[int, int], why: str
) -> None:
    (problem,) = problems(name, kind, capability)
    assert problem.fatal
    assert why in problem.why
    assert problem.remedy.startswith("choose")
    assert "AWQ" in problem.remedy


def test_what_is_offered_instead_runs_here() -> None:
    (problem,) = problems("ModelOpt FP8", capability=(7, 5))
    assert problem.remedy == "choose another version of the model: unquantized, FP8, compressed-tensors, AWQ, GPTQ"


def test_amx_runs_fp8_on_a_processor() -> None:
    assert problems("FP8", "cpu", flags="avx2 amx_tile") == []


def test_rocm_has_fewer_methods() -> None:
    unknown = quantized(quant_method="moe_wna16")
    (problem,) = check_format(unknown, "org/model", "rocm", Settings(), HEALTHY)
    assert "NVIDIA GPUs only" in problem.why


def test_a_method_about_to_go_needs_its_flag() -> None:
    old = quantized(quant_method="fbgemm_fp8")
    (problem,) = check_format(old, "org/model", "cuda", Settings(), HEALTHY)
    assert "--allow-deprecated-quantization" in problem.why
    assert (
        list(check_format(old, "org/model", "cuda", Settings(vllm_args=("--allow-deprecated-quantization",)), HEALTHY))
        == []
    )


def test_an_architecture_that_vllm_dropped_is_refused_and_an_unknown_one_only_said() -> None:
    dropped = About({"architectures": ["BaichuanForCausalLM"]}, names=frozenset(SAFE))
    (problem,) = check_format(dropped, "org/model", "cuda", Settings(), HEALTHY)
    assert problem.fatal
    assert "0.23.0 was its last version" in problem.why
    new = About({"architectures": ["NobodyKnowsItForCausalLM"]}, names=frozenset(SAFE))
    (problem,) = check_format(new, "org/model", "cuda", Settings(), HEALTHY)
    assert not problem.fatal


def test_nothing_is_claimed_of_another_vllm() -> None:
    assert problems("bitsandbytes", settings=Settings(vllm_version="0.99.0")) == []
