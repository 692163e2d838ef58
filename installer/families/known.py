"""The families of engines that there are; everything above asks here for the one of a service."""

from __future__ import annotations

import re
from collections.abc import Sequence

from installer.families.family import Family, Refusal
from installer.families.sglang.family import SGLANG
from installer.families.vllm.family import VLLM
from installer.spec.engine import Engine
from installer.spec.settings import Settings

ERROR = re.compile(r"(?<!\w)\w*(?:Error|Exception): \S")
ASIDE = re.compile(r"See root cause|\bWARNING\b|\bINFO\b")
FAMILIES = {family.name: family for family in (VLLM, SGLANG)}


def family_of(settings: Settings) -> Family:
    return family_named(settings.engine_family)


def family_named(name: str) -> Family:
    """One that a newer tool has recorded is taken for vLLM, so that what else is in the record can be shown."""
    return FAMILIES.get(name, VLLM)


def label(settings: Settings) -> str:
    """The engine that is asked for, as people write it."""
    family = family_of(settings)
    return f"{family.title} {family.version(settings)}"


def label_of(engine: Engine) -> str:
    return f"{family_named(engine.family).title} {engine.vllm_version}"


def refusal_in(lines: Sequence[str]) -> Refusal | None:
    """An engine's account of why a context does not fit, whichever it is that speaks there."""
    return next((found for each in FAMILIES.values() if (found := each.log.refusal(lines))), None)


def root_line_in(lines: list[str]) -> str:
    """Why an engine failed, "" where nothing says so. Each error is the reason of the next: the first is the root."""
    return next((line.strip() for line in lines if ERROR.search(line) and not ASIDE.search(line)), "")


def family_counting(metrics: str) -> Family:
    """Whose metrics these are, by the beginning of their names."""
    lines = metrics.splitlines()
    counting = (each for each in FAMILIES.values() if any(line.startswith(each.metrics.prefix) for line in lines))
    return next(counting, VLLM)
