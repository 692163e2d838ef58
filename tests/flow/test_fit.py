"""What fits, as far as the flow decides it: which weights are counted, and which report of an earlier start counts."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.report import Report
from installer.base.sizes import GIB
from installer.flow import fit
from installer.memory.capacity import Outlook, Verdict
from installer.memory.device import Device
from installer.model.model_about import About
from installer.spec.calibration import Calibration
from installer.spec.facts import Facts
from installer.spec.model import ModelFile
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Placed, Target
from tests.checks.test_preflight import CUDA, GB10, H200, HEALTHY, SPARK
from tests.kit.targets import target

MEASURED = Calibration(available=1, tokens=2, context=3)


def test_weights_that_are_not_here_are_counted_but_for_what_vllm_may_leave_out() -> None:
    """A tied head lies in the files and is not loaded: a twentieth of a small model."""
    files = (ModelFile("a.safetensors", 400, "d"), ModelFile("b.safetensors", 600, "d"), ModelFile("c.bin", 999, "d"))
    assert fit._listed(dataclasses.replace(target().model, files=files)) == 950


def test_the_memory_of_a_gpu_that_has_none_is_the_hosts() -> None:
    device = fit._device(target(), GB10)
    assert device == Device("cuda", SPARK.memory_total, Settings.gpu_memory_utilization, "NVIDIA GB10", is_unified=True)


def test_what_fits_is_reckoned_for_the_smallest_of_the_gpus_that_are_used() -> None:
    sizes = (80 * GIB, 40 * GIB, 20 * GIB)
    gpus = tuple(dataclasses.replace(H200, uuid=f"GPU-{size}", memory_total=size) for size in sizes)
    facts = dataclasses.replace(CUDA, gpus=gpus)
    found = [fit._device(target(Settings(tensor_parallel_size=number)), facts) for number in (1, 2, 3)]
    assert [device and device.memory for device in found] == list(sizes)


def placed(*names: str) -> Target:
    return dataclasses.replace(target(), gpus=tuple(Placed(f"GPU-{number}", name) for number, name in enumerate(names)))


@pytest.mark.parametrize(
    ("before", "now", "counts"),
    [
        (target(), target(), True),
        (target(), target(Settings(max_model_len=2048)), True),
        (target(), target(Settings(gpu_memory_utilization=0.5)), True),
        (target(), target(Settings(port=8001, host="0.0.0.0", drain=9)), True),
        (target(), target(Settings(vllm_args=("--enforce-eager",))), False),
        (target(), target(Settings(tensor_parallel_size=2)), False),
        (target(), target(kind="rocm"), False),
        (placed("H200"), placed("H200"), True),
        (placed("H200"), placed("A100"), False),
        (placed("H200"), placed("H200", "H200"), False),
        (target(), placed("H200"), True),
        (placed("H200"), target(), False),
    ],
)  # fmt: skip
def test_what_an_earlier_start_measured_counts_for_the_same_but_for_context_and_share(
    before: Target, now: Target, counts: bool
) -> None:
    state = State("qwen3vl", proved=before, calibration=MEASURED)
    assert fit._calibration(now, state) == (MEASURED if counts else None)


@pytest.mark.parametrize(
    ("answer", "most", "refused", "warned"),
    [
        (Outlook.FITS, 2048, None, 0),
        (Outlook.CLOSE, 2048, None, 1),
        (Outlook.CANNOT, 512, "ask for 512 at most; nothing was changed", 0),
        (Outlook.CANNOT, 0, "take a smaller model", 0),
    ],
)
def test_only_what_cannot_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, answer: Outlook, most: int, refused: str | None, warned: int
) -> None:
    said: list[str] = []
    report = Report()
    report.warn = said.append  # type: ignore[method-assign]
    monkeypatch.setattr(fit, "estimate", lambda *_: "known")
    monkeypatch.setattr(fit.capacity, "judge", lambda *_: Verdict(answer, 1024, 1, 1, most, 4096))
    wanted = target(Settings(max_model_len=1024))
    with pytest.raises(Refused) if refused else nullcontext() as caught:
        fit.check_context(wanted, HEALTHY, State("qwen3vl"), Host(), report)
    assert len(said) == warned
    if refused and caught:
        assert refused in caught.value.hint


ONE_B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16", "max_position_embeddings": 4096,
}  # fmt: skip


def sglang(gib: int, kind: str = "cpu", **chosen: Any) -> Target:
    """With weights that are not here yet."""
    settings = Settings(engine_family="sglang", max_model_len=1024, **chosen)
    weights = ModelFile("model.safetensors", gib * 2**30 * 20 // 19, "d")
    wanted = target(settings, kind=kind)
    return dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, files=(weights,)))


def judged(wanted: Target, host: Host, facts: Facts = HEALTHY) -> str:
    said: list[str] = []
    report = Report()
    report.note = said.append  # type: ignore[method-assign]
    try:
        fit.check_context(wanted, facts, State("qwen3vl"), host, report, About(ONE_B))
    except Refused as refused:
        return f"{refused.message} -> {refused.hint}"
    return "".join(said)


def test_of_sglang_it_is_said_what_is_known_and_refused_what_its_share_cannot_hold(host: Host) -> None:
    """Its share is of weights and cache together; on the processor a tenth of 64 GiB, where nobody chose one."""
    fits = "SGLang has 6.4 GiB at most for 2.0 GiB of weights and its cache; which context fits is not known"
    assert judged(sglang(2), host) == fits
    refused = "the weights alone take 8.0 GiB, and SGLang would have 6.4 GiB -> choose --gpu-memory-utilization 0.14"
    assert judged(sglang(8), host).startswith(refused)
    assert "at most for 8.0 GiB" in judged(sglang(8, gpu_memory_utilization=0.5), host)
    assert "take a smaller model" in judged(sglang(70), host)
    assert "140.0 GiB at most for 130.0 GiB" in judged(sglang(130, "cuda"), host, CUDA), "of a GPU it chooses its share"
    assert "take a smaller model" in judged(sglang(150, "cuda"), host, CUDA)


@pytest.mark.parametrize("words", ["--quantization fp8", "--dtype float32", "--quant fp8", "--cpu-offload-gb 4"])
def test_of_weights_that_take_other_room_than_their_files_nothing_is_said(host: Host, words: str) -> None:
    assert judged(sglang(70, sglang_args=tuple(words.split())), host) == ""


def test_what_was_never_measured_or_never_proved_counts_for_nothing() -> None:
    assert fit._calibration(target(), State("qwen3vl", proved=target())) is None
    assert fit._calibration(target(), State("qwen3vl", calibration=MEASURED)) is None
