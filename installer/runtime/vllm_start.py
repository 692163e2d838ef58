"""A shorter way to the first answer: what one process of vLLM has imported the next one does not import again.

Called before vLLM is imported. Whoever sets one of vLLM's variables means it, so they are only filled in. A standby is
an engine beside one that serves: it makes ready all that can be without touching the GPU, its processes too, and waits
for its turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import re
import select
import signal
import stat
import sys
import time
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
FREED_WITHIN = 10.0  # seconds from the end of an engine until the memory of its GPUs is free
STEADY = 3  # looks at it, a tenth of a second apart, that find no change
SMALLEST = 256 << 20  # what an engine holds at the least


def shorten(words: list[str]) -> bool:
    """Says whether this engine's processes are forked, and so have what is imported here."""
    os.register_at_fork(after_in_child=forget_signals)
    forks = prepare_to_fork()
    if forks:
        import_ahead(words, forks=True)
    return forks


def prepare_to_fork() -> bool:
    kind = kind_of_engine()
    if kind == "cuda":
        return os.environ.setdefault(METHOD, "fork") == "fork"  # vLLM spawns all the same once CUDA is initialised
    if kind != "cpu":
        return False
    request_amx()
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # here its cache can be written and never be read
    if METHOD in os.environ or "LD_PRELOAD" in os.environ:  # somebody has an OpenMP of their own
        return False
    fork_on_cpu()
    return True


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


class Turn:
    """Of an engine that stands by: each of its processes that comes so far waits for it, and the first says so."""

    def __init__(self, ready: int, go: int) -> None:
        self.ready, self.go = ready, go
        self.has_come = False
        for descriptor in (ready, go):
            os.set_inheritable(descriptor, False)

    def wait(self) -> None:
        """Returns when it is this engine's turn; it never comes where the other end is closed."""
        if self.has_come:
            return
        with contextlib.suppress(OSError):  # who listened has heard it from another process
            os.write(self.ready, b"r")
        os.close(self.ready)
        told = select.poll()
        told.register(self.go, select.POLLIN)
        if not told.poll()[0][1] & select.POLLIN:
            os._exit(0)
        os.close(self.go)  # with the word in it, for the other processes
        self.has_come = True


def stand_by(words: list[str], turn: Turn, *, forks: bool) -> None:
    """Where its processes are forked, it waits in the last of them; else before there is any."""
    if not forks:
        import_ahead(words, forks=False)
    with contextlib.suppress(OSError):  # it would only be slower without
        read_ahead(model_of(words))
    # Another executor than vLLM's own (Ray) makes workers that know nothing of the turn.
    if not forks or any(word.startswith("--dist") for word in words) or not wait_in_workers(turn):
        turn.wait()


def wait_in_workers(turn: Turn) -> bool:
    """Before any of them is made, so before a GPU is touched. What is spawned would not know of it: that waits here."""
    try:
        wrapper = importlib.import_module("vllm.v1.worker.worker_base").WorkerWrapperBase
        init_worker, get_context = wrapper.init_worker, multiprocessing.get_context
    except (ImportError, AttributeError):
        return False

    def init_when_told(*given: Any, **named: Any) -> Any:
        before = memory_in_use()
        turn.wait()
        await_memory(before)
        return init_worker(*given, **named)

    def get_context_when_told(method: str | None = None) -> Any:
        context = get_context(method)
        if context.get_start_method() != "fork":
            turn.wait()
        return context

    wrapper.init_worker = init_when_told
    vars(multiprocessing)["get_context"] = get_context_when_told
    return True


def memory_in_use() -> int:
    """Of all NVIDIA GPUs that are let in; 0 where nobody tells."""
    try:
        nvml = importlib.import_module("vllm.third_party.pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return sum(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    except Exception:
        return 0  # as on a host without any


def await_memory(before: int) -> None:
    """A driver frees what a process held some moments after its end; vLLM looks once, and wants to find it free."""
    end = time.monotonic() + FREED_WITHIN
    last, seen = before, 0
    while before and seen < STEADY and time.monotonic() < end:
        used = memory_in_use()
        seen = seen + 1 if used == last and used < before - SMALLEST else 0
        last = used
        time.sleep(0.1)


def import_ahead(words: list[str], *, forks: bool) -> None:
    importlib.import_module(ENTRY)
    kind = kind_of_engine()
    forked = (*FORKED, *OF_KIND[kind], *modules_of(model_of(words))) if forks else ()
    for name in (*SERVER, *forked):
        with contextlib.suppress(Exception):  # where it is needed vLLM will say what is wrong with it
            importlib.import_module(name)
    if forks and kind == "cuda":
        with contextlib.suppress(Exception):  # it is measured
            importlib.import_module("vllm_room").remember(words, weights(model_of(words)))
    if forks and kind == "cpu":
        with contextlib.suppress(Exception):  # what this processor can do is tried out by compiling for it
            importlib.import_module("torch._inductor.cpu_vec_isa").pick_vec_isa()
    # A start collects garbage a dozen times, in each process; what is imported never is any.
    gc.collect()
    gc.freeze()


def model_of(words: list[str]) -> str:
    return words[1] if len(words) > 1 else ""


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
