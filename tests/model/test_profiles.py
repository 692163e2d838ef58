"""What a model can do, told by its own files: families by architecture, parsers by chat template, names by nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from installer.base import datafile
from installer.base.datafile import DataError
from installer.base.errors import UsageError
from installer.families.vllm import abilities
from installer.model import profiles
from installer.model.model_about import About, read_directory
from installer.spec.profile import Profile
from installer.spec.settings import Settings
from tests.kit.boot.surroundings import REPO

TOOLS = "{% for tool in tools %}{{ tool }}{% endfor %}"
JSON_CALLS = TOOLS + '<tool_call>{"name": …, "arguments": …}</tool_call>'
XML_CALLS = TOOLS + "<tool_call>\n<function=name>\n<parameter=x>"
SWITCH = "{% if enable_thinking is false %}<think></think>{% endif %}"
OPENED = r"{{ '<|im_start|>assistant\n<think>\n' }}"
DEEPSEEK = "<｜tool▁calls▁begin｜>"


def about(
    architecture: str, template: str = "", *, names: tuple[str, ...] = ("config.json",), **config: object
) -> About:
    return About({"architectures": [architecture], **config}, template, names=frozenset(names))


def parsers(architecture: str, template: str, *args: str) -> tuple[str | None, str | None]:
    found = profiles.of(about(architecture, template), args)
    return found.tool_parser, found.reasoning_parser


@pytest.mark.parametrize(
    ("architecture", "template", "tool", "reasoning"),
    [
        ("Qwen3VLForConditionalGeneration", JSON_CALLS, "hermes", None),
        ("Qwen3VLForConditionalGeneration", JSON_CALLS + OPENED, "hermes", "qwen3"),
        ("Qwen3ForCausalLM", JSON_CALLS + SWITCH, "hermes", "qwen3"),
        # Where thinking must be asked for, the parser would take every plain answer for a thought.
        ("Qwen3ForCausalLM", JSON_CALLS + "{% if enable_thinking is true %}<think>", "hermes", None),
        ("Qwen3ForCausalLM", JSON_CALLS + "{%- if enable_thinking -%}<think>", "hermes", None),
        ("Qwen3MoeForCausalLM", XML_CALLS, "qwen3_coder", None),
        ("Qwen3_5ForConditionalGeneration", XML_CALLS + SWITCH, "qwen3_coder", "qwen3"),
        ("Qwen2ForCausalLM", JSON_CALLS, "hermes", None),
        ("Qwen2ForCausalLM", JSON_CALLS + OPENED, "hermes", "deepseek_r1"),  # QwQ
        ("LlamaForCausalLM", TOOLS + "Environment: ipython", "llama3_json", None),
        ("LlamaForCausalLM", JSON_CALLS, "hermes", None),  # a fine-tune that was taught another format
        ("LlamaForCausalLM", "{{ '<｜Assistant｜><think>' }}", None, "deepseek_r1"),  # a distilled one
        ("Llama4ForConditionalGeneration", TOOLS, "llama4_pythonic", None),
        ("MistralForCausalLM", TOOLS + "[TOOL_CALLS]", "mistral", None),
        ("MistralForCausalLM", "", "mistral", None),  # its own tokenizer instead of a template
        ("GptOssForCausalLM", TOOLS + "<|channel|>", "openai", "openai_gptoss"),
        ("DeepseekV3ForCausalLM", TOOLS + DEEPSEEK + "```json", "deepseek_v3", None),
        ("DeepseekV3ForCausalLM", TOOLS + DEEPSEEK + "{% if not thinking %}</think>", "deepseek_v31", "deepseek_v3"),
        ("DeepseekV3ForCausalLM", TOOLS + "<|im_middle|><think>", "kimi_k2", "kimi_k2"),
        ("DeepseekV32ForCausalLM", "", "deepseek_v32", "deepseek_v3"),
        ("DeepseekV4ForCausalLM", "", "deepseek_v4", "deepseek_v4"),
        ("Glm4MoeForCausalLM", TOOLS + "{function-name}\n<arg_key><think>", "glm45", "glm45"),
        ("Glm4MoeForCausalLM", TOOLS + "{function-name}<arg_key><think>", "glm47", "glm45"),
        ("MiniMaxM2ForCausalLM", TOOLS + "<minimax:tool_call><think>", "minimax_m2", "minimax_m2"),
        ("GraniteMoeHybridForCausalLM", JSON_CALLS, "granite4", None),
        ("Gemma4ForConditionalGeneration", TOOLS + "<|tool_call>call:<|channel>", "gemma4", "gemma4"),
        ("NobodyKnowsItForCausalLM", XML_CALLS, "qwen3_coder", None),
        ("NobodyKnowsItForCausalLM", JSON_CALLS + SWITCH, "hermes", None),
    ],
)  # fmt: skip
def test_parity_row_28_the_parser_by_architecture_and_template(
    architecture: str, template: str, tool: str | None, reasoning: str | None
) -> None:
    assert parsers(architecture, template) == (tool, reasoning)


def test_a_template_that_does_not_show_tools_to_the_model_has_no_tool_calls() -> None:
    without = '{{ message.tools }}{{ message["tools"] }}<tool_call>{"name": 1, "arguments": 2}'
    assert parsers("Qwen3ForCausalLM", without) == (None, None)
    assert "--chat-template" in profiles.of(about("Qwen3ForCausalLM", without)).needs[0]
    assert profiles.of(about("Qwen3ForCausalLM", "{%- if tools %}" + without)).needs == ()
    assert parsers("Qwen3ForCausalLM", without, "--chat-template=/srv/own.jinja")[0] == "hermes"
    assert parsers("Qwen3ForCausalLM", "{%- if tools %}" + without)[0] == "hermes"


def test_nothing_is_chosen_for_a_model_of_which_nothing_is_known() -> None:
    found = profiles.of(About())
    assert found == Profile()
    assert found.describe() == "no known family: no tool calls, no separate reasoning, text only"


def test_images_are_told_by_the_configuration() -> None:
    assert profiles.of(about("Gemma3ForConditionalGeneration", vision_config={"a": 1})).takes_images
    assert not profiles.of(about("Gemma3ForCausalLM")).takes_images


def test_a_directory_is_described_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {"a": 1}}'
    )
    (tmp_path / "chat_template.jinja").write_text(JSON_CALLS)
    found = profiles.of(read_directory(tmp_path))
    assert found.describe() == "Qwen3-VL: tool calls by hermes, no separate reasoning, takes images"


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": "T", "tokenizer_config.json": '{"chat_template": "old"}'},
        {"chat_template.json": '{"chat_template": "T"}'},
        {"tokenizer_config.json": '{"chat_template": "T"}'},
        {"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "T"}]}'},
    ],
)
def test_a_template_is_found_where_models_keep_it(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_directory(tmp_path).template == "T"


def test_damaged_files_are_as_good_as_none(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes(b"\xff[" if name.endswith("json") else b"")
    found = read_directory(tmp_path)
    assert (found.config, found.template, found.architectures) == ({}, "", ())


def test_mistrals_own_form_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"dim": 1}')
    assert profiles.of(read_directory(tmp_path)).tool_parser == "mistral"


# What the user asks for


def test_auto_keeps_none_takes_away_and_a_name_wins() -> None:
    found = Profile("Qwen3", "hermes", "qwen3")
    assert profiles.chosen(found, "auto", "auto") == found
    assert profiles.chosen(found, "none", "none") == Profile("Qwen3")
    assert profiles.chosen(Profile(), "mistral", "deepseek_r1") == Profile("", "mistral", "deepseek_r1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(tool_call_parser="hermse"), "--tool-call-parser hermse: .* did you mean hermes"),
        (Settings(reasoning_parser="qwen"), "--reasoning-parser qwen: .* did you mean qwen3"),
        (Settings(reasoning_parser="hermes"), "has no such parser"),
    ],
)
def test_a_wrong_name_is_refused_with_the_near_ones(settings: Settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profiles.check_names(settings)


def test_names_are_not_judged_where_they_may_exist() -> None:
    profiles.check_names(Settings())
    profiles.check_names(Settings(tool_call_parser="none", reasoning_parser="deepseek_r1"))
    profiles.check_names(Settings(tool_call_parser="brand_new", vllm_version="0.99.0"))
    profiles.check_names(Settings(tool_call_parser="mine", vllm_args=("--tool-parser-plugin", "/srv/mine.py")))


# The data


def test_every_parser_and_architecture_of_the_data_is_one_of_vllms() -> None:
    known, real = profiles.load_profiles(), abilities.load_abilities()
    assert known.parsers("tools") <= set(real.tool_parsers)
    assert known.parsers("reasoning") <= set(real.reasoning_parsers)
    assert {name for family in known.families for name in family.architectures} <= real.architectures
    assert real.version == Settings.vllm_version


def test_the_sizes_of_the_models_are_those_of_their_published_index() -> None:
    published = REPO / "tests/fixtures/configs"
    sizes = {
        json.loads((path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
        for path in published.iterdir()
    }
    models = [model for family in profiles.load_profiles().families for model in family.models]
    assert len({model.bytes for model in models} & sizes) >= 10
    for model in models:
        assert 0.45 * model.parameters < model.bytes < 2.2 * model.parameters, model.id


def whole() -> dict[str, Any]:
    model = {"id": "org/a", "parameters": 1, "bytes": 2, "config": {"architectures": ["A"]}}
    family = {
        "name": "Family",
        "architectures": ["A"],
        "context": 1,
        "tools": [{"parser": "x", "holds": ["y"]}],
        "models": [model],
    }
    return {"families": [family], "formats": {"tools": [], "reasoning": []}}


BROKEN: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.pop("formats"), "formats is missing"),
    (lambda d: d.update(extra=1), "extra is no field"),
    (lambda d: d["families"][0].pop("name"), "families 1: name is missing"),
    (lambda d: d["families"][0].update(tool="x"), "families 1: tool is no field"),
    (lambda d: d["families"][0].update(name=" "), "name should be a text"),
    (lambda d: d["families"][0].update(context="8k"), "Family: context should be a whole number"),
    (lambda d: d["families"][0].update(architectures=["A", "A"]), "architectures names one thing twice"),
    (lambda d: d["families"][0]["tools"][0].update(holds="y"), "Family, tools 1: holds should be a list"),
    (lambda d: d["families"][0]["tools"][0].update(no_template="yes"), "no_template should be true or false"),
    (lambda d: d["families"][0].update(models={}), "models should be a list"),
    (lambda d: d["families"][0]["models"][0].update(config=1), "config should be an object"),
    (lambda d: d["families"][0]["models"][0]["config"].update(architectures=["B"]), "org/a has none of its arch"),
    (lambda d: d["families"].append(d["families"][0] | {"name": "B", "models": []}), "A is in it twice"),
]


@pytest.mark.parametrize(("break_it", "message"), BROKEN)
def test_a_fault_in_the_data_is_named_with_its_place(
    tmp_path: Path, break_it: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = whole()
    profiles.parse(datafile.Section("profiles.json", content))
    break_it(content)
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        profiles.parse(datafile.read(path, "families formats"))
