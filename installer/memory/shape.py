"""What a model asks of memory: its configuration, vLLM's flags, and the bytes of its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.families.vllm.memory_flags import Flags
from installer.model.checkpoint import json_object
from installer.model.model_config import Config, count_in, number_in
from installer.model.safetensors import Damaged, read_header
from installer.spec.settings import Settings


@dataclass(frozen=True)
class Shape:
    """Everything about a model that the estimate needs."""

    config: Config
    flags: Flags
    tensor_parallel: int
    weights: int  # bytes, on all GPUs together
    image_tokens: int = 0  # what the largest image takes; 0 for a model that sees none

    @property
    def limit(self) -> int:
        return self.config.limit

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.flags.pipeline_parallel


def read_shape(model_path: Path, settings: Settings) -> Shape:
    """Read config.json and the weights' index or headers; no tensor is read."""
    top = _json(model_path / "config.json")
    processor = model_path / "preprocessor_config.json"
    return shape_of(top, _stored(model_path, Config.of(top)), settings, _json(processor) if processor.is_file() else {})


def shape_of(
    top: Mapping[str, object], stored: int, settings: Settings, processor: Mapping[str, object] | None = None
) -> Shape:
    """The same from what config.json and preprocessor_config.json hold, and the bytes of the weights on disk."""
    config, flags = Config.of(top), Flags.of(settings.vllm_words)
    return Shape(
        config=config,
        flags=flags,
        tensor_parallel=settings.tensor_parallel_size,
        weights=_loaded(stored, config, flags),
        image_tokens=0 if flags.without_images else _image_tokens(processor or {}, config),
    )


def _json(path: Path) -> Mapping[str, object]:
    problems: list[str] = []
    content = json_object(path, problems)
    if problems:
        raise UsageError(problems[0], tr("see what else is wrong with the model: vllm-install models verify"))
    return content


# Weights


def _stored(model_path: Path, config: Config) -> int:
    """Bytes of tensors that vLLM will load, as they lie on disk."""
    index = next(iter(sorted(model_path.glob("*.safetensors.index.json"))), None)
    content = _json(index) if index else {}
    shards = content.get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    files = [model_path / name for name in sorted(names)] or sorted(model_path.glob("*.safetensors"))
    if files and all(map(os.path.isfile, files)):  # which takes any name
        return sum(_tensors(file, config) for file in files)
    metadata = content.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if (size := number_in(total)) is not None:
        return int(size)
    files = [file for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in model_path.glob(pattern)]
    if files:
        return sum(file.stat().st_size for file in files)
    raise UsageError(tr("{path} holds no weights", path=model_path), tr("fetch them: vllm-install models pull"))


def _tensors(file: Path, config: Config) -> int:
    """Bytes of one file's tensors by its header, less those that vLLM leaves out."""
    try:
        header = read_header(file)
    except Damaged:
        return file.stat().st_size
    return sum(tensor.end - tensor.begin for name, tensor in header.items() if not _is_left_out(name, config))


def _is_left_out(name: str, config: Config) -> bool:
    """Layers for speculation lie behind the last one; a tied head is the embedding once more."""
    layer = re.search(r"(?:^|\.)layers\.(\d{1,9})\.", name)
    is_extra = layer is not None and name.startswith("model.layers.") and int(layer[1]) >= config.layers > 0
    return is_extra or name.startswith("mtp.") or (config.is_tied and name.endswith("lm_head.weight"))


def _loaded(stored: int, config: Config, flags: Flags) -> int:
    """Bytes in memory: numbers are converted to the type that vLLM computes with, unless they are quantized."""
    if config.quantization:
        return stored
    loaded = stored * flags.model_bytes // config.stored_bytes
    if flags.quantization == "fp8":
        kept = min(loaded, config.vocabulary * config.hidden * flags.model_bytes * (1 if config.is_tied else 2))
        loaded = kept + (loaded - kept) // 2
    return loaded


# Images


def _image_tokens(processor: Mapping[str, object], config: Config) -> int:
    """How many tokens the largest image takes, by what the image processor allows."""
    vision = config.top.get("vision_config")
    if not isinstance(vision, dict):
        return 0
    fixed = count_in(config.top, "mm_tokens_per_image", default=0)
    if fixed:
        return fixed
    size = processor.get("size")
    edge = count_in(size, "longest_edge", default=0) if isinstance(size, dict) else 0
    pixels = count_in(processor, "max_pixels", default=edge)
    side = count_in(vision, "patch_size", default=14) * count_in(vision, "spatial_merge_size", default=1)
    if pixels > 1_000_000:
        return pixels // side**2
    edge = count_in(vision, "image_size", default=0)
    return (edge // side) ** 2 if edge else 16384
