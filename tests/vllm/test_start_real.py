"""A standby of the real vLLM: prepared up to its workers, forked, bound to the CPUs that vLLM chose, drained."""

from __future__ import annotations

import ast
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from installer.model import builtin
from tests.kit.boot.machine import STORE
from tests.kit.memory import LITTLE, share

KEY, START = "sk-1", 300  # seconds; a loaded machine of two cores needs a fifth of them


class Standby:
    def __init__(self, engine: Path, home: Path) -> None:
        self.home, self.model = home, home / "tiny"
        self.model.mkdir()
        for name, content in builtin.files().items():
            (self.model / name).write_bytes(content)
        (home / "keys").write_text(f"default inference {hashlib.sha256(KEY.encode()).hexdigest()} -\n")
        (home / "keys").chmod(0o600)
        (self.ready, its_ready), (its_go, self.go) = os.pipe(), os.pipe()
        self.listener = socket.create_server(("127.0.0.1", 0))
        its = (its_ready, its_go, self.listener.fileno())
        with (home / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [engine / "bin/python", "-BP", RUNTIME / "vllm_listen.py", "serve", self.model, *self.flags()],
                env=self.environment(*map(str, its)), pass_fds=its, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, cwd=home, start_new_session=True,
            )  # fmt: skip
        os.close(its_ready)
        os.close(its_go)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def flags(self) -> list[str]:
        flags = {"served-model-name": "tiny", "host": "127.0.0.1", "port": self.port, "max-model-len": 4096}
        flags |= {"gpu-memory-utilization": share(LITTLE), "middleware": "vllm_guard.Guard", "shutdown-timeout": 300}
        return [word for name, value in flags.items() for word in (f"--{name}", str(value))]

    def environment(self, ready: str, go: str, listener: str) -> dict[str, str]:
        ours = {"LAUNCHER_READY": ready, "LAUNCHER_GO": go, "LAUNCHER_LISTENER": listener, "DRAIN": "300"}
        paths = {"HOME": self.home, "VLLM_CACHE_ROOT": self.home, "RUNTIME_DIRECTORY": self.home, "PYTHONPATH": RUNTIME}
        quiet = {
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
        }
        return {"PATH": "/usr/bin:/bin", **ours, **quiet, **{name: str(path) for name, path in paths.items()}}

    def ask(self, **more: object) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START)
        body = {"model": "tiny", "prompt": "Hi", "ignore_eos": True, **more}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return connection.getresponse()


@pytest.fixture
def standby(cpu_engine: str, tmp_path: Path) -> Iterator[Standby]:
    standby = Standby(STORE / "engines" / cpu_engine, tmp_path)
    yield standby
    os.killpg(standby.process.pid, signal.SIGKILL)
    standby.process.wait()


def test_a_standby_prepares_waits_serves_and_ends(standby: Standby) -> None:
    assert os.read(standby.ready, 1) == b"r", standby.log
    assert "Worker pid=" not in standby.log, "a worker has begun before it was told to"
    assert "Initializing a V1 LLM engine" in standby.log
    os.write(standby.go, b"g")
    with standby.ask(max_tokens=4) as answer:
        assert answer.status == 200, standby.log
    assert "Compiling model again" not in standby.log
    is_forked_and_bound(standby)
    ends(standby)


def test_the_room_that_is_remembered_lies_where_vllm_has_it(cpu_engine: str) -> None:
    """Of a worker on a GPU, which is not there: read, not run."""
    (packages,) = (STORE / "engines" / cpu_engine).glob("lib/python3*/site-packages/vllm")
    assert (packages / "third_party/pynvml.py").is_file()
    tree = ast.parse((packages / "v1/worker/gpu_worker.py").read_text())
    (worker,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Worker"]
    steps = {node.name: ast.unparse(node) for node in worker.body if isinstance(node, ast.FunctionDef)}
    determine = steps["determine_available_memory"]
    assert "kv_cache_memory_bytes := self.cache_config.kv_cache_memory_bytes" in determine
    assert "self.available_kv_cache_memory_bytes = " in determine
    assert "self.model_runner.capture_model()" in steps["compile_or_warm_up_model"]


def is_forked_and_bound(standby: Standby) -> None:
    """All have the one command line, which nothing but a fork hands on."""
    (cpus,) = re.findall(r"local_rank=0, core ids=\[([\d, ]+)\]", standby.log)
    found = [Path(f"/proc/{pid}") for pid in re.findall(r"\b(?:EngineCore|Worker)\w* pid=(\d+)", standby.log)]
    workers = [process for process in set(found) if allowed(process) == {int(cpu) for cpu in cpus.split(", ")}]
    assert workers, standby.log
    assert all(b"spawn_main" not in (process / "cmdline").read_bytes() for process in found)


def allowed(process: Path) -> set[int]:
    return os.sched_getaffinity(int(process.name))


def ends(standby: Standby) -> None:
    with standby.ask(max_tokens=2000, stream=True) as answer:
        assert answer.readline().startswith(b"data: ")
        standby.process.terminate()
        assert answer.read().endswith(b"data: [DONE]\n\n")
    assert standby.process.wait(START) == 0
    assert "drained in" in standby.log
