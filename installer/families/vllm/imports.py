"""What vLLM's wheels need, what an installed one must be able to import, and how large it is."""

from __future__ import annotations

from installer.families.family import Imports

# Installed size with bytecode, from which the preflight of the disk works (du: cuda 7.9 GiB, cpu 3.2).
BYTES = {"cuda": 17 << 29, "rocm": 24 << 30, "cpu": 7 << 29}

# Below it one of the wheels does not install: llguidance asks for 2.31, and tilelang on aarch64 for 2.34.
GLIBC = {
    "cuda": {"x86_64": (2, 31), "aarch64": (2, 34)},
    "rocm": {"x86_64": (2, 31)},
    "cpu": {"x86_64": (2, 31), "aarch64": (2, 31)},
}
PYTHONS = {"cuda": range(11, 15), "rocm": range(12, 13), "cpu": range(11, 15)}

# What the import check must get through, and what it imports besides for the bytecode of what a start needs.
ENTRY = "vllm.entrypoints.cli.main"
WORKER = {"cuda": "vllm.v1.worker.gpu_worker", "rocm": "vllm.v1.worker.gpu_worker", "cpu": "vllm.v1.worker.cpu_worker"}
# What the first request reaches on a GPU and a start does not import: with clashing cuda.bindings only these fail.
KERNELS = {
    "cuda": (
        "flashinfer",
        "flashinfer.sampling",
        "vllm.v1.attention.backends.flashinfer",
        "vllm.v1.sample.ops.topk_topp_sampler",
    )
}
NEEDED = ("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "torch._inductor.compile_fx")
# Where a library of the system is missing, vLLM's CPU build imports all the same, without its own operators.
OPERATORS = {"cpu": ("torch:ops._C.init_cpu_memory_env",)}
USEFUL = (
    "vllm.compilation.backends",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen3_vl",  # the default model; not for the CPU engine, which has no torchvision
    "uvicorn.protocols.http.httptools_impl",
    "prometheus_fastapi_instrumentator",
)
IMPORTS = Imports(
    package="vllm",
    entry=ENTRY,
    needed={kind: (*NEEDED, WORKER[kind], *OPERATORS.get(kind, ()), *KERNELS.get(kind, ())) for kind in WORKER},
    useful=USEFUL,
)
