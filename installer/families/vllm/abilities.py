"""What one version of vLLM registers, as its own source says: installer/data/vllm.json, compared with it by a test."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from installer.base import datafile
from installer.base.assets import DATA


@dataclass(frozen=True)
class VllmFacts:
    version: str
    tool_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    architectures: frozenset[str]
    removed_architectures: Mapping[str, str]  # and the last version that had them
    quantizations: Mapping[str, int]  # and the lowest compute capability, as 75 for 7.5
    quantizations_without_cpu: frozenset[str]
    rocm_quantizations: frozenset[str]
    deprecated_quantizations: frozenset[str]
    own_model_types: frozenset[str]  # they need no code from the model's own repository
    own_tokenizers: frozenset[str]  # model types and classes whose tokenizer needs none


@functools.cache
def load_abilities() -> VllmFacts:
    section = datafile.read(DATA / "vllm.json", " ".join(VllmFacts.__dataclass_fields__))
    removed, lowest = section.mapping("removed_architectures"), section.mapping("quantizations")
    return VllmFacts(
        version=section.text("version"),
        tool_parsers=section.texts("tool_parsers"),
        reasoning_parsers=section.texts("reasoning_parsers"),
        architectures=frozenset(section.texts("architectures")),
        removed_architectures={name: str(version) for name, version in removed.items()},
        quantizations={name: int(str(number)) for name, number in lowest.items()},
        quantizations_without_cpu=frozenset(section.texts("quantizations_without_cpu")),
        rocm_quantizations=frozenset(section.texts("rocm_quantizations")),
        deprecated_quantizations=frozenset(section.texts("deprecated_quantizations")),
        own_model_types=frozenset(section.texts("own_model_types")),
        own_tokenizers=frozenset(section.texts("own_tokenizers")),
    )
