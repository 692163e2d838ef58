"""Another family of engines under load: the real vLLM, the real SGLang in its place, and vLLM again; and both compared.

Both on the CPU (SGLang with a stand-in for its compiled kernels), a tiny model, a new connection a second and a client
that keeps its own, patient for two minutes; after each switch all of `vllm-install test`. A request or a test
that fails, fails this. Each of the two is measured besides, when nobody else asks it. Needs root and the network, and
on first use some 10 GB below build/.
"""

from __future__ import annotations

import concurrent.futures
import functools
import http.client
import json
import statistics
import sys
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from bench.restarts import LIMIT, measure  # noqa: E402
from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.boot.surroundings import free_port  # noqa: E402
from tests.kit.life import SERVICE, cli  # noqa: E402
from tests.kit.load import Plan  # noqa: E402
from tests.kit.sglang import wheels as sglang  # noqa: E402

MODEL = "tiny"  # SGLang takes no name with a colon
VLLM = ("--model", "builtin:tiny", "--served-model-name", MODEL, "--engine", "cpu", "--gpu-memory-utilization", "0.2")
HOLD = 120
RATE = 1.0  # without its kernels SGLang makes a few tokens a second
TOKENS, TIMES, AT_ONCE = 64, 5, 4
# What the processes of a service have of the memory, each page of several counted once.
MEMORY = """
cat /sys/fs/cgroup/$(systemctl show --value --property=ControlGroup $1)/cgroup.procs |
while read pid; do cat /proc/$pid/smaps_rollup; done | awk '/^Pss:/ {kib += $2} END {print kib}'
"""


@dataclass(frozen=True)
class Figures:
    """Of one engine that has been asked before, and is asked by nobody else."""

    start: float  # seconds from `systemctl restart` until systemd calls it ready
    first_token: float  # seconds, the median of several, one after the other
    alone: float  # tokens a second, of one answer
    together: float  # of several answers at once
    memory: float  # GiB


def answer(port: int, key: str) -> tuple[float, float]:
    """Seconds until the first token of a streamed answer, and until its last."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    stream = connection.getresponse()
    if stream.status != 200 or not stream.readline().startswith(b"data: {"):
        raise SystemExit(f"no answer: {stream.status} {stream.read(500)!r}")
    first = time.perf_counter() - began
    if not stream.read().rstrip().endswith(b"data: [DONE]"):
        raise SystemExit("an answer was cut off")
    return first, time.perf_counter() - began


def figures(machine: Machine, port: int, key: str) -> Figures:
    began = time.perf_counter()
    machine.run("systemctl", "restart", SERVICE, timeout=LIMIT)
    start = time.perf_counter() - began
    answer(port, key)
    alone = [answer(port, key) for _ in range(TIMES)]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as clients:
        began = time.perf_counter()
        count = len(list(clients.map(lambda _: answer(port, key), range(2 * AT_ONCE))))
        took = time.perf_counter() - began
    kib = int(machine.run("sh", "-euc", MEMORY, "sh", SERVICE).stdout)
    first, whole = (statistics.median(each) for each in zip(*alone, strict=True))
    return Figures(start, first, (TOKENS - 1) / (whole - first), count * TOKENS / took, kib / 2**20)


def compare(vllm: Figures, sglang: Figures) -> None:
    print(f"{'':<12} {'vLLM':>8} {'SGLang':>8}  SGLang/vLLM")
    for field, one, other in zip(fields(Figures), astuple(vllm), astuple(sglang), strict=True):
        print(f"{field.name:<12} {one:8.2f} {other:8.2f}  {other / one:.2f}", flush=True)


def main() -> int:
    wheels = sglang.build(REPO / "build/sglang")
    to_sglang = ("set", "ENGINE_FAMILY=sglang", f"FIND_LINKS={wheels}", "SGLANG_ARGS=--max-total-tokens 8192")
    changes = {
        "vLLM to SGLang": to_sglang,
        "rollback to vLLM": ("rollback",),
        "to SGLang again": to_sglang,
        "to vLLM by set": ("set", "ENGINE_FAMILY=vllm", "FIND_LINKS="),
    }
    port, failed = free_port(), 0
    with Machine(network=True, store=True) as machine:
        key = cli(machine, "deploy", *VLLM, "--context", "1024", "--port", str(port), timeout=900).key
        compared = {"vllm": figures(machine, port, key)}
        plan = Plan(port, key, rate=RATE, keep=1, pause=1.0, tokens=4, model=MODEL)
        print(f"{RATE:g} new connections/s and a kept one, plain and streaming; patient for {plan.patience:g} s:")
        for name, words in changes.items():
            measured = measure(name, HOLD, plan, functools.partial(cli, machine, *words, timeout=LIMIT))
            failed += measured.result.failed
            print(measured, measured.result.failures or "", flush=True)
            family = cli(machine, "status", "--json").json["engine_family"]
            tested = cli(machine, "test", "--json", timeout=LIMIT).json
            print(f"    {family} serves; test: {tested['passed']} passed, {tested['failed']} failed", flush=True)
            failed += tested["failed"]
            if family not in compared:
                compared[family] = figures(machine, port, key)
                compare(**compared)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
