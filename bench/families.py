"""Another family of engines under load: the real vLLM, the real SGLang in its place, and vLLM again.

Both on the CPU (SGLang with a stand-in for its compiled kernels), a tiny model, a new connection a second and a client
that keeps its own, patient for two minutes; after each switch all of `vllm-install test`. A request or a test
that fails, fails this. Needs root and the network, and on first use some 10 GB below build/.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from bench.restarts import LIMIT, measure  # noqa: E402
from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.boot.surroundings import free_port  # noqa: E402
from tests.kit.life import cli  # noqa: E402
from tests.kit.load import Plan  # noqa: E402
from tests.kit.sglang import wheels as sglang  # noqa: E402

MODEL = "tiny"  # SGLang takes no name with a colon
VLLM = ("--model", "builtin:tiny", "--served-model-name", MODEL, "--engine", "cpu", "--gpu-memory-utilization", "0.2")
HOLD = 120
RATE = 1.0  # without its kernels SGLang makes a few tokens a second


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
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
