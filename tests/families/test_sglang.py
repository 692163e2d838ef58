"""From a service's settings to SGLang's words, and from SGLang's words to figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from installer.base.errors import UsageError
from installer.families.family import Refusal
from installer.families.known import family_of, label, refusal_in
from installer.families.sglang.parsers import NO_TOOLS, REASONING, TOOLS, in_own_words
from installer.families.sglang.serve import WITHOUT_COUNTERPART
from installer.model import profiles
from installer.runtime import vllm_flags
from installer.runtime.vllm_words import SGLANG
from installer.spec.asked import load_settings
from installer.spec.profile import Profile
from installer.spec.settings import FIELDS, OWNED_OF_SGLANG, Settings
from installer.spec.target import Target
from tests.kit.targets import target

TABLE = vllm_flags.load_table(SGLANG.table)


def made(**chosen: object) -> Target:
    return target(replace(Settings(), engine_family="sglang", **chosen))  # type: ignore[arg-type]


def words(wanted: Target) -> list[str]:
    return family_of(wanted.settings).arguments(wanted)


def test_a_flag_of_vllms_has_its_like_or_is_said_to_do_nothing() -> None:
    known = {"drain", "hf_token_file", "lora", *WITHOUT_COUNTERPART}  # the first three without a flag, or refused
    flags = {name for name, about in FIELDS.items() if about.flags and about.typed not in OWNED_OF_SGLANG.values()}
    assert flags <= known, "name it in WITHOUT_COUNTERPART of families/sglang/serve.py, or give SGLang its flag"


def test_every_word_of_ours_is_one_of_its_flags_and_is_ours_alone() -> None:
    everything = made(
        max_model_len=2048, gpu_memory_utilization=0.5, tensor_parallel_size=2, allowed_media_domains=("a.example",),
        trust_remote_code=(Settings.model,),
    )  # fmt: skip
    profile = in_own_words(replace(everything.profile, tool_parser="hermes", reasoning_parser="deepseek_r1"))
    given = vllm_flags.given(words(replace(everything, profile=profile)), SGLANG)
    assert given.keys() <= OWNED_OF_SGLANG.keys()
    assert all(TABLE.is_known(flag) for flag in OWNED_OF_SGLANG)
    assert (given["--context-length"], given["--mem-fraction-static"], given["--tp-size"]) == ("2048", "0.5", "2")
    assert (given["--tool-call-parser"], given["--reasoning-parser"]) == ("hermes", "deepseek-r1")


def test_what_nobody_chose_is_left_to_it() -> None:
    given = vllm_flags.given(words(made(max_model_len=None)), SGLANG)
    assert not {"--context-length", "--mem-fraction-static", "--reasoning-parser"} & given.keys()
    assert given["--allowed-media-domains"] == "none.invalid", "an empty list would allow every domain"


def test_the_user_s_own_words_come_last_and_those_for_vllm_are_not_given_to_it() -> None:
    chosen = made(vllm_args=("--enforce-eager",), sglang_args=("--chunked-prefill-size", "512"))
    assert words(chosen)[-2:] == ["--chunked-prefill-size", "512"]
    assert "--enforce-eager" not in words(chosen)


def test_what_does_nothing_is_said() -> None:
    said: list[str] = []
    chosen = made(vllm_args=("--enforce-eager",), scheduling="priority").settings
    family_of(chosen).check_words(chosen, said.append)
    assert said == [
        "SGLang has nothing like SCHEDULING: it is kept, and does nothing",
        "SGLang has nothing like VLLM_ARGS: it is kept, and does nothing",
    ]


def test_a_name_that_it_cannot_have_is_refused_before_anything_is_changed() -> None:
    for wanted in ({"model": "builtin:tiny"}, {"served_model_name": ("qwen:8b",)}, {"served_model_name": ("a", "b")}):
        chosen = made(**wanted).settings
        with pytest.raises(UsageError, match="one name, without a colon"):
            family_of(chosen).check_words(chosen, print)
    one = made(model="builtin:tiny", served_model_name=("tiny",)).settings
    family_of(one).check_words(one, print)


@pytest.mark.parametrize("given", ["--no-such-flag 1", "stray"])
def test_a_word_that_it_does_not_know_is_refused_before_anything_is_changed(given: str) -> None:
    chosen = made(sglang_args=tuple(given.split())).settings
    with pytest.raises(UsageError, match="SGLang"):
        family_of(chosen).check_words(chosen, print)


def test_of_another_version_it_is_only_warned() -> None:
    said: list[str] = []
    chosen = made(sglang_args=("--no-such-flag",), sglang_version="0.5.99").settings
    family_of(chosen).check_words(chosen, said.append)
    assert said == [f"SGLang {TABLE.version} has no flag --no-such-flag"]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SGLANG_ARGS", "--grpc-port 1", "--grpc-port cannot be used: a gRPC server would answer without a key"),
        ("SGLANG_ARGS", "--tokenizer-w 2", "--tokenizer-worker-num cannot be used"),
        ("SGLANG_ARGS", "--tp 2", r"--tp-size is set by vllm-install itself \(use --tensor-parallel-size\)"),
        ("SGLANG_ARGS", "--model /x", "--model-path is set by vllm-install itself"),
        ("SGLANG_VERSION", "0.5.16", "before 0.5.17"),
        ("SGLANG_VERSION", "latest", "expected an SGLang version"),
        ("ENGINE_FAMILY", "other", "vllm"),
    ],
)
def test_settings_that_cannot_be(name: str, value: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        load_settings("x", {name: value}, {}, {})


def test_its_own_word_on_memory_is_read() -> None:
    line = "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=1e-05. Raise"
    assert refusal_in([line]) == Refusal()
    assert refusal_in(["Load weight end. mem usage=1.00 GB"]) is None


def test_every_parser_of_the_profiles_that_it_has_is_found_under_its_name() -> None:
    known = profiles.load_profiles()
    for mine, theirs in ((TOOLS, "--tool-call-parser"), (REASONING, "--reasoning-parser")):
        assert set(mine.values()) <= set(TABLE.choices[theirs])
    assert TOOLS.keys() <= known.parsers("tools")
    assert REASONING.keys() <= known.parsers("reasoning")


def test_a_parser_that_it_has_not_is_left_out_and_said() -> None:
    found = in_own_words(Profile(tool_parser="seed_oss", reasoning_parser="seed_oss"))
    assert found == Profile(needs=(NO_TOOLS,))
    assert in_own_words(Profile()) == Profile()


def test_the_version_that_is_deployed_is_the_one_that_is_described() -> None:
    assert TABLE.version == Settings.sglang_version
    assert label(made().settings) == f"SGLang {TABLE.version}"
    assert label(Settings()) == f"vLLM {Settings.vllm_version}"
