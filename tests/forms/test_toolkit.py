"""Whether an engine may use a CUDA compiler: what is off without one, and what a tree of wheels holds."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Exit, Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import facts
from installer.families.vllm import cuda
from installer.families.vllm.serve import serve_arguments
from installer.flow import resolve, steps
from installer.forms.venv import cuda_home, toolkit
from installer.forms.venv.toolkit import CompileKernels
from installer.model.model_config import Config
from installer.spec.engine import Engine
from installer.spec.facts import Facts, Gpu, Nvcc
from installer.spec.records import load_state, save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Target
from installer.spec.toolkit import Toolkit
from installer.units.render import unit
from installer.units.syntax import environment, exec_line
from tests.checks.test_preflight import HEALTHY
from tests.kit.made_up import MadeUp
from tests.kit.targets import target, wanted

LAYOUT = Layout("qwen3vl")
COMPILER = (
    "nvidia-cuda-cccl==13.0.85", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-runtime==13.0.96", "nvidia-nvvm==13.0.88",
)  # fmt: skip
A100, L40, H200, B200, RTX = (
    Gpu("nvidia", "one", capability=capability) for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
)


def engine_of(*packages: str, kind: str = "cuda") -> Engine:
    lock = "".join(f"{package}\n" for package in ("torch==2.13.0", "vllm==0.32.0", *packages))
    return dataclasses.replace(target(kind=kind).engine, lock=lock)


def chosen(which: str, *gpus: Gpu, packages: tuple[str, ...] = COMPILER, mla: bool = False) -> Toolkit:
    nvcc = Nvcc(Path("/usr/local/cuda-13.0"), (13, 0))
    found = toolkit.choose(Settings(cuda_toolkit=which), engine_of(*packages), gpus, nvcc, lambda: mla)
    assert found is not None
    return found


@pytest.mark.parametrize("gpu", [A100, L40, H200, B200, RTX])
@pytest.mark.parametrize("which", ["auto", "none"])
def test_without_a_compiler_nothing_is_used_that_needs_one(which: str, gpu: Gpu) -> None:
    variables = cuda.environment(chosen(which, gpu), Path("/engine"))
    assert variables["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert variables["VLLM_USE_DEEP_GEMM"] == variables["VLLM_MOE_USE_DEEP_GEMM"] == "0"
    assert variables["CUDA_HOME"] == "/nonexistent", "or a toolkit of any version that lies on the host is taken"


FP8 = {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
ON_HOPPER = dataclasses.replace(HEALTHY, gpus=(H200,), cxx_version=12, glibc=(2, 36))


def by_itself(
    config: dict[str, object] | None = None, proved: Target | None = None, engine: Engine | None = None,
    seen: Facts = ON_HOPPER, **asked: Any,
) -> str:  # fmt: skip
    found = engine or engine_of(*COMPILER)
    return resolve._toolkit_by_itself(Settings(**asked), found, seen, proved, lambda: Config.of(config or FP8))


def test_a_service_has_a_compiler_by_itself_where_it_was_measured_to_pay() -> None:
    assert by_itself() == "wheels"
    assert by_itself(seen=dataclasses.replace(ON_HOPPER, gpus=(H200, H200)), replicas=2) == "wheels"
    found = resolve._toolkit(Settings(), engine_of(*COMPILER), ON_HOPPER, None, lambda: Config.of(FP8), Report())
    assert found is not None
    assert (found.mode, found.capabilities) == ("wheels", "9.0")
    for gpus in ((A100,), (L40,), (B200,), (RTX,), (H200, B200), ()):
        assert by_itself(seen=dataclasses.replace(ON_HOPPER, gpus=gpus)) == "none"
    assert by_itself({"model_type": "qwen3"}) == "none"
    assert by_itself({**FP8, "quantization_config": {"quant_method": "fp8"}}) == "none", "without blocks no DeepGEMM"
    assert by_itself({**FP8, "quantization_config": {"quant_method": "gptq", "weight_block_size": [1, 1]}}) == "none"
    assert by_itself({**FP8, "num_experts_per_tok": 8}) == "none", "nobody has measured experts"
    assert by_itself(tensor_parallel_size=2) == "none", "nor several GPUs"
    assert by_itself(engine_family="sglang") == "none"


def test_and_where_it_works_at_all() -> None:
    assert by_itself(engine=engine_of()) == "none", "packages without a compiler"
    for unfit in ({"cxx_version": 0}, {"cxx_version": 16}, {"glibc": (2, 42)}):
        assert by_itself(seen=dataclasses.replace(ON_HOPPER, **unfit)) == "none", unfit


def test_what_runs_keeps_what_it_was_proved_with() -> None:
    without = dataclasses.replace(target(), toolkit=Toolkit())
    assert by_itself(proved=without) == "none", "or an upgrade of this tool would be a start of five minutes"
    compiled = dataclasses.replace(target(), toolkit=Toolkit("wheels", "/home", capabilities="9.0"))
    assert by_itself({"model_type": "qwen3"}, proved=compiled) == "wheels"
    assert by_itself(proved=compiled, engine=engine_of()) == "none", "another version without one"
    assert by_itself(proved=without, model="org/other") == "wheels"
    by_hand = dataclasses.replace(without, settings=Settings(cuda_toolkit="none"))
    assert by_itself(proved=by_hand) == "wheels", "auto after none is a new choice"


def test_on_blackwell_attention_is_named_that_needs_no_compiler() -> None:
    assert cuda.kernels(chosen("none", B200), ()) == ["--attention-backend", "FLASH_ATTN"]
    assert cuda.kernels(chosen("none", B200, mla=True), ()) == ["--attention-backend", "TRITON_MLA"]
    assert chosen("none", H200, B200).attention == "FLASH_ATTN", "one of them is enough"
    for gpu in (A100, L40, H200, RTX):
        assert cuda.kernels(chosen("none", gpu), ()) == []


@pytest.mark.parametrize("word", ["--attention-backend", "--attention_backend=TRITON_ATTN", "-ac.backend=TRITON_ATTN"])
def test_attention_named_by_the_user_is_not_named_twice(word: str) -> None:
    assert cuda.kernels(chosen("none", B200), (word,)) == []


def recorded(*given: str, which: str = "none", gpu: Gpu = H200) -> list[int]:
    words = cuda.graphs(chosen(which, gpu), given)
    assert words[:1] in ([], ["--cudagraph-capture-sizes"])
    return [int(word) for word in words[1:]]


def test_graphs_are_recorded_up_to_what_vllm_takes_itself_and_close_where_computing_decides() -> None:
    sizes = recorded()
    assert (sizes[0], sizes[-1], len(sizes)) == (1, 512, 25)
    assert all(later - size <= 16 for size, later in pairwise(sizes) if size < 256)
    assert recorded("--max-num-seqs", "17") == [1, 2, 4, 8, 16, 24, 32, 34]
    assert recorded("--max-num-seqs=1") == [1, 2]
    assert recorded("--max-num-seqs", "1024") == sizes
    assert recorded(which="wheels") == recorded(gpu=RTX) == recorded(which="wheels", gpu=RTX) == sizes


@pytest.mark.parametrize("which", ["none", "wheels"])
def test_on_blackwell_vllm_has_another_limit_and_keeps_it(which: str) -> None:
    assert recorded(which=which, gpu=B200) == []


@pytest.mark.parametrize("given", [
    ("--cudagraph-capture-sizes", "1", "2"), ("--max-cudagraph-capture-size=64",), ("-cc.cudagraph_mode=NONE",),
    ('--compilation-config={"mode": 3}',), ("-O1",), ("--performance-mode", "interactivity"), ("--enforce-eager",),
    ('--speculative-config={"method": "ngram"}',), ("--cudagraph-capture-size", "8"),
])  # fmt: skip
def test_who_says_anything_of_graphs_has_said_all(given: tuple[str, ...]) -> None:
    assert recorded(*given) == []


@pytest.mark.parametrize("which", ["none", "wheels", "host"])
def test_nothing_is_fetched_or_compiled_while_it_serves(which: str) -> None:
    found = chosen(which, H200)
    variables = cuda.environment(found, Path("/engine"))
    assert variables["FLASHINFER_CUBINS_REPOSITORY"].startswith("http://127.0.0.1:")
    assert variables["VLLM_ALLREDUCE_USE_FLASHINFER"] == "0", "two GPUs that share multicast died of it without ninja"
    if which != "none":
        assert variables["VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER"] == "0"
        assert cuda.kernels(found, ()) == ["--no-enable-flashinfer-autotune"]


def test_no_variable_of_ours_looks_like_one_of_vllms() -> None:
    """vLLM warns of every variable with its beginning that it does not know."""
    known = {
        "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_DEEP_GEMM", "VLLM_MOE_USE_DEEP_GEMM", "VLLM_CACHE_ROOT",
        "VLLM_HOST_IP", "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER", "VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_NO_USAGE_STATS",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "VLLM_USE_RUST_FRONTEND",
    }  # fmt: skip
    for made in (None, chosen("none", H200), chosen("wheels", H200)):
        variables = environment(unit(dataclasses.replace(target(), toolkit=made), LAYOUT))
        assert {name for name in variables if name.startswith("VLLM_")} <= known


def test_the_engines_own_compiler_and_ninja_are_found() -> None:
    want = dataclasses.replace(target(), engine=engine_of(*COMPILER), toolkit=chosen("wheels", H200))
    text = unit(want, LAYOUT)
    home = f"/opt/vllm-install/engines/{want.engine.id}"
    assert environment(text)["CUDA_HOME"] == f"{home}/cuda"
    assert environment(text)["PATH"].split(":")[0] == f"{home}/bin"
    assert "--no-enable-flashinfer-autotune" in exec_line(text)
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environment(text)


def test_the_hosts_compiler_is_used_where_it_lies() -> None:
    variables = cuda.environment(chosen("host", H200), Path("/engine"))
    assert variables["CUDA_HOME"] == "/usr/local/cuda-13.0"
    assert variables["PATH"].startswith("/engine/bin:"), "ninja is the engine's"


@pytest.mark.parametrize(
    "packages",
    [(), COMPILER[1:], (*COMPILER[:2], "nvidia-cuda-nvcc==13.5.37", *COMPILER[3:])],
    ids=["none", "part", "mixed"],
)
def test_a_compiler_that_is_not_whole_is_refused(packages: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refused:
        chosen("wheels", H200, packages=packages)
    assert "no complete CUDA compiler" in refused.value.message
    assert "CUDA_TOOLKIT=none" in refused.value.hint
    assert refused.value.exit_code == Exit.REFUSED


def test_other_engines_have_none() -> None:
    assert toolkit.choose(Settings(cuda_toolkit="wheels"), engine_of(kind="cpu"), [], None, lambda: False) is None


# The tree


def test_the_tree_has_what_compiler_and_linker_look_for(host: Host) -> None:
    home = Path("/opt/vllm-install/engines/e")
    site = home / "lib/python3.11/site-packages"
    for name in ("bin/nvcc", "nvvm/bin/cicc", "include/cuda.h", "lib/libcudart.so.13", "lib/libnvrtc-builtins.so.13.0"):
        host.write(site / "nvidia/cu13" / name, name)
    cuda_home.lay_out(COMPILER, site, home, host)
    for name in ("bin/nvcc", "nvvm/bin/cicc", "include/cuda.h"):
        assert (host.at(home) / "cuda" / name).read_text() == name
    assert (host.at(home) / "cuda/lib64/libcudart.so").read_text() == "lib/libcudart.so.13"
    assert (host.at(home) / "cuda/lib64/libcuda.so").read_text() == "INPUT(-l:libcuda.so.1)\n"


def test_no_tree_is_laid_out_of_parts(host: Host) -> None:
    home = Path("/opt/vllm-install/engines/e")
    host.write(home / "site/nvidia/cu13/bin/nvcc", "")
    cuda_home.lay_out(COMPILER[1:], home / "site", home, host)
    cuda_home.lay_out(COMPILER, home / "elsewhere", home, host)
    assert not host.exists(home / "cuda")


# Facts


def test_the_hosts_toolkit_is_found_where_vllm_would_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = MadeUp(tmp_path / "root")
    said = "echo 'Cuda compilation tools, release {0}, V{0}.88'"
    made_up.command("/usr/local/cuda/bin/nvcc", said.format("12.9"))
    asked = Settings(cuda_toolkit="host")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert made_up.gather(asked).nvcc == Nvcc(Path("/usr/local/cuda"), (12, 9))
    made_up.command("/usr/bin/nvcc", said.format("13.1"))
    assert made_up.gather(asked).nvcc == Nvcc(Path("/usr"), (13, 1))
    made_up.command("/opt/cuda/bin/nvcc", said.format("13.0"))
    monkeypatch.setenv("CUDA_HOME", "/opt/cuda")
    assert made_up.gather(asked).nvcc == Nvcc(Path("/opt/cuda"), (13, 0))
    made_up.command("/opt/cuda/bin/nvcc", "exit 1")
    assert made_up.gather(asked).nvcc == Nvcc(Path("/usr"), (13, 1)), "one that does not run is none"
    assert made_up.gather(Settings()).nvcc is None


def test_the_version_of_the_host_compiler_is_known(tmp_path: Path) -> None:
    made_up = MadeUp(tmp_path / "root")
    made_up.command("/usr/bin/g++", "echo 14.2.0")
    assert made_up.gather(Settings(cuda_toolkit="wheels")).cxx_version == 14
    made_up.command("/usr/bin/g++", "echo 15")
    assert made_up.gather(Settings(cuda_toolkit="wheels")).cxx_version == 15


# Kernels and state


def with_toolkit(which: str) -> steps.Wanted:
    want = wanted()
    made = dataclasses.replace(want.target, engine=engine_of(*COMPILER), toolkit=chosen(which, H200))
    return dataclasses.replace(want, target=made)


def test_kernels_are_compiled_at_deploy_and_only_where_there_is_a_compiler(host: Host) -> None:
    assert list(steps.kernels(with_toolkit("none"), host)) == []
    assert list(steps.kernels(wanted(kind="cpu"), host)) == []
    (change,) = steps.kernels(with_toolkit("wheels"), host)
    assert isinstance(change, CompileKernels)
    assert "9.0" in change.describe()
    assert ("CUDA_HOME", change.toolkit.home) in change.variables
    assert "NoNewPrivileges=yes" in change.sandbox


def test_what_was_compiled_is_not_compiled_again_until_something_changes(host: Host) -> None:
    want = with_toolkit("wheels")
    (change,) = steps.kernels(want, host)
    assert isinstance(change, CompileKernels)
    host.write(want.layout.kernels_stamp, change.stamp)
    assert list(steps.kernels(want, host)) == []
    (again,) = steps.kernels(with_toolkit("host"), host)
    assert isinstance(again, CompileKernels)
    assert again.stamp != change.stamp


def test_a_state_remembers_the_toolkit_and_an_older_state_has_none(host: Host) -> None:
    made = with_toolkit("wheels").target
    save_state(host, LAYOUT, State("qwen3vl", proved=made))
    read = load_state(host, LAYOUT)
    assert read
    assert read.proved
    assert read.proved.toolkit == made.toolkit
    text = (host.read(LAYOUT.state_file) or "").replace('"toolkit"', '"was_toolkit"')
    host.write(LAYOUT.state_file, text)
    older = load_state(host, LAYOUT)
    assert older
    assert older.proved
    assert older.proved.toolkit is None
    assert "CUDA_HOME" not in unit(older.proved, LAYOUT), "what was proved is put back as it was"


def test_flags_of_the_toolkit_stand_before_the_users_own() -> None:
    made = dataclasses.replace(target(Settings(vllm_args=("--seed", "1"))), toolkit=chosen("none", B200))
    words = serve_arguments(made)
    assert words.index("--attention-backend") < words.index("--seed")


def test_facts_ask_no_compiler_that_nobody_wants(tmp_path: Path) -> None:
    made_up = MadeUp(tmp_path / "root")
    made_up.command("/usr/bin/g++", "echo 14.2.0")
    assert made_up.gather(Settings(cuda_toolkit="none")).cxx_version == 0
    assert made_up.gather(Settings()).cxx_version == 14, "who leaves it to us gets one where it pays"
    assert facts.gather(Host(made_up.root), Settings(), LAYOUT).nvcc is None
