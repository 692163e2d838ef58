"""What SGLang calls the parsers that the profiles know by vLLM's names; one of another name has the same in both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from installer.base.language import mark
from installer.runtime.vllm_flags import load_table
from installer.runtime.vllm_words import SGLANG
from installer.spec.profile import Profile

NO_TOOLS = mark("it can call tools, but SGLang has no parser for the way in which it does")  # kept in the state
TOOLS = {
    "openai": "gpt-oss",
    "deepseek_v3": "deepseekv3",
    "deepseek_v31": "deepseekv31",
    "deepseek_v32": "deepseekv32",
    "deepseek_v4": "deepseekv4",
    "llama3_json": "llama3",
    "llama4_pythonic": "pythonic",
    "minimax_m2": "minimax-m2",
}
REASONING = {
    "openai_gptoss": "gpt-oss",
    "deepseek_r1": "deepseek-r1",
    "deepseek_v3": "deepseek-v3",
    "deepseek_v4": "deepseek-v4",
    "minimax_m2": "minimax",
    "nemotron_v3": "nemotron_3",
}


def in_own_words(profile: Profile) -> Profile:
    """The same with SGLang's names; without what it has no parser for."""
    choices = load_table(SGLANG.table).choices
    tools = _named(profile.tool_parser, TOOLS, choices["--tool-call-parser"])
    reasoning = _named(profile.reasoning_parser, REASONING, choices["--reasoning-parser"])
    needs = (*profile.needs, NO_TOOLS) if profile.tool_parser and not tools else profile.needs
    return replace(profile, tool_parser=tools, reasoning_parser=reasoning, needs=needs)


def _named(found: str | None, names: Mapping[str, str], known: Collection[str]) -> str | None:
    name = names.get(found, found) if found else None
    return name if name in known else None
