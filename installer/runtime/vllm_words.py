"""The words of each family of engines: how it is started and watched, and what nobody may start it with.

Stdlib only, because it runs on the engine's Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Words(NamedTuple):
    title: str
    program: str  # which becomes the engine
    table: str  # of its flags
    refused: Mapping[str, str]  # flags, and why
    variables: Mapping[str, str]  # that are as little to be set
    processes: str  # how the names of its engine's processes begin
    stages: tuple[tuple[str, str], ...]  # words of its log, and what they say of a start
    progress: re.Pattern[str]  # metrics that the engine moves and nothing else does
    queues: re.Pattern[str]
    stands_by: bool  # whether it can be prepared beside the one that serves


SERVING = ("Application startup complete", "waiting for the first answer")

VLLM = Words(
    title="vLLM",
    program="vllm_listen.py",
    table="vllm_flags.json",
    refused={
        "--api-key": "vLLM's own key covers only some routes; keys belong before the --",
        "--uds": "the readiness probe needs TCP: use --host and --port",
        "--grpc": "a gRPC server would answer without a key",
        "--grpc-port": "a gRPC server would answer without a key",
        "--headless": "a server without an API cannot be watched",
        "--disable-log-stats": "without statistics a full queue looks like a hang",
    },
    variables={
        "VLLM_USE_RUST_FRONTEND": "vLLM's Rust front end takes no guard",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "adapters are named by LORA, and no request loads one",
    },
    processes="VLLM::",
    stages=(
        ("Initializing a V1 LLM engine", "starting the engine"),
        ("Starting to load model", "loading weights"),
        ("Loading weights took", "weights loaded"),
        ("Model loading took", "measuring memory"),
        ("Warming up model", "compiling"),
        ("torch.compile", "compiling"),
        ("KV cache size", "warming up"),
        ("Capturing", "capturing graphs"),
        ("Graph capturing finished", "warming up"),
        ("Starting vLLM", "starting the server"),
        SERVING,
    ),
    # The cache's fill moves through a long prefill that yields no token yet.
    progress=re.compile(
        r"^vllm:(?:generation_tokens_total|prompt_tokens_total|iteration_tokens_total_count|num_preemptions_total"
        r"|kv_cache_usage_perc)[ {].*",
        re.MULTILINE,
    ),
    queues=re.compile(r"^vllm:num_requests_(?:running|waiting)[ {].*", re.MULTILINE),
    stands_by=True,
)

GRPC = "a gRPC server would answer without a key"
SEVERAL_HOSTS = "its processes would talk over ports that answer without a key"
SGLANG = Words(
    title="SGLang",
    program="sglang_serve.py",
    table="sglang_flags.json",
    refused={
        "--api-key": "SGLang writes its own key into the log; keys belong before the --",
        "--admin-api-key": "SGLang writes its own key into the log; keys belong before the --",
        "--config": "a file of flags would go round what is refused here",
        "--tokenizer-worker-num": "each of these processes would answer without a key",
        "--enable-http2": "another web server takes no guard",
        "--grpc-port": GRPC,
        "--grpc-mode": GRPC,
        "--smg-grpc-mode": GRPC,
        "--sidecar": GRPC,
        "--use-ray": "its server takes no guard",
        "--encoder-only": "its server takes no guard",
        "--nnodes": SEVERAL_HOSTS,
        "--node-rank": SEVERAL_HOSTS,
        "--dist-init-addr": SEVERAL_HOSTS,
        "--disaggregation-mode": SEVERAL_HOSTS,
        "--enable-dp-attention": SEVERAL_HOSTS,
        "--attn-dp-size": SEVERAL_HOSTS,
        "--decoupled-spec-role": SEVERAL_HOSTS,
        "--remote-instance-weight-loader-start-seed-via-transfer-engine": SEVERAL_HOSTS,
        "--enable-custom-logit-processor": "whoever has a key could run code of his own in the service",
    },
    variables={
        "SGLANG_GRPC_PORT": GRPC,
        "SGLANG_RUST_SERVER": "SGLang's Rust server takes no guard",
    },
    processes="sglang::",
    stages=(
        ("Load weight begin", "loading weights"),
        ("Load weight end", "weights loaded"),
        ("KV Cache is allocated", "warming up"),
        ("Capture", "capturing graphs"),
        ("max_total_num_tokens=", "starting the server"),
        SERVING,
    ),
    progress=re.compile(
        r"^sglang:(?:realtime_tokens_total|generation_tokens_total|prompt_tokens_total|token_usage)[ {].*", re.MULTILINE
    ),
    queues=re.compile(r"^sglang:num_(?:running|queue)_reqs[ {].*", re.MULTILINE),
    stands_by=False,
)

FAMILIES = {"serve": VLLM, "sglang": SGLANG}  # by the first word of what is started
