"""The running service on a GPU: its start, keys changed under load, a hung and a killed engine, its stop.

Usage: python bench/gpu/runtime.py [DIRECTORY] [--budget SECONDS] [--json FILE] …

The directory holds a config.json; no weights and no hub are needed. Runs launcher, watcher and guard as the unit does,
with a small stand-in for systemd, by a Python that has vLLM. Phases follow each other until the budget is spent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from bench.gpu.capacity import FIXTURES  # noqa: E402
from bench.gpu.capacity import prepare as prepare_model  # noqa: E402
from bench.gpu.load import SteadyLoad, ask, complete, rate, request  # noqa: E402
from bench.gpu.supervisor import Supervisor  # noqa: E402

LAUNCHER = REPO / "installer/runtime/vllm_launcher.py"
PORT, PEER_PORT = 8298, 8297
PROBE, OPERATOR, FIRST, PEER = (f"sk-bench-{name}-0123456789abcdef" for name in ("probe", "operator", "first", "peer"))
START_SECONDS = 300.0
ROUNDS, ROUND_SECONDS = 3, 3.0


def digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


@dataclass
class Bench:
    service: Supervisor
    options: argparse.Namespace
    serve: list[str]
    figures: dict[str, object] = field(default_factory=dict)
    key: str = FIRST

    def note(self, name: str, value: object) -> None:
        self.figures[name] = value
        print(f"== {name}: {json.dumps(value)}", flush=True)
        if self.options.json:
            self.options.json.write_text(json.dumps(self.figures, indent=1) + "\n")

    # Phases

    def start(self) -> None:
        self.note("memory before, MiB", memory_used())
        begin = self.service.start()
        self.up(begin, "start, empty caches")
        self.note("start, empty caches: steps", self.service.since(begin))
        self.note("memory while serving, MiB", memory_used())

    def keys(self) -> None:
        body = {"prompt": "Hi", "max_tokens": 1}
        answers = {
            "no key": ask(PORT, "/v1/completions", body=body)[0],
            "wrong key": ask(PORT, "/v1/completions", "sk-wrong-wrong-wrong-wrong", body)[0],
            "key": ask(PORT, "/v1/completions", self.key, body)[0],
            "health without a key": ask(PORT, "/health")[0],
        }
        self.note("keys", answers)
        routes = json.loads(ask(PORT, "/openapi.json", OPERATOR)[1])["paths"]
        asked = {
            f"{method.upper()} {path}": ask(PORT, path, method=method.upper())[0]
            for path, methods in routes.items()
            for method in methods
        }
        self.note("routes asked without a key", len(asked))
        self.note("of them not 401", {name: status for name, status in asked.items() if status != 401})

    def rotate(self) -> None:
        """The old key stays for a while, as with --keep-old; then it goes."""
        old, new = self.key, "sk-bench-second-Lq8TzXn3VbRw6KdM"
        main, in_use = self.service.pid, [old]
        with SteadyLoad(PORT, lambda: in_use) as load:
            time.sleep(3)
            long: list[str] = []
            whole = threading.Thread(target=lambda: long.append(complete(PORT, old, 1000, True)))
            whole.start()
            time.sleep(0.5)
            both = self.reload([f"default={digest(new)}", f"old={digest(old)}@{in_ten_minutes()}"], new, 200)
            in_use[:] = [old, new]
            time.sleep(3)
            in_use[:] = [new]
            time.sleep(1.5)  # those sent with the old key have their answer
            alone = self.reload([f"default={digest(new)}"], old, 401)
            time.sleep(3)
            whole.join()
        self.key = new
        figures = {
            "new key works after": both[0],
            "reload took": both[1],
            "old key refused after": alone[0],
            "requests": load.sent,
            "failed": len(load.failures),
            "why": load.failures[:5],
            "stream of 1000 tokens begun with the old key": long[0] or "whole",
            "same main process": main == self.service.pid,
        }
        self.note("rotation under load", figures)

    def reload(self, keys: list[str], key: str, expected: int) -> tuple[float, float]:
        """Seconds from the reload's begin until a key counts, or counts no more, and until the reload is over."""
        begin = time.monotonic()
        reload = threading.Thread(target=self.service.reload, args=(arguments(keys),))
        reload.start()
        while ask(PORT, "/v1/models", key)[0] != expected and time.monotonic() < begin + 20:
            time.sleep(0.005)
        counts = time.monotonic() - begin
        reload.join()
        # From here on the unit would start it with these keys.
        words = self.service.launch
        self.service.launch = [*words[:2], *arguments(keys), *words[words.index("--") :]]
        return round(counts, 3), round(time.monotonic() - begin, 3)

    def restart_time(self) -> None:
        """What a change of the key costs where it is a flag of vLLM: a stop and a start."""
        begin = time.monotonic()
        self.service.stop(60)
        self.service.start()
        self.up(begin, "stop and start, warm caches")

    def lose(self, name: str, number: signal.Signals) -> None:
        victim = self.service.pid if name == "main" else self.service.find(name)
        main, what = self.service.pid, f"{number.name} of {name}"
        begin = self.service.note(what)
        os.kill(victim, number)
        self.service.wait(lambda: self.service.pid not in (0, main), 200, "a new main process")
        replaced = time.monotonic() - begin
        self.up(begin, f"{what}: served again")
        self.note(f"{what}: new main process", round(replaced, 2))
        self.note(f"{what}: steps", self.service.since(begin))

    def compare(self) -> None:
        """Beside vLLM's own check of one key, on the same GPU, by turns."""
        command = [self.service.python, "-m", "vllm.entrypoints.cli.main", *self.serve]
        command += ["--port", str(PEER_PORT), "--api-key", PEER]
        log = self.service.place / "peer"
        environment = self.service.environment
        with log.open("wb") as file:
            peer = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            begin = time.monotonic()
            self.service.wait(
                lambda: peer.poll() is not None or not complete(PEER_PORT, PEER, 1, False), START_SECONDS, "the peer"
            )
            self.note("vLLM alone: start, warm caches", round(time.monotonic() - begin, 2))
            self.rounds()
        finally:
            os.killpg(peer.pid, signal.SIGKILL)
            peer.wait()

    def rounds(self) -> None:
        one = {"prompt": "Hi", "max_tokens": 1, "temperature": 0}
        ours = [f"default={digest(self.key)}"]
        many = [f"k{number}={digest(f'sk-many-{number:04}-0123456789')}" for number in range(999)]
        results: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for keys, name in ((ours, "guard, 1 key"), ([*many, *ours], "guard, 1000 keys"), ([], "vLLM's own key")):
                if keys:
                    self.service.reload(arguments(keys))
                port, key = (PORT, self.key) if keys else (PEER_PORT, PEER)
                for path, body in (("/v1/models", None), ("/v1/completions", one)):
                    found = rate(port, request(path, key, body), ROUND_SECONDS)
                    results.setdefault(f"{path}, {name}", []).append(round(found, 1))
        self.service.reload(arguments(ours))
        medians = {name: statistics.median(values) for name, values in results.items()}
        self.note("requests/s, c=16", results)
        self.note("requests/s, c=16, median", medians)

    def stop(self) -> None:
        """While a stream is on its way: it is let finish."""
        long: list[str] = []
        whole = threading.Thread(target=lambda: long.append(complete(PORT, self.key, 600, True)))
        whole.start()
        time.sleep(0.5)
        begin = time.monotonic()
        self.service.stop(90)
        whole.join()
        gone = time.monotonic() - begin
        before = int(str(self.figures.get("memory before, MiB", 0)))
        self.service.wait(lambda: memory_used() <= before + 16, 30, "the memory is free")
        free = time.monotonic() - begin
        figures = {"stream": long[0] or "whole", "stopped after": round(gone, 2), "memory free after": round(free, 2)}
        self.note("stop during a stream of 600 tokens", figures)

    def up(self, begin: float, what: str) -> None:
        self.service.wait(lambda: self.service.is_ready, START_SECONDS, what)
        ready = time.monotonic() - begin
        wrong = complete(PORT, self.key, 8, False)
        self.note(what, {"ready": round(ready, 2), "first answer": wrong or "whole"})


