"""What an engine of vLLM is made of."""

from __future__ import annotations

from dataclasses import replace

from installer.families import shipped
from installer.families.family import Packages, Rules
from installer.families.vllm.builds import BUILDS, IMPORTS


def rules(kind: str, version: str) -> Rules:
    of_kind = shipped.rules(kind)
    return replace(of_kind, requirements=(f"{BUILDS[kind].package}=={version}", *of_kind.requirements))


def lock(kind: str, version: str, target: str) -> str | None:
    return shipped.lock(f"vllm-{kind}-{version}", target)


PACKAGES = Packages(
    rules=rules,
    lock=lock,
    harmless_clashes=shipped.harmless_clashes,
    imports=IMPORTS,
    bytes={kind: build.bytes for kind, build in BUILDS.items()},
    glibc={kind: build.glibc for kind, build in BUILDS.items()},
    pythons={kind: build.pythons for kind, build in BUILDS.items()},
)
