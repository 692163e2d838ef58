"""Engine: installing it beside pip with the same lock, and starting vLLM from it beside one without bytecode.

Usage: python bench/engine.py [install] [start]; both without arguments. Needs the network, some 12 GB of disk
below build/bench, and the pip configuration of this host.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from installer.base.host import Host  # noqa: E402
from installer.base.layout import Layout  # noqa: E402
from installer.base.report import Report  # noqa: E402
from installer.families.vllm import builds  # noqa: E402
from installer.forms.venv import engines  # noqa: E402
from installer.forms.venv.engines import InstallEngine  # noqa: E402
from installer.forms.venv.uv import run_uv  # noqa: E402
from installer.model import builtin  # noqa: E402
from installer.spec.engine import Engine  # noqa: E402
from installer.spec.settings import Settings  # noqa: E402

PLACE = REPO / "build/bench"
PYTHON = Path(os.environ.get("PYTHON", "/usr/bin/python3.11"))
LAYOUT = Layout("bench")
SETTINGS = Settings(engine="cpu")
ROUNDS = 3
# What is timed, and which of pip's times it is set beside.
INSTALLS = {
    "pip, cold": "pip, cold",
    "ours, cold": "pip, cold",
    "pip, warm": "pip, warm",
    "ours, warm": "pip, warm",
    "ours, second engine of the lock": "pip, warm",
}
START_LIMIT = 300.0


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fresh_host() -> Host:
    """A root of its own that knows this host's pip configuration."""
    host = Host(root=PLACE / "root")
    host.make_dir(Path("/"))
    for path in (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf"):
        if path.exists():
            host.write(path, path.read_text())
    return host


def resolve(host: Host) -> Engine:
    return engines.resolve(SETTINGS, "cpu", PYTHON, host, Report())


def pip_install(lock: Path) -> Callable[[], object]:
    target = PLACE / "pip"
    shutil.rmtree(target, ignore_errors=True)
    run_uv(Host(), PLACE / "uv-cache", "venv", "--seed", "--no-project", "--python", PYTHON, target)
    options = ["-qq", "--no-deps", "--cache-dir", str(PLACE / "pip-cache"), "-r", str(lock)]
    return lambda: subprocess.run([str(target / "bin/python"), "-m", "pip", "install", *options], check=True)


def our_install(host: Host, engine: Engine) -> Callable[[], object]:
    change = InstallEngine(engine, SETTINGS, LAYOUT)
    host.remove(change.path)
    return lambda: change.apply(host, Report())


def bench_install() -> None:
    host = fresh_host()
    for path in (host.at(LAYOUT.opt), PLACE / "pip-cache"):
        shutil.rmtree(path, ignore_errors=True)
    engine = resolve(host)
    lock = PLACE / "lock.txt"
    lock.write_text(engine.lock)
    times: dict[str, list[float]] = {name: [] for name in INSTALLS}
    times["pip, cold"].append(timed(pip_install(lock)))
    times["ours, cold"].append(timed(our_install(host, engine)))
    for _ in range(ROUNDS):  # interleaved, so that a busy moment hits all of them
        times["pip, warm"].append(timed(pip_install(lock)))
        host.remove(LAYOUT.wheel_cache / "bytecode")
        times["ours, warm"].append(timed(our_install(host, engine)))
        times["ours, second engine of the lock"].append(timed(our_install(host, engine)))
    shutil.rmtree(PLACE / "pip")
    print(f"engine install, vLLM {engine.vllm_version} (cpu), {len(engine.packages)} packages, ours with import check")
    for name, peer in INSTALLS.items():
        print(
            line(name, times[name]) + f"  {statistics.median(times[peer]) / statistics.median(times[name]):5.1f} x pip"
        )
    print(f"  {'ours, already there':<34} {timed(lambda: resolve(host)) * 1000:6.1f} ms")


def line(name: str, values: list[float]) -> str:
    return f"  {name:<34} {statistics.median(values):6.1f} s  ({' '.join(f'{value:.1f}' for value in values)})"


def without_bytecode(engine: Path) -> Path:
    """The same files, hard-linked, as an installer leaves them that compiles nothing."""
    target = PLACE / "bare"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(engine, target, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(engine: Path) -> None:
    """`vllm serve` until /health says 200; the engine is as read-only as it is to the service."""
    caches, port = PLACE / "caches", free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(caches),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    caches.mkdir(exist_ok=True)
    serve = [str(engine / "bin/python"), "-m", builds.IMPORTS.entry, "serve", str(PLACE / "model")]
    options = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256"]
    with (PLACE / "serve.log").open("wb") as log:
        process = subprocess.Popen([*serve, *options], env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_LIMIT
    try:
        while not healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"vLLM did not start, see {PLACE / 'serve.log'}")
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def bench_start() -> None:
    host = fresh_host()
    engine = resolve(host)
    change = InstallEngine(engine, SETTINGS, LAYOUT)
    if not engines.is_complete(host, LAYOUT, engine.id):
        change.apply(host, Report())
    model = PLACE / "model"
    model.mkdir(exist_ok=True)
    builtin.write(model, Host())
    ours = host.at(change.path)
    contestants = {"ours": ours, "without bytecode": without_bytecode(ours)}
    start(ours)  # fills vLLM's compile caches, which are the same to both
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, path in contestants.items():
            times[name].append(timed(partial(start, path)))
    shutil.rmtree(contestants["without bytecode"])
    print(f"vllm serve, builtin:tiny, warm compile caches, to /health 200; median of {ROUNDS}")
    for name, values in times.items():
        print(line(name, values))


def main(wanted: list[str]) -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    for name, bench in (("install", bench_install), ("start", bench_start)):
        if not wanted or name in wanted:
            bench()


if __name__ == "__main__":
    main(sys.argv[1:])
