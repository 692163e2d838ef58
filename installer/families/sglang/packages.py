"""What an SGLang is made of. No lock of it ships: its packages are worked out from what is offered."""

from __future__ import annotations

from installer.families.family import Imports, Packages, Rules

ENTRY = "sglang.launch_server"
NEEDED = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.tokenizer_manager",
)
USEFUL = ("sglang.srt.models.qwen3", "sglang.srt.managers.detokenizer_manager", "uvicorn.protocols.http.httptools_impl")
BYTES = {"cuda": 24 << 30, "cpu": 7 << 29}
# On the index there is no build for processors; one of the user's own, in a folder, says so in its version.
BUILDS = {"cuda": "", "cpu": "+cpu"}


def rules(kind: str, version: str) -> Rules:
    return Rules((f"sglang=={version}{BUILDS[kind]}",), (), ())


def shipped(kind: str, version: str, target: str) -> str | None:
    """None was tested yet."""
    del kind, version, target
    return None


PACKAGES = Packages(
    rules=rules,
    shipped=shipped,
    harmless_clashes=lambda: frozenset(),
    imports=Imports("sglang", ENTRY, dict.fromkeys(BUILDS, NEEDED), USEFUL),
    bytes=BYTES,
    glibc={kind: {"x86_64": (2, 34)} for kind in BUILDS},
    pythons=dict.fromkeys(BUILDS, range(11, 14)),
)
