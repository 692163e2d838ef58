"""What all tests share: machines to boot, stand-in engines, and one real engine a session."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from installer.base.host import Host
from tests.kit.boot import compiled
from tests.kit.boot.machine import SGLANG_STORE, Machine
from tests.kit.boot.surroundings import REPO
from tests.kit.hub import Hub
from tests.kit.sglang import wheels as sglang
from tests.kit.standin.wheel import build_wheel

REAL = "tests/vllm/"
SGLANG = f"{REAL}test_sglang"
NEED_ROOT = {"boot", "machine", "cpu_engine", "sglang_wheels"}


def pytest_configure(config: pytest.Config) -> None:
    hear_signals()
    os.environ["LANGUAGE"] = "en"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # as hub.py does, for tests that import the client first
    # How long an example takes says nothing about the code; nor must a run depend on the ones before it.
    hypothesis.settings.register_profile("ours", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("ours")
    config.addinivalue_line("markers", "root: needs root; tests that boot a machine have it by themselves")


def hear_signals() -> None:
    """A signal that is ignored, as below nohup, is ignored by all that the tests start; one that is heard is not."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN or "PYTEST_XDIST_WORKER" in os.environ:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NEED_ROOT & set(getattr(item, "fixturenames", ())):
            item.add_marker("root")
    items.sort(key=lambda item: not item.nodeid.startswith(REAL))  # what takes longest begins first


@pytest.hookimpl(optionalhook=True)  # without xdist everything runs in one process
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: most of what a test of a machine does is wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several processes share the modules; those with a real vLLM, which takes all cores, go to one of them.

    So do those with a real SGLang, for which an engine is built as well, but once.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next((each for each in (SGLANG, REAL) if nodeid.startswith(each)), nodeid.partition("::")[0])

    return ByModule(config, log)


@pytest.fixture
def boot() -> Iterator[Callable[..., Machine]]:
    """boot(**options) gives a running Machine; all are thrown away when the test ends."""
    with ExitStack() as machines:
        yield lambda **options: machines.enter_context(Machine(**options))


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    """A running machine without a network."""
    return boot()


@pytest.fixture(scope="session")
def standin_wheels() -> Path:
    """A folder for --find-links with the stand-in engine, visible in machines at the same path."""
    folder = REPO / "build/standin"
    for version in ("0.32.0", "0.31.0"):
        build_wheel(folder, version)
    return folder


@pytest.fixture(scope="session")
def cpu_engine() -> str:
    """The id of a real vLLM CPU engine that machines with store=True hold; built once, kept in build/opt."""
    with Machine(network=True, store=True) as machine:
        built = machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", timeout=900).stdout.split()[-1]
        machine.save_store()
        compiled.keep(machine, built)
    return built


@pytest.fixture(scope="session")
def sglang_wheels() -> Path:
    """A folder for --find-links, by which machines with store=SGLANG_STORE deploy a real SGLang on the CPU.

    In vLLM's place it has the stand-in.
    """
    folder = sglang.build(REPO / "build/sglang")
    build_wheel(folder)
    with Machine(network=True, store=SGLANG_STORE) as machine:
        machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", "sglang", folder, timeout=1200)
        machine.save_store()
    return folder


@pytest.fixture
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, no proxy, no waits between tries."""
    from installer.weights import download, hub

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(hub, "BUSY_DELAYS", (0.0, 0.0))


@pytest.fixture
def server(plain_network: None) -> Iterator[Hub]:
    """A model hub on localhost."""
    with Hub() as running:
        yield running


@pytest.fixture(autouse=True, scope="session")
def nothing_is_synced() -> Iterator[None]:
    """What tests write into temporary directories may be lost with the power; the tool's own processes sync as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host below a temporary directory."""
    tmp_path.chmod(0o755)
    return Host(root=tmp_path)
