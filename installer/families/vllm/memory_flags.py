"""Those of vLLM's flags that change how much memory it takes, read from the words of VLLM_ARGS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.sizes import GIB
from installer.runtime import vllm_flags

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Each takes as many GPUs again; of two for one thing the first counts.
PARALLEL = (
    ("--pipeline-parallel-size",),
    ("--data-parallel-size-local", "--data-parallel-size"),
    ("--prefill-context-parallel-size",),
)


@dataclass(frozen=True)
class Flags:
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    quantization: str = ""
    block_size: int = 0
    max_num_seqs: int = 0  # 0 for vLLM's own choice, here and below
    max_num_batched_tokens: int = 0
    kv_cache_memory: int = 0
    pipeline_parallel: int = 1
    cpu_offload: int = 0
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    eager: bool = False
    keep_windows: bool = True
    prefix_caching: bool = True
    async_scheduling: bool = True
    without_images: bool = False
    speculative: bool = False

    @property
    def model_bytes(self) -> int:
        """Bytes of one number that vLLM computes with."""
        return 4 if self.dtype in ("float32", "float") else 2

    @classmethod
    def of(cls, words: Sequence[str]) -> Flags:
        given = vllm_flags.given(words)

        def number(name: str) -> int:
            return _number(name, given[name]) if given.get(name) else 0

        return cls(
            kv_cache_dtype=given.get("--kv-cache-dtype", "auto"),
            dtype=given.get("--dtype", "auto"),
            quantization=given.get("--quantization", ""),
            block_size=number("--block-size"),
            max_num_seqs=number("--max-num-seqs"),
            max_num_batched_tokens=number("--max-num-batched-tokens"),
            kv_cache_memory=number("--kv-cache-memory-bytes"),
            pipeline_parallel=max(1, number("--pipeline-parallel-size")),
            cpu_offload=number("--cpu-offload-gb") * GIB,
            mamba_cache_dtype=given.get("--mamba-cache-dtype", "auto"),
            mamba_ssm_cache_dtype=given.get("--mamba-ssm-cache-dtype", "auto"),
            eager="--enforce-eager" in given,
            keep_windows="--disable-hybrid-kv-cache-manager" not in given,
            prefix_caching="--no-enable-prefix-caching" not in given,
            async_scheduling="--no-async-scheduling" not in given,
            without_images="--language-model-only" in given or "--skip-mm-profiling" in given,
            speculative="--speculative-config" in given,
        )


def replicas(words: Sequence[str]) -> int:
    """How many times as many GPUs as its tensor parallelism a service takes; what vLLM refuses is not judged here."""
    given = vllm_flags.given(words)
    factor = 1
    for names in PARALLEL:
        text = next((given[name] for name in names if name in given), "1")
        factor *= max(1, int(text)) if text.isdecimal() else 1
    return factor


def _number(name: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)", text)
    if not match:
        raise UsageError(tr("{name} {text}: expected a number such as 256, 8k or 4G", name=name, text=text))
    return int(float(match[1]) * UNITS.get(match[2], 1))
