"""A shorter way to the first answer: what one process of vLLM has imported the next one does not import again.

Called before vLLM is imported. Whoever sets one of vLLM's variables means it, so they are only filled in. A standby is
an engine beside one that serves: it makes ready all that can be without touching the GPU, and waits for its turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
ENTRY = "vllm.entrypoints.cli.main"
# What a start reaches beyond the entry: the API server, and what is forked from it. A version may have it elsewhere.
SERVER = (
    *(f"vllm.entrypoints.cli.{name}" for name in (
        "serve", "openai", "launch", "benchmark.main", "collect_env", "download_kernels", "run_batch", "preload",
        "snapshot",
    )),
    "vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.anthropic.api_router", "vllm.v1.engine.async_llm",
    "model_hosting_container_standards.sagemaker", "uvicorn.protocols.http.httptools_impl", "websockets.server",
    "prometheus_fastapi_instrumentator",
)  # fmt: skip
FORKED = (
    "vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor",
    "vllm.distributed.elastic_ep.elastic_execute", "torch._inductor.compile_fx", "torch._dynamo.backends.distributed",
    "torch._inductor.choices", "torch._inductor.fx_passes.fuse_attention", "torch._inductor.fx_passes.quantization",
    "torch.export._trace", "compressed_tensors.offload", "sympy.combinatorics", "sympy.physics.units",
)  # fmt: skip
OF_KIND = {
    "cpu": ("vllm.v1.worker.cpu_worker", "vllm.compilation.backends", "vllm.compilation.passes.pass_manager"),
    # The two of compilation initialise CUDA: it would be spawned again, and the GPU is another's.
    "cuda": ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu.model_runner"),
}
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
ARCH_PRCTL, REQUEST, AMX = 158, 0x1023, 18  # a system call on x86-64, what it is to do, and with what
CHUNK = 16 << 20


def shorten() -> None:
    os.register_at_fork(after_in_child=forget_signals)
    kind = kind_of_engine()
    if kind == "cuda":
        os.environ.setdefault(METHOD, "fork")  # vLLM spawns all the same once CUDA is initialised
    if kind != "cpu":
        return
    request_amx()
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # here its cache can be written and never be read
    if METHOD not in os.environ and "LD_PRELOAD" not in os.environ:  # else somebody has an OpenMP of their own
        fork_on_cpu()


def kind_of_engine() -> str:
    """From the version, as vLLM does; "" where it cannot be told."""
    try:
        build = version("vllm").partition("+")[2]
    except PackageNotFoundError:
        return ""
    return "cuda" if re.fullmatch(r"(cu\d+)?", build) else build


def request_amx() -> None:
    """For this process and those forked from it, where the processor has it: Linux gives it to who asks.

    vLLM's attention takes it unasked. What torch compiles does ask; with --enforce-eager nothing is compiled, and the
    first request would end in an illegal instruction.
    """
    if os.uname().machine == "x86_64":
        ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, AMX)


def forget_signals() -> None:
    """A signal to a forked process would otherwise be heard by the event loop of the one before it."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def fork_on_cpu() -> None:
    """vLLM insists on spawn there, because of OpenMP: it reads its variables when it is loaded."""
    # By vLLM set when torch has read them already.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "1")
    real = multiprocessing.get_context
    plain: Any = real("fork")

    class Process(plain.Process):  # type: ignore[misc]
        def run(self) -> None:
            bind_threads()
            super().run()

    context = type("Context", (type(plain),), {"Process": Process})()
    vars(multiprocessing)["get_context"] = lambda method=None: context if method == "spawn" else real(method)


def bind_threads() -> None:
    """As OpenMP would have done from these variables, which vLLM sets for a worker."""
    places = os.environ.get("GOMP_CPU_AFFINITY") or os.environ.get("OMP_PLACES") or ""
    if cpus := [int(number) for number in re.findall(r"\d+", places)]:
        os.sched_setaffinity(0, cpus)
        sys.modules["torch"].set_num_threads(len(cpus))


def stand_by(words: list[str], ready: int, go: int) -> None:
    """Returns when it is this engine's turn; it never comes where the other end is closed."""
    os.set_inheritable(ready, False)
    os.set_inheritable(go, False)
    model = words[1] if len(words) > 1 else ""
    import_ahead(model)
    with contextlib.suppress(OSError):  # it would only be slower without
        read_ahead(model)
    os.write(ready, b"r")
    os.close(ready)
    if not os.read(go, 1):
        os._exit(0)
    os.close(go)


def import_ahead(model: str) -> None:
    importlib.import_module(ENTRY)
    kind = kind_of_engine()
    forks = kind in OF_KIND and os.environ.get(METHOD) != "spawn"
    forked = (*FORKED, *OF_KIND[kind], *modules_of(model)) if forks else ()
    for name in (*SERVER, *forked):
        with contextlib.suppress(Exception):  # where it is needed vLLM will say what is wrong with it
            importlib.import_module(name)


def modules_of(model: str) -> Iterator[str]:
    """The modules of the model's architectures, as vLLM's own registry has them."""
    try:
        with open(os.path.join(model, "config.json")) as file:
            architectures = json.load(file)["architectures"]
        known = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry.models
        yield from [known[name].module_name for name in architectures if name in known]
    except Exception:
        return  # the same


def read_ahead(model: str) -> None:
    """The weights into the page cache, as far as they fit beside what the host works with."""
    room, buffer = available() // 2, bytearray(CHUNK)
    for path in weights(model):
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            room -= status.st_size
            if room < 0 or not stat.S_ISREG(status.st_mode):
                return
            while file.readinto(buffer):
                pass


def weights(model: str) -> list[str]:
    if not os.path.isdir(model):
        return [model] if model.endswith(WEIGHTS) else []
    return sorted(os.path.join(model, name) for name in os.listdir(model) if name.endswith(WEIGHTS))


def available() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
