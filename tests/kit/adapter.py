"""A LoRA adapter for builtin:tiny, in the form that PEFT writes: real, and large enough to change every answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

from installer.model import builtin
from installer.model.selection import ADAPTER, ADAPTER_WEIGHTS

RANK = 4


def files(rank: int = RANK, **said: object) -> dict[str, bytes]:
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "builtin:tiny", "bias": "none",
        "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target_modules": ["o_proj", "down_proj"], **said,
    }  # fmt: skip
    return {ADAPTER: json.dumps(config).encode(), ADAPTER_WEIGHTS: _weights(rank)}


def write(directory: Path, rank: int = RANK, **said: object) -> None:
    directory.mkdir(parents=True)
    for name, content in files(rank, **said).items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o644)


def _weights(rank: int) -> bytes:
    source, tensors = random.Random(5), {}
    for layer in range(builtin.LAYERS):
        for module, width in (("self_attn.o_proj", builtin.HEADS * builtin.HEAD_DIM), ("mlp.down_proj", builtin.MLP)):
            place = f"base_model.model.model.layers.{layer}.{module}"
            for letter, shape in (("A", (rank, width)), ("B", (builtin.HIDDEN, rank))):
                numbers = [8 * (source.random() - 0.5) for _ in range(shape[0] * shape[1])]
                tensors[f"{place}.lora_{letter}.weight"] = shape, numbers
    return builtin._safetensors(tensors)
