"""Which models fit: computed for this host or for hardware that is described, as the capacity estimate has it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from installer.base.errors import UsageError
from installer.cli import cli
from installer.memory.capacity import Outlook, judge
from installer.memory.device import Device
from installer.memory.recommend import SMALLER, Fit, Hardware, hardware_of, notes, parse_hardware, recommend, with_gpus
from installer.model import profiles
from installer.spec.facts import Gpu
from installer.spec.settings import Settings
from tests.checks.test_preflight import CUDA, HEALTHY, MI300
from tests.memory.test_capacity import on

GIB = 1024**3
NAMES = {model.id for family in profiles.load_profiles().families for model in family.models}


def fits(hardware: str, context: int | None = None) -> dict[str, Fit]:
    described = parse_hardware(hardware)
    return {fit.model.id: fit for fit in recommend(described, with_gpus(HEALTHY, described), context)}


@pytest.mark.parametrize(
    ("text", "count", "gib"),
    [("24GiB", 1, 24), ("2x24GiB", 2, 24), ("8 x 141 GB", 8, 141), ("80", 1, 80), ("1x79.5g", 1, 79.5)],
)
def test_hardware_is_described_in_few_characters(text: str, count: int, gib: float) -> None:
    assert parse_hardware(text) == Hardware("cuda", count, int(gib * GIB), "GPU")


@pytest.mark.parametrize("text", ["", "x", "2x", "x24", "0x24", "65x24", "24TB", "-1x24", "2x0.5", "2x24GiB;ls"])
def test_what_is_no_hardware_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--gpu"):
        parse_hardware(text)


def test_parity_row_30_a_table_of_models_for_the_hosts_own_gpus() -> None:
    hardware = hardware_of(CUDA, Settings())
    assert (hardware.kind, hardware.count, hardware.name) == ("cuda", 1, "NVIDIA H200")
    found = {fit.model.id: fit for fit in recommend(hardware, CUDA)}
    assert found.keys() == NAMES
    assert found["Qwen/Qwen3-VL-8B-Instruct"].runs
    assert found["deepseek-ai/DeepSeek-V3.1"].answer is Outlook.CANNOT


def test_a_row_is_what_the_capacity_estimate_says() -> None:
    row = fits("24GiB", 8192)["Qwen/Qwen3-8B"]
    found = on("qwen3-8b", 8192, device=Device("cuda", 24 * GIB, 0.95))
    verdict = judge(found, 8192)
    assert (row.answer, row.largest) == (verdict.answer, verdict.largest)
    assert row.requests == int(found.cache.requests(verdict.available, 8192))
    assert row.requests > 1


def test_parity_row_31_several_gpus_and_quantized_models_reach_further() -> None:
    one, two = fits("24GiB"), fits("2x24GiB")
    assert one["Qwen/Qwen2.5-32B-Instruct-AWQ"].gpus == 1
    assert not fits("24GiB", 32768)["Qwen/Qwen2.5-32B-Instruct-AWQ"].runs
    assert two["Qwen/Qwen2.5-32B-Instruct-AWQ"].gpus == 2
    assert two["Qwen/Qwen2.5-32B-Instruct-AWQ"].command().endswith("--tensor-parallel-size 2")
    assert two["Qwen/Qwen3-8B"].gpus == 2, "its whole context is close on one"
    assert fits("2x24GiB", 16384)["Qwen/Qwen3-8B"].gpus == 1, "no more GPUs than it takes"
    assert not two["Qwen/Qwen3-32B"].runs


def test_those_that_fit_come_first_and_the_largest_of_them() -> None:
    rows = list(fits("48GiB").values())
    order = [(not row.runs, row.reduced, row.is_close) for row in rows]
    assert order == sorted(order)
    fitting = [row.model.parameters for row in rows if row.answer is Outlook.FITS and not row.reduced]
    assert fitting == sorted(fitting, reverse=True)


def test_less_context_is_offered_where_most_uses_want_more_than_fits() -> None:
    row = fits("24GiB")["Qwen/Qwen3-VL-8B-Instruct"]
    assert row.reduced, f"24 GiB hold {row.largest} tokens of it: was the estimate changed?"
    assert row.answer is Outlook.FITS
    assert row.context in SMALLER
    assert judge_alone(row.context * 2) is not Outlook.FITS
    assert not fits("24GiB", 32768)["Qwen/Qwen3-VL-8B-Instruct"].runs, "what was asked for is not made smaller"
    described = parse_hardware("24GiB")
    assert any("less context" in note for note in notes(described, HEALTHY, recommend(described, HEALTHY)))


def judge_alone(context: int) -> Outlook:
    return fits("24GiB", context)["Qwen/Qwen3-VL-8B-Instruct"].answer


@pytest.mark.parametrize(("less", "more"), [("16", "24"), ("24", "80"), ("2x24", "4x24"), ("80", "8x141")])
def test_more_memory_never_fits_less(less: str, more: str) -> None:
    small, large = fits(less), fits(more)
    assert all(large[name].runs for name, row in small.items() if row.runs)
    assert sum(row.runs for row in large.values()) > sum(row.runs for row in small.values())


def test_a_context_beyond_the_models_own_is_judged_at_its_limit() -> None:
    assert fits("80", 10**6)["Qwen/Qwen3-8B"].context == 40960


def test_what_the_gpu_cannot_run_is_not_recommended() -> None:
    turing = dataclasses.replace(CUDA, gpus=(Gpu("nvidia", "Tesla T4", capability=(7, 5), memory_total=16 * GIB),))
    found = {fit.model.id for fit in recommend(hardware_of(turing, Settings()), turing)}
    assert "openai/gpt-oss-20b" not in found
    assert "Qwen/Qwen2.5-7B-Instruct-AWQ" in found


def test_a_host_without_a_gpu_gets_an_honest_answer() -> None:
    hardware = hardware_of(HEALTHY, Settings())
    found = recommend(hardware, HEALTHY)
    assert hardware.kind == "cpu"
    assert not any(fit.takes_images for fit in found)
    assert not any(fit.format == "FP8" for fit in found)
    assert found[0].runs
    assert "answers are slow" in notes(hardware, HEALTHY, found)[0]


def test_a_broken_driver_and_a_host_that_is_too_small_are_said() -> None:
    broken = dataclasses.replace(HEALTHY, nvidia_error="version mismatch", node_memory=2 * GIB)
    hardware = hardware_of(broken, Settings())
    said = "\n".join(notes(hardware, broken, recommend(hardware, broken)))
    assert "version mismatch" in said
    assert "none of them fits" in said


def test_equal_gpus_are_counted_and_amds_too() -> None:
    other = dataclasses.replace(CUDA.gpus[0], name="NVIDIA L4", memory_total=24 * GIB, capability=(8, 9))
    assert hardware_of(dataclasses.replace(CUDA, gpus=(other, *CUDA.gpus, *CUDA.gpus)), Settings()).count == 2
    assert hardware_of(dataclasses.replace(HEALTHY, gpus=(MI300,)), Settings()).kind == "rocm"


def test_the_verb_prints_a_table_and_json() -> None:
    shown = CliRunner().invoke(cli, ["models", "recommend", "--gpu", "2x24GB", "--context", "16k"])
    assert shown.exit_code == 0
    (row,) = (line for line in shown.stdout.splitlines() if line.startswith("Qwen/Qwen3-8B "))
    assert row.split()[1:] == ["bfloat16", "15.3", "GiB", "1", "16384", "2", "34704"]
    assert "do not fit: deepseek-ai/DeepSeek-V3.1" in shown.stderr
    given = json.loads(CliRunner().invoke(cli, ["models", "recommend", "--gpu", "24", "--json"]).stdout)
    assert given["hardware"] == "1 x GPU, 24 GiB each"
    assert {row["model"] for row in given["models"]} == NAMES
    assert given["models"][0]["command"].startswith("sudo vllm-install deploy --model ")
    assert given["models"][-1]["command"] is None
