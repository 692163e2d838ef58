"""The part of preflight that is about the CUDA compiler: asked for, it has to be one that works."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from installer.base.language import tr
from installer.spec.facts import Facts
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.vendors import NVIDIA

# nvcc 13.0 neither takes newer compilers nor the mathematics headers of newer C libraries.
NEWEST_GCC = 15
NEWEST_GLIBC = (2, 41)
ENGINE_CUDA = 13


def check_toolkit(settings: Settings, facts: Facts, kind: str) -> Iterator[Problem]:
    if kind != NVIDIA.kind or settings.cuda_toolkit in ("auto", "none"):
        return
    if facts.cxx_version > NEWEST_GCC:
        yield _unusable(
            tr("g++ {version} is too new for the CUDA compiler", version=facts.cxx_version),
            tr("it takes versions up to {newest}", newest=NEWEST_GCC),
        )
    if settings.cuda_toolkit == "wheels" and facts.glibc > NEWEST_GLIBC:
        yield _unusable(
            tr("glibc {version} is too new for the CUDA compiler", version=_dotted(facts.glibc)),
            tr("that of CUDA 13.0 takes versions up to {newest}", newest=_dotted(NEWEST_GLIBC)),
        )
    if settings.cuda_toolkit == "host":
        yield from _check_host(facts)


def fits_wheels(settings: Settings, facts: Facts) -> bool:
    """Whether the compiler of the engine's own packages would work here."""
    asked = dataclasses.replace(settings, cuda_toolkit="wheels")
    return facts.cxx_version > 0 and not any(check_toolkit(asked, facts, NVIDIA.kind))


def _check_host(facts: Facts) -> Iterator[Problem]:
    nvcc = facts.nvcc
    if nvcc is None:
        yield _unusable(
            tr("no CUDA toolkit was found"), tr("there is no nvcc in $CUDA_HOME, on the PATH or in /usr/local/cuda")
        )
        return
    what = tr("the CUDA toolkit in {path} is of version {version}", path=nvcc.home, version=_dotted(nvcc.release))
    driver = next((gpu.cuda for gpu in facts.gpus if gpu.cuda), None)
    if nvcc.release[0] != ENGINE_CUDA:
        yield _unusable(what, tr("this build of vLLM holds CUDA {cuda}", cuda=ENGINE_CUDA))
    elif driver and nvcc.release > _release(driver):
        yield _unusable(what, tr("this driver goes up to CUDA {cuda}", cuda=driver))


def _unusable(what: str, why: str) -> Problem:
    return Problem(what, why, tr("choose --cuda-toolkit none, which needs no compiler"), id="toolkit-unfit")


def _release(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major or 0), int(minor or 0)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
