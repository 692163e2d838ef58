"""The picture of `bench` in docs/images, in both languages: the real vLLM on the CPU, measured as users do (root)."""

from __future__ import annotations

import sys

from scripts.screens import IMAGES, MODEL
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.life import cli
from tests.kit.memory import share

LANGUAGES = {"": "en", ".zh_CN": "zh_CN"}  # by the picture's suffix


def main() -> None:
    with Machine(network=True, store=True) as machine:
        machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", timeout=900)
        machine.save_store()
        words = f"--model {MODEL} --engine cpu --gpu-memory-utilization {share()} --context 16k --port {free_port()}"
        cli(machine, "deploy", *words.split(), timeout=600)
        cli(machine, "bench", "--quick", timeout=600)
        for suffix, language in LANGUAGES.items():
            cli(machine, "--lang", language, "bench", "show", "--svg", "/root/bench.svg")
            (IMAGES / f"bench{suffix}.svg").write_text(machine.at("/root/bench.svg").read_text())


if __name__ == "__main__":
    main()