def main() -> int:
    options = parse()
    if not shutil.which("nvidia-smi") and not options.anywhere:
        print("no NVIDIA GPU here: nothing to measure")
        return 0
    end = time.monotonic() + options.budget
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a bench that is ended leaves no server behind
    with tempfile.TemporaryDirectory(prefix="runtime-") as place:
        bench = prepare(options, Path(place))
        try:
            failed = run(bench, end)
        finally:
            bench.service.kill()
        if options.logs:
            options.logs.mkdir(parents=True, exist_ok=True)
            for log in (bench.service.place / "journal", bench.service.place / "peer"):
                if log.exists():
                    shutil.copy(log, options.logs / f"{log.name}.log")
    return 1 if failed else 0


def run(bench: Bench, end: float) -> int:
    """Each phase that there is time for; the number of those that failed."""
    phases: dict[str, tuple[Callable[[], None], float]] = {
        "start": (bench.start, 60),
        "keys": (bench.keys, 5),
        "rotate": (bench.rotate, 20),
        "kill": (lambda: bench.lose("VLLM::EngineCore", signal.SIGKILL), 60),
        "hang": (lambda: bench.lose("VLLM::EngineCore", signal.SIGSTOP), 60 + bench.service.watchdog),
        "compare": (bench.compare, 120),
        "main": (lambda: bench.lose("main", signal.SIGKILL), 60),
        "restart": (bench.restart_time, 60),
        "stop": (bench.stop, 15),
    }
    failed = 0
    for name, (phase, seconds) in phases.items():
        if time.monotonic() + seconds > end:
            print(f"no time left for: {name}")
            continue
        try:
            phase()
        except Exception:
            failed += 1
            bench.note(f"{name}: failed", traceback.format_exc())
            if name == "start":
                break
    return failed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=FIXTURES / "qwen3-8b")
    parser.add_argument("--budget", type=float, default=540.0)
    parser.add_argument("--watchdog", type=float, default=60.0, help="WatchdogSec=, in seconds")
    parser.add_argument("--share", type=float, default=0.45, help="low enough for the peer beside it")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vLLM")
    parser.add_argument("--flags", default="", help="further flags for vLLM")
    parser.add_argument("--anywhere", action="store_true", help="also without an NVIDIA GPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--logs", type=Path, help="directory for vLLM's own output")
    return parser.parse_args()


