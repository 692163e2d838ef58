"""The way to the first answer: what a standby does before its turn and what it waits for; fork in place of spawn."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_start

MAIN = """
import multiprocessing, os, signal, sys

VARIABLES = (
    "LAUNCHER_READY", "LAUNCHER_GO", "VLLM_USE_AOT_COMPILE", "VLLM_WORKER_MULTIPROC_METHOD",
    "TORCHINDUCTOR_COMPILE_THREADS",
)

carried = "spawned"

def child(answers):
    ahead = "vllm.v1.engine.core" in sys.modules
    cpus, threads = sorted(os.sched_getaffinity(0)), sys.modules["torch"].threads
    answers.send((multiprocessing.current_process().name, carried, ahead, cpus, threads, signal.set_wakeup_fd(-1)))

def main():
    global carried
    print("main", *sys.argv[1:])
    for name in VARIABLES:
        print(f"{name}={os.environ.get(name, '-')}")
    if "engine" in sys.argv:
        import socket, torch
        carried = "forked"
        mine, its = multiprocessing.Pipe()
        signals = socket.socketpair()
        signals[0].setblocking(False)
        signal.set_wakeup_fd(signals[0].fileno())
        os.environ["GOMP_CPU_AFFINITY"] = str(min(os.sched_getaffinity(0)))
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=child, args=(its,), name="EngineCore")
        process.start()
        print(context.get_start_method(), *mine.recv())
        process.join()
"""
# Whether Linux lets a forked process use the tiles of this processor, if it has any: two questions of arch_prctl.
TILES = """
import ctypes, multiprocessing, platform

def answer(question):
    found = ctypes.c_uint64()
    ctypes.CDLL(None).syscall(158, question, ctypes.byref(found))
    return platform.machine() == "x86_64" and bool(found.value >> 18 & 1)

def child():
    print("has", answer(0x1021), "may", answer(0x1022), flush=True)

