"""What vLLM needs a CUDA compiler for, and how it is told to do without: variables and flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from installer.base.language import mark, tr
from installer.runtime import vllm_flags
from installer.spec.toolkit import NONE, Toolkit

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# vLLM asks there whether more kernels could be fetched. Nothing is fetched while a service runs: it hears no at once.
NO_DOWNLOADS = {"FLASHINFER_CUBINS_REPOSITORY": "http://127.0.0.1:9/"}
OFF = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"}
# Compiled while several GPUs wait for each other. Where these share multicast, vLLM does not ask whether it can be.
NEVER = {"VLLM_ALLREDUCE_USE_FLASHINFER": "0"}
# Compiled only once requests come in; without a compiler vLLM leaves it alone.
NEVER_LATE = {"VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER": "0"}
COST = mark("FlashInfer's sampler and DeepGEMM are off, vLLM's own kernels do their work")
# On this generation vLLM prefers FlashInfer's attention, and does not ask whether it can be compiled.
BLACKWELL = 10
HOPPER = 9
ATTENTION, MLA_ATTENTION = "FLASH_ATTN", "TRITON_MLA"
# Sizes of steps for which vLLM records CUDA graphs at each start; a step in between is filled up to the next. By itself
# it takes every 8th number, then every 16th: here they lie close where computing decides and not reading the weights.
GRAPHS = (1, 2, 4, *range(8, 32, 8), *range(32, 257, 16), *range(320, 513, 64))
SAY_GRAPHS = (
    "--cudagraph-capture-sizes", "--max-cudagraph-capture-size", "--compilation-config", "--optimization-level", "-O",
    "--performance-mode", "--speculative-config", "--enforce-eager",
)  # fmt: skip


def environment(toolkit: Toolkit, engine: Path) -> dict[str, str]:
    if toolkit.mode == NONE:
        return {"CUDA_HOME": toolkit.home, **OFF, **NEVER, **NO_DOWNLOADS}
    path = {"PATH": f"{engine}/bin:{SYSTEM_PATH}"}  # for ninja
    return {"CUDA_HOME": toolkit.home, **path, **NEVER, **NEVER_LATE, **NO_DOWNLOADS}


def kernels(toolkit: Toolkit, given: Sequence[str]) -> list[str]:
    """vLLM's flags for whose kernels it takes, but for those that the user gives."""
    words, flags = [], vllm_flags.given(given)
    if toolkit.attention and flags.keys().isdisjoint(("--attention-backend", "--attention-config")):
        words += ["--attention-backend", toolkit.attention]
    if toolkit.mode != NONE and not any("flashinfer" in word for word in (*given, *flags)):
        words.append("--no-enable-flashinfer-autotune")
    return words


def graphs(toolkit: Toolkit, given: Sequence[str]) -> list[str]:
    """vLLM's flags for which sizes of steps it records, unless the user says anything of it.

    Up to twice as many tokens as there are requests in a step, as vLLM has it; on Blackwell it has another limit.
    """
    flags = vllm_flags.given(given)
    is_blackwell = toolkit.attention or any(each.startswith(f"{BLACKWELL}.") for each in toolkit.capabilities.split())
    if is_blackwell or not flags.keys().isdisjoint(SAY_GRAPHS):
        return []
    requests = flags.get("--max-num-seqs", "")
    largest = min(2 * int(requests), GRAPHS[-1]) if requests.isdecimal() and int(requests) else GRAPHS[-1]
    return ["--cudagraph-capture-sizes", *(str(size) for size in GRAPHS if size < largest), str(largest)]


def attention(capabilities: Sequence[tuple[int, int]], is_mla: Callable[[], bool]) -> str:
    """What attends where nothing can be compiled; "" where vLLM's own choice needs no compiler."""
    if not any(major == BLACKWELL for major, _ in capabilities):
        return ""
    return MLA_ATTENTION if is_mla() else ATTENTION


def pays(capabilities: Sequence[tuple[int, int]], is_dense_fp8: Callable[[], bool]) -> bool:
    """DeepGEMM for FP8 on one GPU of this generation, and nothing else that was measured."""
    return [major for major, _ in capabilities] == [HOPPER] and is_dense_fp8()


def describe(toolkit: Toolkit) -> str:
    if toolkit.mode != NONE:
        return tr("CUDA toolkit: {path}; a first start compiles kernels, for minutes", path=toolkit.home)
    said = tr("CUDA toolkit: none; {cost}", cost=tr(COST))
    return said + (tr("; attention by {backend}", backend=toolkit.attention) if toolkit.attention else "")
