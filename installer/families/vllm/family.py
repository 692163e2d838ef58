"""vLLM, as the house asks about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from installer.families.family import Compiling, Family, say_unheeded
from installer.families.vllm import cuda, serve_flags
from installer.families.vllm.abilities import load_abilities
from installer.families.vllm.log import LOG
from installer.families.vllm.memory_flags import replicas
from installer.families.vllm.metrics import METRICS
from installer.families.vllm.packages import PACKAGES
from installer.families.vllm.serve import memory_share, serve_arguments
from installer.spec.settings import Settings
from installer.spec.target import Target


def _environment(target: Target, engine: Path) -> dict[str, str]:
    return cuda.environment(target.toolkit, engine) if target.toolkit else {}


def _check_words(settings: Settings, warn: Callable[[str], None]) -> None:
    serve_flags.check_words(settings.vllm_args, settings.vllm_version, warn)
    say_unheeded("vLLM", ("sglang_args",), settings, warn)


VLLM = Family(
    name="vllm",
    title="vLLM",
    version_setting="vllm_version",
    arguments=serve_arguments,
    environment=_environment,
    check_words=_check_words,
    memory_share=memory_share,
    gpus_a_rank=lambda settings: replicas(settings.vllm_words),
    packages=PACKAGES,
    abilities=load_abilities,
    in_own_words=lambda profile: profile,
    log=LOG,
    metrics=METRICS,
    compiling=Compiling(cuda.describe, cuda.COST, cuda.attention, cuda.pays),
    predicts_memory=True,
    measures=True,
    keeps_weights=lambda settings: True,
    several_on_cpu={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},  # each would take the same first cores
)
