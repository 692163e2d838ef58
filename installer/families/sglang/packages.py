"""What an engine of SGLang is made of."""

from __future__ import annotations

from dataclasses import replace

from installer.families import shipped
from installer.families.family import Imports, Packages, Rules

ENTRY = "sglang.launch_server"
NEEDED = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.tokenizer_manager",
)
USEFUL = ("sglang.srt.models.qwen3", "sglang.srt.managers.detokenizer_manager", "uvicorn.protocols.http.httptools_impl")
BYTES = {"cuda": 21 << 29, "cpu": 7 << 29}  # installed, with bytecode; seen: 9.5 GiB (cuda)
# On the index there is no build for processors; one of the user's own, in a folder, says so in its version.
BUILDS = {"cuda": "", "cpu": "+cpu"}


def rules(kind: str, version: str) -> Rules:
    """It takes torchvision and its like along on a CPU too, which vLLM does without."""
    own = f"sglang=={version}{BUILDS[kind]}"
    of_kind = shipped.rules(kind)
    return replace(of_kind, requirements=(own, *of_kind.requirements), exclusions=())


def lock(kind: str, version: str, target: str) -> str | None:
    return shipped.lock(f"sglang-{kind}-{version}", target)


PACKAGES = Packages(
    rules=rules,
    lock=lock,
    harmless_clashes=shipped.harmless_clashes,
    imports=Imports("sglang", ENTRY, dict.fromkeys(BUILDS, NEEDED), USEFUL),
    bytes=BYTES,
    glibc={kind: {"x86_64": (2, 34)} for kind in BUILDS},
    pythons=dict.fromkeys(BUILDS, range(11, 13)),  # outlines-core 0.1.26 has no wheel for a newer one
)
