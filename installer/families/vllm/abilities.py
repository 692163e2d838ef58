"""What one version of vLLM registers, as its own source says: installer/data/vllm.json, compared with it by a test."""

from __future__ import annotations

import functools

from installer.base import datafile
from installer.base.assets import DATA
from installer.families.family import Abilities


@functools.cache
def load_abilities() -> Abilities:
    section = datafile.read(DATA / "vllm.json", " ".join(Abilities.__dataclass_fields__))
    removed, lowest = section.mapping("removed_architectures"), section.mapping("quantizations")
    return Abilities(
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
