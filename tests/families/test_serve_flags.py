"""vLLM's own flags, refused before a service is touched for them: names, values, abbreviations as argparse has them."""

from __future__ import annotations

import pytest

from installer.base.errors import InstallError
from installer.families.vllm import serve_flags
from installer.runtime import vllm_flags
from tests.kit.boot.machine import Machine
from tests.kit.life import cli, main_pid, standin

VERSION = vllm_flags.load_table().version
WRONG = [
    ("--typo 1", "has no flag --typo"),
    ("--max-num-seq 4", ""),  # an abbreviation that only one flag has
    ("--max-num-seqz 4", "is --max-num-seqs meant?"),
    ("--max-num 4", "has no flag --max-num; is --max-num-active-seqs, --max-num-batched-tokens"),
    ("--max-num-seqs many", "--max-num-seqs takes a whole number, found 'many'"),
    ("--max-num-seqs=4.5", "--max-num-seqs takes a whole number, found '4.5'"),
    ("--max-num-seqs", "--max-num-seqs lacks its value"),
    ("--max-num-seqs --enforce-eager", "--max-num-seqs lacks its value"),
    ("--lora-modules --enforce-eager", "--lora-modules lacks its value"),
    ("--max-num-batched-tokens 8z", "takes a number such as 8192 or 8k, found '8z'"),
    ("--cpu-offload-gb lots", "--cpu-offload-gb takes a number, found 'lots'"),
    ("--limit-mm-per-prompt image=2", "--limit-mm-per-prompt takes JSON"),
    ("--dtype float99", "--dtype takes one of auto, bfloat16"),
    ("--kv-cache-dtype fp9", "--kv-cache-dtype takes one of auto"),
    ("--enforce-eager=1", "--enforce-eager takes no value, found '1'"),
    ("--enforce-eager yes", "expected a vLLM flag, found 'yes'"),
    ("--dry-run", "has no flag --dry-run"),
    ("-x 3", "has no flag -x"),
]
RIGHT = (
    "--max-num-seqs 4", "--max_num_seqs=4", "--max-num-batched-tokens 8k", "--max-num-batched-tokens 8192", "-O3",
    "-O 2",
    "--enforce-eager", "--no-enforce-eager", "--enforce", "--no-enforce", "-q fp8", "-pp 2", "--seed -1",
    "--compilation-config {\"level\":3}", "--compilation-config.level 3", "--dtype half", "--kv-cache-dtype fp8",
    "--lora-modules a=/a b=/b", "--moe-backend deep-gemm", "--cpu-offload-gb 4.5", "--quantization None",
    "--limit-mm-per-prompt {\"image\":2}", "--cudagraph-capture-sizes 1 2 4", "--generation-config vllm",
)  # fmt: skip


def said(flags: str, version: str = VERSION) -> str:
    """What is refused, or warned of; "" where nothing is."""
    warned: list[str] = []
    try:
        serve_flags.check_words(flags.split(), version, warned.append)
    except InstallError as error:
        return error.message
    return "".join(warned)


@pytest.mark.parametrize(("flags", "words"), WRONG)
def test_what_vllm_would_not_take_is_refused_with_the_reason(flags: str, words: str) -> None:
    assert words in said(flags) if words else said(flags) == ""


@pytest.mark.parametrize("flags", RIGHT)
def test_what_vllm_takes_passes(flags: str) -> None:
    assert said(flags) == ""


def test_of_another_version_nobody_knows_so_it_is_only_a_warning() -> None:
    assert said("--typo 1", "0.33.0").startswith("vLLM 0.33.0 may refuse this: vLLM 0.32.0 has no flag --typo")
    assert said("--typo 1", f"{VERSION}.post1").startswith(f"vLLM {VERSION} has no flag --typo")


def test_a_flag_that_is_none_touches_no_service(machine: Machine, standin_wheels: str) -> None:
    cli(machine, "deploy", *standin(standin_wheels))  # type: ignore[arg-type]
    pid = main_pid(machine)
    for args in (
        ("set", "VLLM_ARGS=--typo 1"), ("set", "--", "--typo", "1"), ("deploy", "--", "--max-num-seqs", "many"),
        ("plan", "--", "--dtype", "float99"),
    ):  # fmt: skip
        done = cli(machine, *args, code=2)
        assert "nothing was changed" in done.err
        assert main_pid(machine) == pid
    assert cli(machine, "deploy", "--json").changes == []
    machine.shell("echo VLLM_ARGS=--typo >>/etc/vllm-install/qwen3vl.env")
    assert "has no flag --typo" in cli(machine, "upgrade", code=2).err
    assert main_pid(machine) == pid
