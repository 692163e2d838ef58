"""The room for the cache that an engine measured on its GPU, and when the next one takes it as known."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from installer.runtime import vllm_room

MEASURED = 80_000_000_000
WORDS = ["serve", "/models/a", "--max-model-len", "32768"]


class Gpu:
    """What vLLM, torch and NVML say in one process: how much room is measured, and who else is on the GPU."""

    def __init__(self) -> None:
        self.measured, self.processes, self.driver, self.total = MEASURED, [[1]], "580.1", 140 << 30
        self.device, self.fails = "cuda:0", False

    def start(
        self, words: list[str], weights: list[str], *, given: int | None = None, rank: int = 0
    ) -> tuple[int, bool]:
        """How much room a start has, and whether it was measured."""
        gpu, measured = self, list[bool]()

        class Worker:
            def __init__(self) -> None:
                self.cache_config, self.rank = SimpleNamespace(kv_cache_memory_bytes=given), rank
                self.device = gpu.device

            def determine_available_memory(self) -> int:
                if self.cache_config.kv_cache_memory_bytes is None:
                    measured.append(True)
                    self.available_kv_cache_memory_bytes = float(gpu.measured)
                return self.cache_config.kv_cache_memory_bytes or gpu.measured

            def compile_or_warm_up_model(self, *given: Any) -> str:
                if gpu.fails:
                    raise MemoryError
                return "took no time"

        sys.modules["vllm.v1.worker.gpu_worker"].Worker = Worker  # type: ignore[attr-defined]
        vllm_room.remember(words, weights)
        worker = Worker()
        room = worker.determine_available_memory()
        if not self.fails:
            assert worker.compile_or_warm_up_model() == "took no time"
        return room, bool(measured)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    properties = lambda device: SimpleNamespace(name="H200", total_memory=made.total)  # noqa: E731
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: made.driver,
        nvmlDeviceGetCount=lambda: len(made.processes),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda index: made.processes[index],
    )
    for name, module in {
        "torch": SimpleNamespace(
            __version__="2.11",
            version=SimpleNamespace(cuda="13.0"),
            cuda=SimpleNamespace(get_device_properties=properties),
        ),
        "vllm": SimpleNamespace(__version__="0.32.0"),
        "vllm.third_party.pynvml": nvml,
        "vllm.v1.worker.gpu_worker": SimpleNamespace(),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    return made


@pytest.fixture
def weights(tmp_path: Path) -> list[str]:
    (tmp_path / "a.safetensors").write_text("weights")
    return [str(tmp_path / "a.safetensors")]


def started(gpu: Gpu, weights: list[str], times: int) -> list[tuple[int, bool]]:
    return [gpu.start(WORDS, weights) for _ in range(times)]


def test_what_was_measured_twice_is_known_from_then_on(gpu: Gpu, weights: list[str]) -> None:
    """The first start compiles, and has less room for it."""
    gpu.measured = MEASURED - 1_000_000_000
    assert gpu.start(WORDS, weights) == (gpu.measured, True)
    gpu.measured = MEASURED
    assert gpu.start(WORDS, weights) == (MEASURED, True)
    gpu.measured = 5
    assert started(gpu, weights, 3) == [(MEASURED, False)] * 3


def test_a_start_that_fails_with_what_is_known_is_followed_by_one_that_measures(gpu: Gpu, weights: list[str]) -> None:
    started(gpu, weights, 3)
    gpu.fails = True
    assert gpu.start(WORDS, weights) == (MEASURED, False)
    gpu.fails = False
    assert [measured for _, measured in started(gpu, weights, 3)] == [True, True, False]


@pytest.mark.parametrize("change", ["words", "variable", "weights", "driver", "memory", "device", "vllm", "torch"])
def test_what_is_not_alike_is_measured(
    change: str, gpu: Gpu, weights: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(gpu, weights, 3)
    words = WORDS
    if change == "words":
        words = [*WORDS, "--gpu-memory-utilization", "0.5"]
    elif change == "variable":
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "x")
    elif change == "weights":
        Path(weights[0]).write_text("other weights")
    elif change == "driver":
        gpu.driver = "590.1"
    elif change == "memory":
        gpu.total += 1
    elif change == "device":
        gpu.device = "cuda:1"
    else:
        monkeypatch.setattr(sys.modules[change], "__version__", "0.33.0")
    assert gpu.start(words, weights) == (MEASURED, True)


def test_what_takes_no_memory_makes_no_difference(
    gpu: Gpu, weights: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["--served-model-name", "a", "b", "--port", "8000", "--shutdown-timeout", "30"]
    for _ in range(2):
        gpu.start([*WORDS, *said, "--max-num-seqs", "8"], weights)
    monkeypatch.setenv("HOLD", "5")
    others = ["--port", "8001", "--shutdown-timeout", "31", "--served-model-name", "c", "--host", "::1"]
    assert gpu.start([*WORDS, *others, "--max-num-seqs", "8"], weights) == (MEASURED, False)
    assert gpu.start([*WORDS, *others, "--max-num-seqs", "9"], weights) == (MEASURED, True)


@pytest.mark.parametrize("processes", [[[1, 2]], [[1], [1, 2]], [[]]])
def test_where_others_are_on_the_gpu_nothing_is_kept(
    processes: list[list[int]], gpu: Gpu, weights: list[str], tmp_path: Path
) -> None:
    gpu.processes = processes
    assert [measured for _, measured in started(gpu, weights, 3)] == [True] * 3
    assert not list(tmp_path.glob("vllm/room/*"))


def test_each_worker_has_its_own(gpu: Gpu, weights: list[str]) -> None:
    gpu.processes = [[1], [1]]
    started(gpu, weights, 2)
    gpu.measured = 5
    assert gpu.start(WORDS, weights, rank=1) == (5, True)
    assert gpu.start(WORDS, weights) == (MEASURED, False)


def test_who_says_how_much_is_given_as_much(gpu: Gpu, weights: list[str], tmp_path: Path) -> None:
    started(gpu, weights, 2)
    assert gpu.start(WORDS, weights, given=7) == (7, False)
    assert gpu.start(WORDS, weights) == (MEASURED, False)


@pytest.mark.parametrize("text", ["", "80", "80 x", "\0", "80 2 2"])
def test_a_file_that_says_nothing_is_measured_anew(text: str, gpu: Gpu, weights: list[str], tmp_path: Path) -> None:
    started(gpu, weights, 2)
    (file,) = tmp_path.glob("vllm/room/*")
    file.write_text(text)
    assert [measured for _, measured in started(gpu, weights, 3)] == [True, True, False]


def test_sixteen_are_kept(gpu: Gpu, weights: list[str], tmp_path: Path) -> None:
    for number in range(20):
        gpu.start([*WORDS, str(number)], weights)
    assert len(list(tmp_path.glob("vllm/room/*"))) == 16


def test_without_a_place_nvml_or_these_names_it_is_measured(
    gpu: Gpu, weights: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert [measured for _, measured in started(gpu, weights, 3)] == [True] * 3
    monkeypatch.setitem(sys.modules, "vllm.third_party.pynvml", SimpleNamespace())  # type: ignore[arg-type]
    assert gpu.start(WORDS, weights) == (MEASURED, True)
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu_worker", SimpleNamespace())  # type: ignore[arg-type]
    vllm_room.remember(WORDS, weights)
    assert not hasattr(sys.modules["vllm.v1.worker.gpu_worker"], "Worker")
