"""The part of preflight that is about GPUs: which an engine can use, and what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import size
from installer.checks.gpus.vendors import MODULES
from installer.checks.placement import (
    choose,
    describe,
    engines_on,
    free_memory,
    gpus_needed,
    gpus_of_one,
    usable_gpus,
)
from installer.runtime import vllm_flags
from installer.spec.facts import Facts, Gpu
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.values import AUTO
from installer.spec.vendors import of_kind


def check_gpus(settings: Settings, facts: Facts, kind: str, layout: Layout) -> Iterator[Problem]:
    choice = choose(settings, facts, kind, layout)
    yield from choice.problems
    vendor = of_kind(kind)
    if vendor is None:
        return
    usable = usable_gpus(facts, kind)
    yield from MODULES[kind].problems(settings, facts, usable, choice.gpus)
    if usable:
        yield from _check_count(settings, usable, vendor.title)
    yield from _check_memory(settings, facts, choice.gpus, layout)
    yield from _check_unified(settings, choice.gpus)


def _check_count(settings: Settings, gpus: Sequence[Gpu], vendor: str) -> Iterator[Problem]:
    asked = gpus_needed(settings)
    if settings.gpus == AUTO and asked > len(gpus):
        yield Problem(
            tr("{asked} GPUs were asked for, but there are {present}", asked=asked, present=len(gpus)),
            _what_for(settings, vendor) + tr("; this host has {gpus}", gpus=describe(gpus)),
            _fewer(settings, len(gpus)),
        )


def _what_for(settings: Settings, vendor: str) -> str:
    each = gpus_of_one(settings)
    if settings.replicas > 1:
        return tr(
            "--replicas {count} take {each} {vendor} GPUs each", count=settings.replicas, each=each, vendor=vendor
        )
    return tr("the model is to be shared by --tensor-parallel-size {asked} {vendor} GPUs", asked=each, vendor=vendor)


def _fewer(settings: Settings, present: int) -> str:
    if fit := present // gpus_of_one(settings) if settings.replicas > 1 else 0:
        return tr("choose --replicas {count}, or name with --gpus those that all are to share", count=fit)
    return tr("choose --tensor-parallel-size {present}", present=present)


def _check_unified(settings: Settings, chosen: Sequence[Gpu]) -> Iterator[Problem]:
    """Where a GPU has no memory but the host's."""
    unified = [gpu for gpu in chosen if gpu.is_unified]
    if unified and "--enable-sleep-mode" in vllm_flags.given(settings.vllm_args):
        yield Problem(
            tr("--enable-sleep-mode frees nothing on {gpu}", gpu=unified[0].name),
            tr("its memory is the host's, where a sleeping engine puts its weights"),
            tr("leave it out; to free the memory stop the service"),
        )


def _check_memory(settings: Settings, facts: Facts, chosen: Sequence[Gpu], layout: Layout) -> Iterator[Problem]:
    share = settings.gpu_memory_utilization * engines_on(settings, len(chosen))
    for gpu in chosen:
        own = [holder for holder in gpu.holders if layout.has_unit(holder.unit)]
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
