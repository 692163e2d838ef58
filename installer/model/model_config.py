"""A model's config.json, asked for what the memory estimate needs; families that leave fields out get theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What transformers fills in where a published config.json is silent.
DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "num_hidden_layers": 26,
        "hidden_size": 2304, "intermediate_size": 9216, "vocab_size": 262208,
        "max_position_embeddings": 131072, "sliding_window": 4096, "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        "head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "gemma": {"head_dim": 256, "tie_word_embeddings": True},
    "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 128},
    "qwen3_next": {"full_attention_interval": 4, "head_dim": 256},
    "qwen3_5_text": {"full_attention_interval": 4, "head_dim": 256, "mamba_ssm_dtype": "float32"},
    "qwen3_5_moe_text": {"full_attention_interval": 4, "head_dim": 256, "mamba_ssm_dtype": "float32"},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2},
    "nemotron_h": {"mamba_ssm_cache_dtype": "float32", "conv_kernel": 4, "ssm_state_size": 128},
    "lfm2": {"conv_L_cache": 3},
    "jamba": {
        "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4,
    },
}  # fmt: skip
LIMITS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
# These leave max_position_embeddings as long as the stretched positions are.
STRETCHED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
UNKNOWN_LIMIT = 2048  # vLLM's own assumption
# What no model has; without a bound one made-up number fills the memory of whoever counts with it.
LARGEST = 2**50
MOST_LAYERS = 2000
# Has kv_lora_rank, but its cache holds whole heads.
NOT_MLA = ("minicpm3",)


def number_in(value: object) -> float | None:
    """What can be counted with: JSON has NaN, Infinity and numbers of thousands of digits as well."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value <= LARGEST else None


def count_in(section: Mapping[str, object], *names: str, default: int) -> int:
    """The first of these fields that holds a count of at least one."""
    counts = (int(number) for name in names if (number := number_in(section.get(name))) is not None)
    return next((count for count in counts if count), default)


@dataclass(frozen=True)
class Config:
    top: Mapping[str, object]
    text: Mapping[str, object]  # of the language model, which multimodal configurations hold one level down

    @classmethod
    def of(cls, top: Mapping[str, object]) -> Config:
        text: Mapping[str, object] = top
        for name in ("text_config", "llm_config", "language_config", "thinker_config"):
            inner = text.get(name)
            if isinstance(inner, dict):
                text = inner
        family = str(text.get("model_type") or top.get("model_type") or "")
        given = {name: value for name, value in text.items() if value is not None}
        return cls(top, {**DEFAULTS.get(family, {}), **given, "model_type": family})

    def number(self, *names: str, default: int = 0) -> int:
        """The first of these fields that holds a number."""
        for name in names:
            value = number_in(self.text.get(name))
            if value is not None:
                return int(value)
        return default

    def word(self, name: str, default: str = "") -> str:
        value = self.text.get(name, self.top.get(name))
        return value if isinstance(value, str) else default

    def section(self, name: str) -> Mapping[str, object]:
        value = self.text.get(name, self.top.get(name))
        return value if isinstance(value, dict) else {}

    @property
    def family(self) -> str:
        return self.word("model_type")

    @property
    def layers(self) -> int:
        told = len(self.word("hybrid_override_pattern")) or self.number("num_hidden_layers", "n_layer", "n_layers")
        return min(told, MOST_LAYERS)

    @property
    def hidden(self) -> int:
        return self.number("hidden_size", "n_embd", "d_model")

    @property
    def heads(self) -> int:
        return self.number("num_attention_heads", "n_head", "n_heads")

    @property
    def kv_heads(self) -> int:
        names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
        return self.number(*names, default=self.heads)

    @property
    def head_dim(self) -> int:
        return self.number("head_dim", "hidden_size_per_head") or (self.hidden // self.heads if self.heads else 0)

    @property
    def intermediate(self) -> int:
        return self.number("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * self.hidden)

    @property
    def vocabulary(self) -> int:
        return self.number("vocab_size")

    @property
    def experts_per_token(self) -> int:
        return self.number("num_experts_per_tok", "top_k_experts", "moe_topk")

    @property
    def expert_size(self) -> int:
        return self.number("moe_intermediate_size", default=self.intermediate)

    @property
    def is_tied(self) -> bool:
        return bool(self.text.get("tie_word_embeddings", self.top.get("tie_word_embeddings", False)))

    @property
    def is_mla(self) -> bool:
        return self.number("kv_lora_rank") > 0 and self.family not in NOT_MLA

    @property
    def window(self) -> int:
        """Tokens that a sliding window spans; 0 where no layer has one."""
        return self.number("sliding_window") if self.text.get("use_sliding_window", True) is not False else 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of one number in the checkpoint, as far as it is not quantized."""
        dtype = self.word("dtype") or self.word("torch_dtype")
        return 4 if dtype.removeprefix("torch.") == "float32" else 2

    @property
    def quantization(self) -> Mapping[str, object]:
        return self.section("quantization_config") or self.section("compression_config")

    @property
    def is_dense_fp8(self) -> bool:
        """Whether every layer is of 8-bit numbers with a scale for each block, and none of experts."""
        blocks = self.quantization.get("quant_method") == "fp8" and bool(self.quantization.get("weight_block_size"))
        return blocks and not self.experts_per_token

    @property
    def has_fp8_cache(self) -> bool:
        """Whether the checkpoint itself asks for a cache of 8-bit numbers."""
        scheme = self.quantization.get("kv_cache_scheme")
        return bool(scheme) or str(self.quantization.get("kv_cache_quant_algo")).upper() == "FP8"

    @property
    def limit(self) -> int:
        """The longest context that vLLM accepts for the model."""
        named = [self.number(name) for name in LIMITS if self.number(name) > 0]
        return max(1, int((min(named) if named else UNKNOWN_LIMIT) * self._stretch()))

    def _stretch(self) -> float:
        if "gemma3" in self.family:
            return 1.0
        rope = self.section("rope_parameters") or self.section("rope_scaling")
        factor = 1.0
        for part in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
            value = number_in(part.get("factor"))
            if part.get("rope_type", part.get("type")) not in STRETCHED and value is not None:
                factor = float(value)
        return factor
