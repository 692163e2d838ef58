"""vLLM's words, read as its own parser reads them."""

from __future__ import annotations

import pytest

from installer.runtime import vllm_flags

GIVEN = [
    ("--port 1 --port=2", {"--port": "2"}),
    ("--max_num_seqs 4", {"--max-num-seqs": "4"}),
    ("--served-model-name a b --por 1", {"--served-model-name": "b", "--port": "1"}),
    ("-t 2 -qfp8 -O3", {"--tensor-parallel-size": "2", "--quantization": "fp8", "-O": "3"}),
    ("-ac.backend X", {"--attention-config": "X"}),
    ("--compilation-con.max_size 3", {"--compilation-config": "3"}),
    ("--enforce-eager model --no-enforce", {"--no-enforce-eager": ""}),
    ("--no-enforce-eager --enforce-eager", {"--enforce-eager": ""}),
    ("--hf-overrides=--port=1 --seed -1", {"--hf-overrides": "--port=1", "--seed": "-1"}),
    ("--max-num 4", {"--max-num": "4"}),  # several begin so: vLLM would not start
    ("--chat-template --port 1", {"--chat-template": "", "--port": "1"}),
]


@pytest.mark.parametrize(("words", "given"), GIVEN)
def test_a_flag_is_read_in_all_its_spellings(words: str, given: dict[str, str]) -> None:
    assert vllm_flags.given(words.split()) == given


def test_what_stands_by_its_place_is_no_value() -> None:
    assert vllm_flags.parse(["serve", "--enforce-eager", "model"])[0] == ["serve", "model"]


def test_a_flag_that_another_vllm_may_have_is_meant_by_its_beginning() -> None:
    (new,) = vllm_flags.parse(["--headl"])[1]
    assert vllm_flags.meant(new, ["--headless"]) == "--headless"
    (unknown,) = vllm_flags.parse(["--new"])[1]
    assert vllm_flags.meant(unknown, ["--newer"]) == "--newer"
    (known,) = vllm_flags.parse(["--model"])[1]
    assert vllm_flags.meant(known, ["--model-impl"]) == ""
