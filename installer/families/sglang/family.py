"""SGLang, as the house asks about it."""

from __future__ import annotations

from installer.families.family import Abilities, Family
from installer.families.sglang.log import LOG
from installer.families.sglang.metrics import METRICS
from installer.families.sglang.packages import PACKAGES
from installer.families.sglang.parsers import in_own_words
from installer.families.sglang.serve import check_words, environment, keeps_weights, memory_share, serve_arguments
from installer.runtime import vllm_flags
from installer.runtime.vllm_words import SGLANG as WORDS

NOTHING: frozenset[str] = frozenset()


def load_abilities() -> Abilities:
    """Its parsers; of models and formats it is not known which it can do, so nothing is said of them."""
    table = vllm_flags.load_table(WORDS.table)
    return Abilities(
        version=table.version,
        tool_parsers=tuple(table.choices["--tool-call-parser"]),
        reasoning_parsers=tuple(table.choices["--reasoning-parser"]),
        architectures=NOTHING,
        removed_architectures={},
        quantizations={},
        quantizations_without_cpu=NOTHING,
        rocm_quantizations=NOTHING,
        deprecated_quantizations=NOTHING,
        own_model_types=NOTHING,
        own_tokenizers=NOTHING,
    )


SGLANG = Family(
    name="sglang",
    title="SGLang",
    version_setting="sglang_version",
    arguments=serve_arguments,
    environment=environment,
    check_words=check_words,
    memory_share=memory_share,
    gpus_a_rank=lambda settings: 1,
    packages=PACKAGES,
    abilities=load_abilities,
    in_own_words=in_own_words,
    log=LOG,
    metrics=METRICS,
    compiling=None,
    predicts_memory=False,
    measures=False,
    keeps_weights=keeps_weights,
)
