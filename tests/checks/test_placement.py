"""Which GPUs a service is given, on made-up hosts: one, two and eight GPUs, equal and not, held in part, and slices."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from installer.base.errors import Exit
from installer.base.layout import Layout
from installer.checks import placement, preflight
from installer.checks.placement import Choice
from installer.spec.facts import Facts, Gpu, Process, Tenant
from installer.spec.settings import Settings
from installer.spec.target import Placed
from tests.checks.test_preflight import GIB, HEALTHY, MI300

LAYOUT = Layout("coder")
UNIT = LAYOUT.unit_name


def gpu(number: int, *, memory: int = 140, capability: tuple[int, int] = (9, 0), name: str = "NVIDIA H200") -> Gpu:
    return Gpu(
        "nvidia", name, f"GPU-{number:08x}-aaaa", "580.159.04", "13.0", capability, memory_total=memory * GIB,
        index=number, pci=f"0000:{16 + number:02x}:00.0", node=f"/dev/nvidia{9 - number}",
    )  # fmt: skip


def sliced(whole: Gpu, number: int, memory: int = 16) -> Gpu:
    uuid = f"MIG-{whole.index}{number}aaaaaa-bbbb"
    return replace(whole, uuid=uuid, name=f"{whole.name} MIG 1g.18gb", memory_total=memory * GIB, is_slice=True)


def held(whole: Gpu, memory: int, unit: str = "", pid: int = 31) -> Gpu:
    holder = Process(pid, "python train.py", unit, memory * GIB)
    return replace(whole, memory_used=whole.memory_used + memory * GIB, holders=(*whole.holders, holder))


def host(*gpus: Gpu, tenants: tuple[Tenant, ...] = (), visible: tuple[tuple[str, str], ...] = ()) -> Facts:
    return replace(HEALTHY, gpus=gpus, tenants=tenants, visible=visible)


def tenant(name: str, *gpus: Gpu, share: float = 0.95, runs: bool = True, kind: str = "cuda") -> Tenant:
    placed = tuple(Placed(gpu.uuid, gpu.name, gpu.node) for gpu in gpus)
    return Tenant(f"{name}.service", kind, placed, max(1, len(gpus)), share, runs=runs)


def chosen(facts: Facts, **given: object) -> Choice:
    settings = replace(Settings(), **given)  # type: ignore[arg-type]
    return placement.choose(settings, facts, preflight.choose_engine(settings, facts), LAYOUT)


def numbers(facts: Facts, **given: object) -> list[int]:
    choice = chosen(facts, **given)
    assert choice.problems == ()
    assert choice.placed == tuple(Placed(gpu.uuid, gpu.name, gpu.node) for gpu in choice.gpus)
    return [gpu.index for gpu in choice.gpus]


def refused(facts: Facts, **given: object) -> str:
    """What is said to somebody who asks for what cannot be had; the exit status is the documented one."""
    settings = replace(Settings(), **given)  # type: ignore[arg-type]
    problems = [problem for problem in preflight.problems(settings, facts, LAYOUT) if problem.fatal]
    assert problems, "nothing was refused"
    error = preflight.refuse(problems)
    assert error.exit_code == Exit.REFUSED == 3
    return f"{error.message} -> {error.hint}"


ONE = (gpu(0),)
TWO = (gpu(0), gpu(1))
EIGHT = tuple(gpu(number) for number in range(8))
SMALL = gpu(1, memory=24, capability=(8, 9), name="NVIDIA L4")
OLD = gpu(1, memory=16, capability=(6, 0), name="Tesla P100")


# The free ones, the best first


@pytest.mark.parametrize(
    ("gpus", "count", "expected"),
    [
        (ONE, 1, [0]),
        (TWO, 1, [0]),
        (TWO, 2, [0, 1]),
        (EIGHT, 4, [0, 1, 2, 3]),
        (EIGHT, 8, list(range(8))),
        ((SMALL, gpu(0)), 1, [0]),  # as CUDA counts: the fastest first, not the first on the bus
        ((SMALL, gpu(0)), 2, [0, 1]),
        ((held(gpu(0), 100), gpu(1)), 1, [1]),
        ((held(gpu(0), 1), gpu(1)), 1, [1]),  # there is room, but the other one is idle
        ((held(gpu(0), 100), held(gpu(1), 100), *EIGHT[2:]), 4, [2, 3, 4, 5]),
        (tuple(held(each, 100) if each.index % 2 else each for each in EIGHT), 4, [0, 2, 4, 6]),
    ],
)
def test_the_best_of_the_free_ones(gpus: tuple[Gpu, ...], count: int, expected: list[int]) -> None:
    assert numbers(host(*gpus), tensor_parallel_size=count, gpu_memory_utilization=0.9) == expected


def test_a_second_service_goes_to_the_idle_gpu() -> None:
    """What was refused: GPU 0 is taken while GPU 1 does nothing."""
    first = tenant("qwen3vl", gpu(0))
    assert numbers(host(held(gpu(0), 133, "qwen3vl.service"), gpu(1), tenants=(first,))) == [1]
    assert numbers(host(*TWO, tenants=(first,))) == [1], "it runs, and is about to take its memory"
    assert numbers(host(*TWO, tenants=(replace(first, runs=False),))) == [1], "it is stopped, and will start again"
    assert numbers(host(*TWO, tenants=(replace(first, share=0.4),)), gpu_memory_utilization=0.4) == [1]


def test_a_gpu_that_another_service_is_starting_on_is_not_free() -> None:
    starting = (tenant("qwen3vl", gpu(0), share=0.6), tenant("other", gpu(1), share=0.6))
    said = refused(host(*EIGHT[:3], tenants=starting), tensor_parallel_size=2)
    assert "2 GPUs were asked for, and 1 are free" in said
    assert "0: NVIDIA H200 (GPU-00000000-aaaa): 140.0 GiB free; qwen3vl.service" in said
    assert "1: NVIDIA H200 (GPU-00000001-aaaa): 140.0 GiB free; other.service" in said


def test_two_services_share_the_only_gpu() -> None:
    first = tenant("qwen3vl", gpu(0), share=0.4)
    one = held(gpu(0), 56, "qwen3vl.service")
    assert numbers(host(one, tenants=(first,)), gpu_memory_utilization=0.4) == [0]
    assert "too little free memory" in refused(host(one, tenants=(first,)))


def test_a_service_of_an_earlier_version_is_where_its_processes_are_or_else_on_the_first() -> None:
    first = tenant("qwen3vl")
    assert first.gpus == ()
    assert numbers(host(*TWO, tenants=(first,))) == [1]
    assert numbers(host(gpu(0), held(gpu(1), 133, "qwen3vl.service"), tenants=(first,))) == [0]
    by_hand = replace(first, visible=(("CUDA_VISIBLE_DEVICES", "1"),))
    assert numbers(host(*TWO, tenants=(by_hand,))) == [0]
    of_the_processor = replace(first, kind="cpu")
    assert numbers(host(*TWO, tenants=(of_the_processor,))) == [0]


def test_a_much_smaller_gpu_is_no_place_to_evade_to() -> None:
    first = tenant("qwen3vl", gpu(0), share=0.4)
    facts = host(held(gpu(0), 56, "qwen3vl.service"), SMALL, tenants=(first,))
    assert numbers(facts, gpu_memory_utilization=0.4) == [0]
    assert numbers(host(held(gpu(0), 56), OLD), gpu_memory_utilization=0.4) == [0]


def test_where_every_gpu_is_promised_already_it_says_so() -> None:
    first = tenant("qwen3vl", gpu(0), runs=False)
    choice = chosen(host(gpu(0), tenants=(first,)))
    (problem,) = choice.problems
    assert not problem.fatal
    assert "is also that of qwen3vl.service: their shares of its memory add up to 1.9" in str(problem)
    assert choice.placed[0].uuid == gpu(0).uuid


@pytest.mark.parametrize(
    "flags",
    [("--pipeline-parallel-size", "2"), ("-pp=2",), ("--data-parallel-size", "2"), ("-dp", "8", "-dpl", "2")],
)
def test_other_kinds_of_parallelism_take_gpus_too(flags: tuple[str, ...]) -> None:
    assert numbers(host(*EIGHT), tensor_parallel_size=2, vllm_args=flags) == [0, 1, 2, 3]
    assert "4 GPUs were asked for, but there are 2" in refused(host(*TWO), tensor_parallel_size=2, vllm_args=flags)


# Chosen once and kept


def test_what_was_chosen_stays_whatever_happens_to_the_others() -> None:
    own = tenant("coder", gpu(1))
    running = held(gpu(1), 133, UNIT)
    for gpus in (TWO, (gpu(0), running), (gpu(0), held(running, 100))):
        assert numbers(host(*gpus, tenants=(own,))) == [1]
    assert "too little free memory" in refused(host(gpu(0), held(gpu(1), 133), tenants=(own,)))


def test_it_is_found_again_under_another_number() -> None:
    moved = replace(gpu(1), index=5, pci="0000:aa:00.0", node="/dev/nvidia0")
    choice = chosen(host(gpu(0), moved, tenants=(tenant("coder", gpu(1)),)))
    assert choice.placed == (Placed(gpu(1).uuid, "NVIDIA H200", "/dev/nvidia0"),)


def test_more_and_fewer_gpus_keep_those_there_are() -> None:
    own = tenant("coder", gpu(5), gpu(3))
    assert numbers(host(*EIGHT, tenants=(own,)), tensor_parallel_size=4) == [5, 3, 0, 1]
    assert numbers(host(*EIGHT, tenants=(own,)), tensor_parallel_size=1) == [5]


def test_an_earlier_version_s_service_stays_on_the_gpu_that_it_holds() -> None:
    own = tenant("coder")
    assert numbers(host(gpu(0), held(gpu(1), 133, UNIT), tenants=(own,))) == [1]
    assert numbers(host(*TWO, tenants=(own,))) == [0], "CUDA gave it the first"


def test_a_gpu_that_went_away_is_replaced_and_that_is_said() -> None:
    own = tenant("coder", gpu(7))
    choice = chosen(host(*TWO, tenants=(own,)))
    (problem,) = choice.problems
    assert not problem.fatal
    assert str(problem) == (
        "the GPU NVIDIA H200 (GPU-00000007-aaaa) is not on this host: this host has "
        "0: NVIDIA H200 (GPU-00000000-aaaa); 1: NVIDIA H200 (GPU-00000001-aaaa); "
        "0: NVIDIA H200 (GPU-00000000-aaaa) takes its place"
    )
    both = tenant("coder", gpu(0), gpu(7))
    said = refused(host(gpu(0), tenants=(both,)), tensor_parallel_size=2)
    assert "GPU-00000007-aaaa" in said
    assert "2 GPUs were asked for, but there are 1" in said


def test_another_engine_chooses_anew_without_missing_anything() -> None:
    assert numbers(host(*TWO, tenants=(tenant("coder", MI300, kind="rocm"),))) == [0]


# Asked for


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("3",), [3]),
        (("GPU-00000002-aaaa",), [2]),
        (("gpu-00000002",), [2]),
        (("0000:15:00.0",), [5]),
        (("00000000:15:00.0",), [5]),
        (("15:00.0", "GPU-00000002-aaaa", "0"), [5, 2, 0]),
    ],
)
def test_gpus_are_found_by_what_they_are_called(words: tuple[str, ...], expected: list[int]) -> None:
    facts = host(*EIGHT, tenants=(tenant("qwen3vl", gpu(3)),))
    assert numbers(facts, gpus=words, tensor_parallel_size=len(words)) == expected


@pytest.mark.parametrize(
    ("words", "count", "said"),
    [
        (("2",), 1, "there is no GPU 2: this host has 0: NVIDIA H200 (GPU-00000000-aaaa); 1: NVIDIA H200 (GPU-0000"),
        (("aa:00.0",), 1, "there is no GPU aa:00.0: this host has 0: NVIDIA H200"),
        (("GPU-dead",), 1, "the GPU GPU-dead is not on this host: this host has 0: NVIDIA H200"),
        (("GPU-0000",), 1, "the GPU GPU-0000 is not on this host"),  # two begin so
        (("0", "0"), 2, "a GPU is named twice: 0 is NVIDIA H200 (GPU-00000000-aaaa), which stands in GPUS already"),
        (("0", "0000:10:00.0"), 2, "a GPU is named twice: 0000:10:00.0 is NVIDIA H200 (GPU-00000000-aaaa)"),
        (("0", "1"), 1, "2 GPUs are named, but the service takes 1: --tensor-parallel-size is 1"),
        (("0",), 2, "1 GPUs are named, but the service takes 2"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_there_is(words: tuple[str, ...], count: int, said: str) -> None:
    assert said in refused(host(*TWO), gpus=words, tensor_parallel_size=count)


def test_a_gpu_of_another_vendor_is_refused() -> None:
    amd = replace(MI300, uuid="GPU-00000000000000ff", pci="0000:c3:00.0", index=0)
    said = refused(host(gpu(0), amd), engine="cuda", gpus=("c3:00.0",))
    assert "AMD gfx942 (GPU-00000000000000ff) is not for this engine: it can use 0: NVIDIA H200" in said
    assert numbers(host(gpu(0), amd), gpus=("GPU-00000000000000ff",)) == [0], "it says by itself which engine is meant"
    assert chosen(host(gpu(0), amd), gpus=("c3:00.0",)).gpus == (amd,)


def test_a_service_whose_gpu_went_away_does_not_become_one_of_the_processor() -> None:
    assert "no NVIDIA GPU was found" in refused(host(), gpus=("GPU-00000000-aaaa",))
    assert "the cpu engine takes no GPU: GPUS names 0" in refused(host(gpu(0)), engine="cpu", gpus=("0",))


def test_fewer_free_than_asked_for_names_who_holds_the_others() -> None:
    gpus = (held(gpu(0), 100), held(gpu(1), 133, "ollama.service", 77), gpu(2))
    said = refused(host(*gpus), tensor_parallel_size=2)
    assert "2 GPUs were asked for, and 1 are free" in said
    assert "0: NVIDIA H200 (GPU-00000000-aaaa): 40.0 GiB free; pid 31 (python train.py)" in said
    assert "1: NVIDIA H200 (GPU-00000001-aaaa): 7.0 GiB free; pid 77 (python train.py) of ollama.service" in said


# By hand


def test_a_drop_in_that_chooses_wins_and_sees_every_gpu() -> None:
    """Numbers in it count among what CUDA sees, so nothing is hidden from it."""
    facts = host(*TWO, visible=(("CUDA_VISIBLE_DEVICES", "1"),))
    choice = chosen(facts)
    assert (choice.placed, choice.by_hand, choice.problems) == ((), "CUDA_VISIBLE_DEVICES=1", ())
    assert [each.index for each in choice.gpus] == [1], "its memory is what counts"
    (problem,) = chosen(facts, gpus=("0",)).problems
    assert not problem.fatal
    assert "GPUS has no effect: CUDA_VISIBLE_DEVICES=1, set by hand, wins over it" in str(problem)
    assert chosen(host(*TWO), vllm_args=("--device-ids", "1")).by_hand == "--device-ids=1"
    assert chosen(host(*TWO, visible=(("HIP_VISIBLE_DEVICES", "1"),))).by_hand == "", "no variable of CUDA's"


# Slices


def test_slices_are_given_out_like_gpus_and_named_by_their_own_uuid() -> None:
    first, second = sliced(gpu(0), 0), sliced(gpu(0), 1)
    facts = host(first, second)
    assert chosen(facts).placed == (Placed(first.uuid, first.name, gpu(0).node),)
    taken = host(held(first, 15, "qwen3vl.service"), second, tenants=(tenant("qwen3vl", first),))
    assert chosen(taken).placed[0].uuid == second.uuid
    assert chosen(facts, gpus=(second.uuid,)).placed[0].uuid == second.uuid
    said = refused(facts, gpus=("0",))
    assert f"there is no GPU 0: this host has {first}; {second}" in said


def test_slices_cannot_share_a_model_and_whole_gpus_come_first_for_that() -> None:
    slices = (sliced(gpu(0), 0, 70), sliced(gpu(0), 1, 70))
    assert "slices of a GPU cannot share a model" in refused(host(*slices), tensor_parallel_size=2)
    assert "slices of a GPU cannot share a model" in refused(
        host(*slices), gpus=tuple(each.uuid for each in slices), tensor_parallel_size=2
    )
    lesser = [gpu(number, memory=24, capability=(8, 9), name="NVIDIA L4") for number in (1, 2)]
    assert numbers(host(*slices, *lesser), tensor_parallel_size=2) == [1, 2]


# What cannot be told apart


def test_gpus_without_a_uuid_are_used_but_not_named() -> None:
    nameless = tuple(replace(each, uuid="") for each in TWO)
    choice = chosen(host(*nameless))
    assert (choice.gpus, choice.placed, choice.problems) == (nameless[:1], (), ())


def test_unified_memory_is_shared_by_what_services_say() -> None:
    whole = replace(gpu(0), memory_total=0)
    assert numbers(host(whole)) == [0]
    running = tenant("qwen3vl", whole, share=0.5)
    assert numbers(host(whole, tenants=(running,)), gpu_memory_utilization=0.5) == [0]


def test_the_facts_of_a_report_can_be_written_down() -> None:
    facts = host(*TWO, tenants=(tenant("qwen3vl", gpu(0)),))
    assert dataclasses.asdict(facts)["tenants"][0]["gpus"][0]["uuid"] == gpu(0).uuid


# Replicas


@pytest.mark.parametrize(
    ("count", "each", "named", "expected"),
    [
        (2, 1, None, [[0], [1]]),
        (2, 2, None, [[0, 1], [2, 3]]),
        (4, 1, "6,5,4,3", [[6], [5], [4], [3]]),
        (2, 1, "3", [[3], [3]]),
        (2, 2, "3,4", [[3, 4], [3, 4]]),
    ],
)
def test_each_replica_has_gpus_of_its_own_or_all_those_that_are_named_for_one(
    count: int, each: int, named: str | None, expected: list[list[int]]
) -> None:
    given = {"replicas": count, "tensor_parallel_size": each, "gpu_memory_utilization": 0.4}
    gpus = tuple(named.split(",")) if named else Settings.gpus
    choice = chosen(host(*EIGHT), gpus=gpus, **given)
    assert choice.problems == ()
    settings = replace(Settings(), gpus=gpus, **given)  # type: ignore[arg-type]
    index = {each.uuid: each.index for each in EIGHT}
    assert [[index[placed.uuid] for placed in replica] for replica in choice.of_each(settings)] == expected


def test_the_engine_that_runs_keeps_its_gpu_as_the_first_of_several() -> None:
    mine = tenant("coder", gpu(1))
    assert numbers(host(gpu(0), held(gpu(1), 133, UNIT), tenants=(mine,)), replicas=2) == [1, 0]
    both = tenant("coder", gpu(1), gpu(0))
    busy = host(held(gpu(0), 133, "coder@2.service"), held(gpu(1), 133, "coder@1.service"), tenants=(both,))
    assert numbers(busy, replicas=2) == [1, 0]
    assert numbers(busy, replicas=1) == [1]


def test_fewer_gpus_than_replicas_are_refused_with_who_holds_them() -> None:
    said = refused(host(*TWO), replicas=3)
    assert "3 GPUs were asked for, but there are 2: --replicas 3 take 1 NVIDIA GPUs each; this host has 0: " in said
    assert "choose --replicas 2, or name with --gpus those that all are to share" in said
    said = refused(host(*TWO), replicas=2, tensor_parallel_size=4)
    assert "choose --tensor-parallel-size 2" in said
    said = refused(host(gpu(0), held(gpu(1), 133, "chat@3.service"), gpu(2)), replicas=3)
    assert "too little free memory" in said
    assert "pid 31 (python train.py) of chat@3.service" in said
    assert "sudo systemctl stop chat@3.service" in said
    said = refused(host(gpu(0), held(gpu(1), 133, "chat@3.service"), held(gpu(2), 133)), replicas=2)
    assert "2 GPUs were asked for, and 1 are free" in said
    assert "of chat@3.service" in said


def test_replicas_share_a_gpu_if_somebody_says_so_and_they_fit() -> None:
    said = refused(host(*TWO), replicas=3, gpus=("1",), gpu_memory_utilization=0.4)
    assert "1 GPUs are named, but the service takes 3: --replicas is 3, and --tensor-parallel-size is 1" in said
    said = refused(host(held(gpu(0), 50)), replicas=2, gpus=("0",), gpu_memory_utilization=0.4)
    assert "90.0 GiB of 140.0 GiB are free, 0.8 of all" in said, "what all of them take together"
    assert placement.engines_on(Settings(replicas=2), 1) == 1, "too few are no reason to share them"


def test_slices_are_enough_for_replicas_of_one_gpu_each() -> None:
    slices = tuple(sliced(gpu(0), number) for number in (1, 2))
    assert len(chosen(host(*slices), replicas=2).gpus) == 2
    assert chosen(host(*slices), replicas=2).problems == ()
    assert "slices of a GPU cannot share a model" in refused(host(*slices), tensor_parallel_size=2)


def test_what_chooses_gpus_by_hand_would_choose_the_same_for_all() -> None:
    said = refused(host(*TWO, visible=(("CUDA_VISIBLE_DEVICES", "0"),)), replicas=2)
    assert "replicas cannot all have the same GPUs: CUDA_VISIBLE_DEVICES=0, set by hand" in said
    assert "set by hand" in refused(host(*TWO), replicas=2, vllm_args=("--device-ids", "1"))


def test_what_replicas_of_another_service_hold_is_theirs() -> None:
    first = tenant("chat", gpu(0), share=0.5)
    assert numbers(host(held(gpu(0), 70, "chat@1.service"), gpu(1), tenants=(first,))) == [1]
    somewhere = tenant("chat")  # by hand, so its record does not say where
    assert numbers(host(gpu(0), held(gpu(1), 70, "chat@1.service"), tenants=(somewhere,))) == [0]
    mine = replace(gpu(0), holders=(Process(1, "x", "coder@1.service", 7), Process(2, "x", "coder2.service", 9)))
    assert placement.free_memory(replace(mine, memory_used=16), LAYOUT) == 140 * GIB - 9