def prepare(options: argparse.Namespace, place: Path) -> Bench:
    model = place / "model"
    prepare_model(options.directory, model, is_narrow=False)
    serve = [
        "serve", str(model), "--served-model-name", "bench", "--load-format", "dummy",
        "--host", "127.0.0.1", "--max-model-len", str(options.context), "--gpu-memory-utilization", str(options.share),
        "--shutdown-timeout", "30", *options.flags.split(),
    ]  # fmt: skip
    cache = place / "cache"
    environment = dict(os.environ) | {
        "HOME": str(cache),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "FLASHINFER_WORKSPACE_BASE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
    }
    keys = arguments([f"default={digest(FIRST)}"])
    launch = [str(LAUNCHER), "launch", *keys, "--", *serve, "--port", str(PORT)]
    service = Supervisor(options.python, launch, place, options.watchdog, environment, PROBE)
    return Bench(service, options, serve)


def arguments(keys: list[str]) -> list[str]:
    return [word for key in (*keys, f"operator:admin={digest(OPERATOR)}") for word in ("--api-key", key)]


def in_ten_minutes() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 600))


def memory_used() -> int:
    """MiB in use on the GPU, whoever uses them; 0 where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except OSError:
        return 0
    return sum(int(number) for number in re.findall(r"\d+", shown))


if __name__ == "__main__":
    raise SystemExit(main())
