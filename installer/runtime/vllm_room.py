"""How much room for its cache an engine has measured on a GPU is known to the next one that is started alike.

vLLM measures it at every start, for seconds. Its own start-up plan tells starts apart by the compiled graph, which
says nothing of the share of the GPU; here it is by all that was said and all that is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
from typing import Any

VARIABLES = ("VLLM_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "NCCL_", "FLASHINFER_")
# What an answer is called, who may ask and until when takes no memory.
NO_MEMORY = (
    "--served-model-name", "--host", "--port", "--shutdown-timeout", "--allowed-media-domains", "--tool-call-parser",
    "--reasoning-parser",
)  # fmt: skip
WARM = 2  # measured so often: what compiling takes at the first start is room at all others
KEPT = 16  # files


def remember(words: list[str], weights: list[str]) -> None:
    """For the workers that are forked from this process."""
    try:
        worker = importlib.import_module("vllm.v1.worker.gpu_worker").Worker
        determine, warm_up = worker.determine_available_memory, worker.compile_or_warm_up_model
    except (ImportError, AttributeError):
        return
    said = (said_by(words), said_by_variables(), [(path, os.stat(path).st_size) for path in weights])

    def determine_or_remember(self: Any) -> Any:
        if self.cache_config.kv_cache_memory_bytes is None:
            with contextlib.suppress(Exception):  # then it is measured
                self.room = Room(said, self)
                self.cache_config.kv_cache_memory_bytes = self.room.take()
        return determine(self)

    def warm_up_and_keep(self: Any, *given: Any, **named: Any) -> Any:
        done = warm_up(self, *given, **named)
        with contextlib.suppress(Exception):  # the next start measures it again
            self.room.keep(self)
        return done

    worker.determine_available_memory, worker.compile_or_warm_up_model = determine_or_remember, warm_up_and_keep


def said_by(words: list[str]) -> list[str]:
    kept, is_kept = list[str](), True
    for word in words:
        if word.startswith("--"):
            is_kept = word not in NO_MEMORY
        if is_kept:
            kept.append(word)
    return kept


def said_by_variables() -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in os.environ.items() if name.startswith(VARIABLES))


class Room:
    """Of one worker: a file, which is gone while a start relies on it. Should that fail, the next one measures."""

    def __init__(self, said: Any, worker: Any) -> None:
        torch, vllm = importlib.import_module("torch"), importlib.import_module("vllm")
        gpu = torch.cuda.get_device_properties(worker.device)
        versions = (vllm.__version__, torch.__version__, torch.version.cuda, driver())
        there = (versions, gpu.name, gpu.total_memory, str(worker.device))
        digest = hashlib.sha256(json.dumps((said, there)).encode()).hexdigest()
        self.path = os.path.join(os.environ["VLLM_CACHE_ROOT"], "room", f"{digest}.{worker.rank}")
        self.size: int | None = None
        self.times = 0

    def take(self) -> int | None:
        try:
            with open(self.path) as file:
                self.size, self.times = map(int, file.read().split())
            os.remove(self.path)
        except (OSError, ValueError):
            return None
        if self.times < WARM:
            self.size = None
        return self.size

    def keep(self, worker: Any) -> None:
        """Not where others are on the GPU: what they took meanwhile was measured as if it were this engine's."""
        if not is_alone():
            return
        size = worker.available_kv_cache_memory_bytes if self.size is None else self.size
        folder, written = os.path.dirname(self.path), f"{self.path}.{os.getpid()}"
        os.makedirs(folder, exist_ok=True)
        with open(written, "w") as file:
            file.write(f"{int(size)} {min(self.times + (self.size is None), WARM)}")
        os.replace(written, self.path)
        files = sorted((os.path.join(folder, name) for name in os.listdir(folder)), key=os.path.getmtime)
        for path in files[:-KEPT]:
            os.remove(path)


def nvml() -> Any:
    library = importlib.import_module("vllm.third_party.pynvml")
    library.nvmlInit()
    return library


def driver() -> str:
    return str(nvml().nvmlSystemGetDriverVersion())


def is_alone() -> bool:
    """Whether each GPU that is let in has one process."""
    library = nvml()
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    return all(len(library.nvmlDeviceGetComputeRunningProcesses(handle)) == 1 for handle in handles)
