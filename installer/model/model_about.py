"""What a model's small files say about it: its configuration and its chat template. Read before any weight is there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from installer.model.plain_file import read_regular
from installer.model.selection import ADAPTER
from installer.runtime.vllm_text import one_line

CONFIGS = ("config.json", "params.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
# Where a quantization may be described instead of in config.json.
QUANTIZATIONS = ("hf_quant_config.json",)
PROCESSOR = "preprocessor_config.json"
SMALL = (*CONFIGS, *TEMPLATES, *QUANTIZATIONS, PROCESSOR, ADAPTER)
# Mistral's own form has no config.json and names no architecture.
CONSOLIDATED = ("MistralForCausalLM",)


@dataclass(frozen=True)
class About:
    config: Mapping[str, object] = field(default_factory=dict)
    template: str = ""
    quantization: Mapping[str, object] = field(default_factory=dict)  # of a file beside config.json
    processor: Mapping[str, object] = field(default_factory=dict)  # of images
    adapter: Mapping[str, object] = field(default_factory=dict)  # what a LoRA adapter says of itself
    names: frozenset[str] = frozenset()  # of all files at the top
    # files that name Python code of the repository to be run -> the class of transformers that may do instead
    with_code: Mapping[str, str] = field(default_factory=dict)

    @property
    def architectures(self) -> tuple[str, ...]:
        named = self.config.get("architectures")
        if isinstance(named, list):
            return tuple(one_line(str(name), 80) for name in named)
        return CONSOLIDATED if "config.json" not in self.names and "params.json" in self.names else ()


def read_directory(path: Path) -> About:
    """What lies in a directory; what is damaged there counts as missing, `models verify` names it."""
    names = frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset[str]()
    texts = {name: read_small(path / name) for name in SMALL if name in names}
    return read_texts(texts, names)


def read_texts(texts: Mapping[str, str], names: Iterable[str]) -> About:
    config = next((_object(texts[name]) for name in CONFIGS if name in texts), {})
    quantization = next((_object(texts[name]) for name in QUANTIZATIONS if name in texts), {})
    processor = _object(texts.get(PROCESSOR, ""))
    adapter = _object(texts.get(ADAPTER, ""))
    parsed = {name: _object(text) for name, text in texts.items()}
    with_code = {name: str(said.get("tokenizer_class")) for name, said in parsed.items() if said.get("auto_map")}
    return About(config, _template(texts), quantization, processor, adapter, frozenset(names), with_code)


def read_small(path: Path) -> str:
    try:
        return read_regular(path).decode(errors="replace")
    except OSError:
        return ""


def _object(text: str) -> Mapping[str, object]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _template(texts: Mapping[str, str]) -> str:
    """The chat template in force; of several named ones, all of them."""
    if texts.get("chat_template.jinja"):
        return texts["chat_template.jinja"]
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _object(texts.get(name, "")).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            return "\n".join(str(one.get("template", "")) for one in found if isinstance(one, dict))
    return ""