def main():
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
# Two workers, each of which is made when its turn has come, in processes that vLLM forks or spawns.
WORKERS = """
import multiprocessing, sys
from vllm.v1.worker import worker_base

def work(number):
    worker_base.WorkerWrapperBase().init_worker(number)

def main():
    print("main", flush=True)
    context = multiprocessing.get_context(sys.argv[-1] if "wn" in sys.argv[-1] else None)
    processes = [context.Process(target=work, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
"""
WORKER = """
class WorkerWrapperBase:
    def init_worker(self, number):
        print("worker", number, flush=True)
"""
TORCH = "def set_num_threads(number):\n    global threads\n    threads = number\n"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A folder with something that calls itself vLLM, in its build for the CPU, and a model."""
    files = {
        "vllm/__init__.py": "",
        "vllm/entrypoints/__init__.py": "",
        "vllm/entrypoints/cli/__init__.py": "",
        "vllm/entrypoints/cli/main.py": MAIN,
        "vllm/v1/__init__.py": "",
        "vllm/v1/engine/__init__.py": "",
        "vllm/v1/engine/core.py": "",
        "vllm/v1/engine/async_llm.py": "raise RuntimeError('not in this version')",
        "torch.py": TORCH,
        "model/config.json": '{"architectures": ["Llama"]}',
        "model/a.safetensors": "weights",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    build(tmp_path, "0.32.0+cpu")
    return tmp_path


def build(engine: Path, version: str) -> None:
    for old in engine.glob("*.dist-info"):
        shutil.rmtree(old)
    folder = engine / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


@contextmanager
def listening(
    engine: Path, *words: str, fds: tuple[int, ...] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fixed = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(engine), "LAUNCHER_LISTENER": str(listener.fileno())}
        process = subprocess.Popen(
            [sys.executable, "-B", RUNTIME / "vllm_listen.py", "serve", engine / "model", *words],
            env={**fixed, **environment}, pass_fds=[listener.fileno(), *fds], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def said(engine: Path, *words: str, **environment: str) -> list[str]:
    with listening(engine, *words, **environment) as process:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
        return out.splitlines()


class Standby:
    """The other ends of a standby's pipes."""

    def __init__(self) -> None:
        (self.ready, self.its_ready), (self.its_go, self.go) = os.pipe(), os.pipe()

    @contextmanager
    def started(self, engine: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        its = (self.its_ready, self.its_go)
        pipes = {"LAUNCHER_READY": str(its[0]), "LAUNCHER_GO": str(its[1])}
        with listening(engine, *words, fds=its, **pipes, **environment) as process:
            for fd in its:
                os.close(fd)
            yield process


def test_a_standby_says_that_it_is_ready_and_starts_when_told(engine: Path) -> None:
    standby = Standby()
    with standby.started(engine) as process:
        assert os.read(standby.ready, 10) == b"r"
        assert os.read(standby.ready, 10) == b"", "nobody else holds it open"
        assert process.poll() is None
        os.write(standby.go, b"g")
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert f"main serve {engine}/model" in out
    assert "LAUNCHER_READY=-" in out
    assert "LAUNCHER_GO=-" in out


def test_a_standby_whose_turn_never_comes_ends(engine: Path) -> None:
    standby = Standby()
    with standby.started(engine) as process:
        assert os.read(standby.ready, 10) == b"r"
        os.close(standby.go)
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 0


@pytest.fixture
def workers(engine: Path) -> Path:
    files = {
        "vllm/entrypoints/cli/main.py": WORKERS,
        "vllm/v1/worker/__init__.py": "",
        "vllm/v1/worker/worker_base.py": WORKER,
    }
    for name, text in files.items():
        (engine / name).parent.mkdir(exist_ok=True)
        (engine / name).write_text(text)
    return engine


@pytest.mark.parametrize("version", ["0.32.0+cpu", "0.32.0"])
def test_a_standby_that_forks_waits_with_its_processes_there(workers: Path, version: str) -> None:
    build(workers, version)
    standby = Standby()
    with standby.started(workers) as process:
        assert os.read(standby.ready, 1) == b"r"
        assert process.stdout is not None
        assert process.stdout.readline() == "main\n"
        os.close(standby.ready)  # as its supervisor does; the second worker finds nobody who hears it
        os.write(standby.go, b"g")
        os.close(standby.go)
        out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["worker 0", "worker 1"]
    assert process.returncode == 0


def test_the_processes_of_a_standby_whose_turn_never_comes_end(workers: Path) -> None:
    standby = Standby()
    with standby.started(workers) as process:
        assert os.read(standby.ready, 1) == b"r"
        os.close(standby.go)
        assert process.communicate(timeout=60)[0] == "main\n"


def test_a_standby_that_spawns_after_all_waits_before_it_does(workers: Path) -> None:
    """A spawned process knows nothing of the turn, and would take the GPU."""
    build(workers, "0.32.0")
    standby = Standby()
    with standby.started(workers, "spawn") as process:
        assert os.read(standby.ready, 10) == b"r"
        assert os.read(standby.ready, 10) == b"", "nobody else holds it open"
        os.close(standby.go)
        assert process.communicate(timeout=60)[0] == "main\n"


@pytest.mark.parametrize("word", ["--distributed-executor-backend=ray", "--distributed_executor_backend", "--dist"])
def test_a_standby_whose_workers_are_another_s_waits_before_it_is_anything(workers: Path, word: str) -> None:
    standby = Standby()
    with standby.started(workers, word) as process:
        assert os.read(standby.ready, 10) == b"r"
        os.close(standby.go)
        assert process.communicate(timeout=60)[0] == ""


def test_a_standby_that_cannot_import_vllm_is_never_ready(engine: Path) -> None:
    (engine / "vllm/entrypoints/cli/main.py").write_text("import no_such_module")
    standby = Standby()
    with standby.started(engine) as process:
        assert os.read(standby.ready, 10) == b""
        assert "no_such_module" in process.communicate(timeout=60)[0]
        assert process.returncode == 1


@pytest.mark.parametrize(
    ("version", "method", "is_imported"),
    [
        ("0.32.0+cpu", "", True),
        ("0.32.0+cpu", "spawn", False),
        ("0.32.0", "", True),
        ("0.32.0", "spawn", False),
        ("0.32.0+rocm700", "", False),
    ],
)
def test_what_is_spawned_anyway_is_not_imported_ahead(
    engine: Path, version: str, method: str, is_imported: bool
) -> None:
    build(engine, version)
    given = {"VLLM_WORKER_MULTIPROC_METHOD": method} if method else {}
    (engine / "vllm/v1/engine/core.py").write_text("print('the engine core', flush=True)")
    standby = Standby()
    with standby.started(engine, **given) as process:
        assert os.read(standby.ready, 10) == b"r"
        os.close(standby.go)
        assert ("the engine core" in process.communicate(timeout=60)[0]) is is_imported


def test_an_ordinary_start_imports_once_for_all_its_processes_what_is_no_garbage(engine: Path) -> None:
    (engine / "vllm/entrypoints/cli/main.py").write_text(
        "import gc, sys\ndef main():\n    print('vllm.v1.engine.core' in sys.modules, gc.get_freeze_count() > 0)"
    )
    assert said(engine) == ["True True"]
    assert said(engine, VLLM_WORKER_MULTIPROC_METHOD="spawn") == ["False False"]


def test_an_ordinary_start_waits_for_nobody(engine: Path) -> None:
    assert f"main serve {engine}/model --x" in said(engine, "--x")


def test_the_tiles_of_a_processor_that_has_them_may_be_used(engine: Path) -> None:
    (engine / "vllm/entrypoints/cli/main.py").write_text(TILES)
    (engine / "torch.py").write_text("")
    (answer,) = said(engine)
    assert answer in ("has True may True", "has False may False")


@pytest.mark.parametrize(
    ("version", "given", "aot", "method", "threads"),
    [
        ("0.32.0+cpu", {}, "0", "-", "1"),
        ("0.32.0+cpu", {"VLLM_USE_AOT_COMPILE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "1", "spawn", "-"),
        ("0.32.0+cpu", {"LD_PRELOAD": "libomp.so"}, "0", "-", "-"),
        ("0.32.0", {}, "-", "fork", "-"),
        ("0.32.0+cu129", {}, "-", "fork", "-"),
        ("0.32.0+cu129", {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "-", "spawn", "-"),
        ("0.32.0+rocm700", {}, "-", "-", "-"),
    ],
)
def test_what_vllm_is_told_unless_somebody_else_has_told_it(
    engine: Path, version: str, given: dict[str, str], aot: str, method: str, threads: str
) -> None:
    build(engine, version)
    out = said(engine, **given)
    assert f"VLLM_USE_AOT_COMPILE={aot}" in out
    assert f"VLLM_WORKER_MULTIPROC_METHOD={method}" in out
    assert f"TORCHINDUCTOR_COMPILE_THREADS={threads}" in out


def test_on_the_cpu_a_process_is_forked_and_bound_and_hears_its_own_signals(engine: Path) -> None:
    first = min(os.sched_getaffinity(0))
    assert said(engine, "engine")[-1] == f"fork EngineCore forked True [{first}] 1 -1"


def test_a_process_of_a_standby_has_what_was_imported(engine: Path) -> None:
    standby = Standby()
    its = (standby.its_ready, standby.its_go)
    pipes = {"LAUNCHER_READY": str(its[0]), "LAUNCHER_GO": str(its[1])}
    os.write(standby.go, b"g")
    with listening(engine, "engine", fds=its, **pipes) as process:
        out, _ = process.communicate(timeout=60)
    assert " EngineCore forked True " in out.splitlines()[-1]


GIB = 1 << 30


@pytest.mark.parametrize(
    ("seen", "looks"),
    [
        ([125, 125, 60, 2, 2, 2, 2, 9], 7),  # freed bit by bit
        ([2, 2, 2, 2, 9], 4),  # at once
        ([125] * 200, 99),  # never: vLLM will say so
    ],
)
def test_memory_of_the_engine_before_is_awaited(monkeypatch: pytest.MonkeyPatch, seen: list[int], looks: int) -> None:
    values, clock = iter(seen), iter(range(1000))
    monkeypatch.setattr(vllm_start, "memory_in_use", lambda: next(values) * GIB)
    ticking = SimpleNamespace(monotonic=lambda: next(clock) / 10, sleep=lambda _: None)
    monkeypatch.setattr(vllm_start, "time", ticking)
    vllm_start.await_memory(125 * GIB)
    assert len(seen) - len(list(values)) == looks


def test_memory_of_no_gpu_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = SimpleNamespace(monotonic=lambda: 0, sleep=lambda _: pytest.fail("there is nothing to wait for"))
    monkeypatch.setattr(vllm_start, "time", asleep)
    vllm_start.await_memory(0)


NVML = """
def nvmlInit():
    print("asked", flush=True)
def nvmlDeviceGetCount():
    return 2
def nvmlDeviceGetHandleByIndex(index):
    return index
used = 1 << 41
class Memory:
    def __init__(self, used):
        self.used = used
def nvmlDeviceGetMemoryInfo(handle):
    global used
    used -= 1 << 39
    return Memory(max(used, 0))
"""


def test_a_worker_looks_at_the_memory_before_its_turn_and_after(workers: Path) -> None:
    (workers / "vllm/third_party").mkdir()
    (workers / "vllm/third_party/__init__.py").write_text("")
    (workers / "vllm/third_party/pynvml.py").write_text(NVML)
    build(workers, "0.32.0")
    standby = Standby()
    with standby.started(workers) as process:
        assert os.read(standby.ready, 1) == b"r"
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["main\n", "asked\n"]
        os.write(standby.go, b"g")
        assert process.communicate(timeout=60)[0].count("asked") > 1  # the other worker may ask only now, but once


# A worker on a GPU, and a main that says by which of its two names it measures.
GPU_WORKER = """
class Worker:
    def measured(self): ...
    determine_available_memory = compile_or_warm_up_model = measured
"""
NAME = """
from vllm.v1.worker.gpu_worker import Worker

def main():
    print(Worker.determine_available_memory.__name__)
"""


@pytest.mark.parametrize(("version", "name"), [("0.32.0", "determine_or_remember"), ("0.32.0+cpu", "measured")])
def test_the_workers_of_a_gpu_know_the_room_of_the_start_before(engine: Path, version: str, name: str) -> None:
    """Where they are forked from what is imported here."""
    build(engine, version)
    (engine / "vllm/v1/worker").mkdir()
    (engine / "vllm/v1/worker/__init__.py").write_text("")
    (engine / "vllm/v1/worker/gpu_worker.py").write_text(GPU_WORKER)
    (engine / "vllm/entrypoints/cli/main.py").write_text(NAME)
    assert said(engine) == [name]


@pytest.mark.parametrize(("available", "read"), [(100 << 20, 2 << 20), (3 << 20, 1 << 20), (1 << 20, 0)])
def test_weights_are_read_as_far_as_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, read: int
) -> None:
    for name in ("a.safetensors", "b.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    monkeypatch.setattr(vllm_start, "available", lambda: available)
    before = bytes_read()
    vllm_start.read_ahead(str(tmp_path))
    assert read <= bytes_read() - before < read + (1 << 19)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(bytes(1 << 20))
    before = bytes_read()
    vllm_start.read_ahead(str(tmp_path))
    assert bytes_read() - before < 1 << 19


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_memory_that_is_free_is_what_the_kernel_says() -> None:
    assert 0 < vllm_start.available() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_weights_may_be_one_file() -> None:
    assert vllm_start.weights("/models/tiny.gguf") == ["/models/tiny.gguf"]
    assert vllm_start.weights("builtin:tiny") == []
