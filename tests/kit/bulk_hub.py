"""The test hub with gigabytes to serve, in a process of its own, so that it takes nothing from who is measured.

    python -m tests.kit.bulk_hub --sizes 1G,1G --rate 40000000

prints its address as soon as it answers, and ends when its standard input does. What it holds takes the memory of the
largest file once, however many files there are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from installer.model import builtin
from tests.kit.boot import surroundings
from tests.kit.hub import Bulk, Hub

REPO = "Org/Bulk"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BEGINNING = 4096


@contextmanager
def bulk_hub(sizes: Sequence[str], rate: float = 0.0) -> Iterator[str]:
    """A hub process with a model of such shards; gives its address."""
    command = [sys.executable, "-m", "tests.kit.bulk_hub", "--sizes", ",".join(sizes), "--rate", str(rate)]
    root = surroundings.REPO
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", required=True, help="of the shards, such as 1G,512M")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second for each connection")
    options = parser.parse_args()
    sizes = [int(size[:-1]) * UNITS[size[-1]] for size in options.sizes.split(",")]
    with Hub(rate=options.rate) as hub:
        hub.add(REPO, model(sizes))
        print(hub.url, flush=True)
        sys.stdin.read()


def model(sizes: Sequence[int]) -> dict[str, bytes | Bulk]:
    """A whole checkpoint whose shards differ in their first bytes."""
    small = dict(builtin.files())
    small.pop("model.safetensors")
    names = [f"model-{number:05}-of-{len(sizes):05}.safetensors" for number in range(1, len(sizes) + 1)]
    index = {"weight_map": {name: name for name in names}}
    shards = {name: Bulk(beginning(name, size), body(size)) for name, size in zip(names, sizes, strict=True)}
    return {**small, "model.safetensors.index.json": json.dumps(index).encode(), **shards}


def beginning(name: str, size: int) -> bytes:
    """A safetensors header that claims the whole file."""
    rest = size - BEGINNING
    header = {name: {"dtype": "U8", "shape": [rest], "data_offsets": [0, rest]}}
    return (BEGINNING - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(BEGINNING - 8)


def body(size: int, made: dict[int, int] = {}) -> int:  # noqa: B006 one for each size
    if size not in made:
        made[size] = os.memfd_create("body")
        for offset in range(BEGINNING, size, 1 << 20):
            os.write(made[size], random.Random(offset).randbytes(min(1 << 20, size - offset)))
    return made[size]


if __name__ == "__main__":
    main()
