"""A tiny but real Qwen3 checkpoint, made on the spot: what to try and test with where no hub can be reached.

The layers hold small seeded noise, so every kernel has something to do; embedding and head hold a table of
which letter follows which in a few sentences, so that answers look like words and end by themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Report, size
from installer.spec.values import BUILTIN

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 64, 2, 4, 2, 64, 128
CONTEXT = 32768
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 320  # a multiple of 64, as engines pad it to; every id has a token, so any sampled id decodes
END_OF_TEXT, IM_END = 256, 258
SEED = 20260
WEIGHTS = "model.safetensors"
DIGEST = "5441bbfc77a25fb256840bce17a602d5fbd3fbe027cdc0245b481f331f4c8ca0"  # theirs: to make them takes longer
SENTENCES = (
    "The tiny model is only here to try the service.",
    "It has no idea what it says, but it says it at once.",
    "Each letter is drawn from the one before, and then the line ends.",
    "No one should rely on the sense of these answers.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GENERATION = {"do_sample": True, "temperature": 0.7, "eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": END_OF_TEXT}


@dataclass(frozen=True)
class MakeBuiltin:
    """Write the built-in model; a reader sees the old directory or the new one, never half of it."""

    path: Path

    def describe(self) -> str:
        return tr("make the built-in model in {path} ({size})", path=self.path, size=size(_bytes()))

    def to_json(self) -> dict[str, object]:
        return {"kind": "make", "model": BUILTIN, "path": str(self.path), "bytes": _bytes()}

    def apply(self, host: Host, report: Report) -> None:
        # The same name every time, so that what a killed run left goes with the next one.
        staging = self.path.with_name(f".{self.path.name}.new")
        host.remove(staging)
        try:
            write(staging, host)
            host.remove(self.path)
            host.move(staging, self.path)
        except BaseException as error:
            host.remove(staging)
            if isinstance(error, OSError):
                error.filename = str(self.path)  # a write to a full disk does not know its file
            raise


def is_current(directory: Path) -> bool:
    """Whether the directory holds exactly what we would write."""
    try:
        same = all((directory / name).read_bytes() == content for name, content in _texts().items())
        return same and hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest() == DIGEST
    except OSError:
        return False


def write(directory: Path, host: Host) -> None:
    for name, content in files().items():
        host.write(directory / name, content.decode(errors="surrogateescape"))


@cache
def files() -> dict[str, bytes]:
    """The whole checkpoint, the same bytes every time and everywhere."""
    return {**_texts(), WEIGHTS: _safetensors(_weights())}


def _texts() -> dict[str, bytes]:
    texts = {
        "config.json": _config(),
        "generation_config.json": GENERATION,
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(),
    }
    return {name: (json.dumps(content, indent=1) + "\n").encode() for name, content in texts.items()}


def _bytes() -> int:
    return sum(map(len, files().values()))


def _config() -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
    }


def _byte_tokens() -> list[str]:
    """The printable stand-in that byte-level tokenizers use for each byte value."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    stand_in = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [stand_in[byte] for byte in range(256)]


def _special_tokens() -> list[str]:
    named = list(SPECIAL)
    return named + [f"<|reserved_{i}|>" for i in range(VOCABULARY - 256 - len(named))]


def _tokenizer() -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 256 + i, "content": token, **flags} for i, token in enumerate(_special_tokens())]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: byte for byte, token in enumerate(_byte_tokens())},
            "merges": [],
        },
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }


Tensor = tuple[tuple[int, ...], Iterable[float]]


def _weights() -> dict[str, Tensor]:
    source = random.Random(SEED)  # noqa: S311 the same weights everywhere is the point

    def noise(*shape: int) -> Tensor:
        return shape, [0.04 * (source.random() - 0.5) for _ in range(math.prod(shape))]

    def ones(length: int) -> Tensor:
        return (length,), [1.0] * length

    tensors: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones(HIDDEN)
        tensors[prefix + "post_attention_layernorm.weight"] = ones(HIDDEN)
        tensors[prefix + "self_attn.q_norm.weight"] = ones(HEAD_DIM)
        tensors[prefix + "self_attn.k_norm.weight"] = ones(HEAD_DIM)
        tensors[prefix + "self_attn.q_proj.weight"] = noise(HEADS * HEAD_DIM, HIDDEN)
        tensors[prefix + "self_attn.k_proj.weight"] = noise(KV_HEADS * HEAD_DIM, HIDDEN)
        tensors[prefix + "self_attn.v_proj.weight"] = noise(KV_HEADS * HEAD_DIM, HIDDEN)
        tensors[prefix + "self_attn.o_proj.weight"] = noise(HIDDEN, HEADS * HEAD_DIM)
        tensors[prefix + "mlp.gate_proj.weight"] = noise(MLP, HIDDEN)
        tensors[prefix + "mlp.up_proj.weight"] = noise(MLP, HIDDEN)
        tensors[prefix + "mlp.down_proj.weight"] = noise(HIDDEN, MLP)
    embedding, head = _letter_table()
    tensors["model.embed_tokens.weight"] = (VOCABULARY, HIDDEN), embedding
    tensors["model.norm.weight"] = ones(HIDDEN)
    tensors["lm_head.weight"] = (VOCABULARY, HIDDEN), head
    return tensors


def _letter_table() -> tuple[list[float], list[float]]:
    """Embedding and head: each known letter owns a dimension, where the head holds what follows it."""
    lines = [[*f"\n{sentence}".encode(), IM_END] for sentence in SENTENCES]
    follows = Counter(pair for line in lines for pair in pairwise(line))
    total = Counter(token for line in lines for token in line[:-1])
    dimension = {token: index for index, token in enumerate(sorted(total))}

    embedding = [0.0] * (VOCABULARY * HIDDEN)
    for token in range(VOCABULARY):
        # What the sentences do not know behaves as a line break does: a new sentence starts after it.
        embedding[token * HIDDEN + dimension.get(token, dimension[ord("\n")])] = 1.0
    # The last norm makes the one dimension that is set about as large as the root of their number.
    scale = math.sqrt(HIDDEN)
    head = [-8.0 / scale] * (VOCABULARY * HIDDEN)
    for (token, successor), count in follows.items():
        head[successor * HIDDEN + dimension[token]] = (math.log(count / total[token]) + 8.0) / scale
    return embedding, head


def _bfloat16(values: Iterable[float]) -> bytes:
    """The upper half of each little-endian float32."""
    numbers = [*values]
    words = struct.pack(f"<{len(numbers)}f", *numbers)
    half = bytearray(len(words) // 2)
    half[0::2], half[1::2] = words[2::4], words[3::4]
    return bytes(half)


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, (shape, values) in sorted(tensors.items()):
        start = len(body)
        body += _bfloat16(values)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, len(body)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin aligned, so that they can be mapped
    return struct.pack("<Q", len(text)) + text + bytes(body)
