"""The part of preflight that is about GPUs: which an engine can use, and what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import size
from installer.checks.placement import MINIMUM_CAPABILITY, choose, describe, free_memory, gpus_needed, usable_gpus
from installer.families.vllm.packages import is_cuda_12
from installer.spec.facts import Facts, Gpu, NoDriver
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.values import AUTO

CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525


def check_gpus(settings: Settings, facts: Facts, kind: str, layout: Layout) -> Iterator[Problem]:
    choice = choose(settings, facts, kind, layout)
    yield from choice.problems
    if kind == "cpu":
        return
    yield from _check_nvidia(settings, facts, choice.gpus) if kind == "cuda" else _check_amd(settings, facts)
    yield from _check_memory(settings, facts, choice.gpus, layout)


def _check_nvidia(settings: Settings, facts: Facts, chosen: Sequence[Gpu]) -> Iterator[Problem]:
    gpus = usable_gpus(facts, "cuda")
    if facts.nvidia_error:
        yield Problem(
            tr("the NVIDIA driver does not work"),
            facts.nvidia_error,
            _remedy_for_driver(facts),
            id="driver-broken",
        )
        return
    if not gpus:
        yield Problem(
            tr("no NVIDIA GPU was found"),
            tr("the cuda engine needs one"),
            tr("choose --engine auto, or --engine cpu for a trial"),
            id="no-gpu-visible",
        )
        return
    cuda_12 = is_cuda_12(settings)
    needed = CUDA_12_DRIVER if cuda_12 else CUDA_13_DRIVER
    if _major(gpus[0].driver) < needed:
        yield Problem(
            tr("NVIDIA driver {driver} is too old", driver=gpus[0].driver),
            tr(
                "this build of vLLM holds CUDA {cuda}, which needs driver {needed} or newer",
                cuda="12" if cuda_12 else "13",
                needed=needed,
            )
            + (tr("; this one goes up to CUDA {cuda}", cuda=gpus[0].cuda) if gpus[0].cuda else ""),
            tr("install driver {needed} or newer and restart the host", needed=needed)
            + ("" if cuda_12 else tr(", or name an index of CUDA 12 builds (its name holds cu12) with --index-url")),
            id="driver-too-old",
        )
    for gpu in chosen:
        if gpu.capability and gpu.capability < MINIMUM_CAPABILITY:
            yield Problem(
                tr("{gpu} is too old for vLLM", gpu=gpu.name),
                tr(
                    "its compute capability is {capability}, 7.5 is needed",
                    capability=".".join(map(str, gpu.capability)),
                ),
                tr("use a GPU of the Turing generation or newer, or --engine cpu"),
                id="gpu-too-old",
            )
    yield from _check_count(settings, gpus, "NVIDIA")


def _check_amd(settings: Settings, facts: Facts) -> Iterator[Problem]:
    gpus = usable_gpus(facts, "rocm")
    others = [gpu.name for gpu in facts.gpus if gpu.vendor == "amd" and gpu not in gpus]
    if not gpus:
        yield Problem(
            tr("no AMD GPU was found that vLLM supports"),
            tr("found: {others}", others=", ".join(others)) if others else tr("the amdgpu driver shows none"),
            tr("load the driver (sudo modprobe amdgpu) if there is such a GPU, or choose --engine auto"),
        )
        return
    yield from _check_count(settings, gpus, "AMD")


def _check_count(settings: Settings, gpus: Sequence[Gpu], vendor: str) -> Iterator[Problem]:
    asked = gpus_needed(settings)
    if settings.gpus == AUTO and asked > len(gpus):
        yield Problem(
            tr("{asked} GPUs were asked for, but there are {present}", asked=asked, present=len(gpus)),
            tr(
                "the model is to be shared by --tensor-parallel-size {asked} {vendor} GPUs",
                asked=asked,
                vendor=vendor,
            )
            + tr("; this host has {gpus}", gpus=describe(gpus)),
            tr("choose --tensor-parallel-size {present}", present=len(gpus)),
        )


def _check_memory(settings: Settings, facts: Facts, chosen: Sequence[Gpu], layout: Layout) -> Iterator[Problem]:
    share = settings.gpu_memory_utilization
    for gpu in chosen:
        own = [holder for holder in gpu.holders if holder.unit == layout.unit_name]
        if facts.service_runs and not (own and all(holder.memory for holder in own)):
            continue  # what the service holds now comes free at its restart, but how much that is cannot be told
        needed = int(share * gpu.memory_total)
        free = free_memory(gpu, layout)
        if free >= needed:
            continue
        others = [holder for holder in gpu.holders if holder not in own]
        held = tr(", ").join(
            tr("{process} holds {memory}", process=h, memory=size(h.memory) if h.memory else tr("some")) for h in others
        )
        most = int(100 * free / gpu.memory_total) / 100
        yield Problem(
            tr("{gpu} ({uuid}) has too little free memory", gpu=gpu.name, uuid=gpu.uuid),
            tr(
                "{free} of {total} are free, {share:g} of all, which are {needed}, was asked for; {held}",
                free=size(free),
                total=size(gpu.memory_total),
                share=share,
                needed=size(needed),
                held=held or tr("no process shows who holds the rest"),
            ),
            (
                tr("; ").join(h.how_to_stop for h in others)
                or tr("find what holds it (sudo fuser -v /dev/nvidia* /dev/kfd)")
            )
            + (tr(", or choose --gpu-memory-utilization {most:g} or less", most=most) if most >= 0.05 else ""),
            id="gpu-memory-held",
        )


def _remedy_for_driver(facts: Facts) -> str:
    if "mismatch" in facts.nvidia_error.lower():
        return tr("restart the host (sudo reboot): the driver was updated while the old one was loaded")
    if isinstance(facts.nvidia_error, NoDriver):
        return tr("install NVIDIA's driver {needed} or newer, or choose --engine cpu", needed=CUDA_13_DRIVER)
    return tr("see what the kernel says (sudo dmesg | grep -i nvrm), restart the host, or choose --engine cpu")


def _major(driver: str) -> int:
    number = driver.partition(".")[0]
    return int(number) if number.isdigit() else 0
