"""Running uv, and saying what went wrong in words of this task."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from installer.base.errors import CommandFailed, Exit, InstallError
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.families.known import family_of, label
from installer.forms.venv.pipconf import Sources
from installer.runtime.vllm_text import without_password
from installer.spec.settings import Settings

MIRROR = mark("name a mirror with --index-url URL, or a folder of wheels with --find-links DIR")

# What uv says, what it means, what helps; the first that matches. {vllm} stands for the version and build asked for,
# {mirror} for the advice above, {pythons} for those that there are wheels for.
MEANINGS = (
    (r"Hash mismatch for",
     mark("a wheel is not the one that {vllm} was tested with: its checksum is another"),
     mark("the index or folder holds a file of its own under that version, or it was tampered with: ask who runs it")),
    (r"No space left on device|os error 28\b",
     mark("the disk is full"),
     mark("free some space (df -h) and run the command again: what was downloaded is kept")),
    (r"find-links.*(directory|No such file)",
     mark("a --find-links folder cannot be read"), mark("correct --find-links, or pip's find-links setting")),
    (r"network was disabled|network is disabled|--offline",
     mark("{vllm} needs packages that are not on this host, and --offline forbids fetching them"),
     mark("run without --offline once, or give a folder with the wheels: --find-links DIR")),
    (r"no wheels with a matching|no wheels are available|requires? Python|current Python version|platform tag",
     mark("there is no build of {vllm} for this host's Python or system"),
     mark("name another interpreter with --python ({pythons}), or another version with --vllm-version")),
    (r"(401|403|407) |authentication credentials|Unauthorized|Forbidden",
     mark("the package index refused us"),
     mark("check user and password in --index-url or in pip's configuration")),
    (r"certificate|UnknownIssuer|\btls\b",
     mark("the package index's certificate is not trusted here"),
     mark("add its authority to the system's certificates, or name the file in SSL_CERT_FILE or pip's cert setting")),
    (r"dns error|tcp connect|Connection (refused|reset)|timed? ?out|error sending request|client error",
     mark("the package index cannot be reached"),
     mark("check the network (for a proxy set HTTPS_PROXY), or {mirror}")),
    (r"no versions? of (vllm|sglang)|(vllm(-cpu)?|sglang) was not found",
     mark("there is no {vllm} in the package index"), mark("choose another with --vllm-version, or {mirror}")),
    (r"404 Not Found|was not found in the (package registry|provided package locations)|there is no version of",
     mark("the package index lacks what {vllm} needs"), MIRROR),
    (r"", mark("{vllm} could not be installed"), mark("run the command again, or {mirror}")),
)  # fmt: skip


# What a lock makes a failure: without it, other packages might do.
LOCKED = re.compile(r"Hash mismatch for|there is no version of|was not found in")


class EngineFailed(InstallError):
    """The engine cannot be had."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.ENGINE)


def run_uv(
    host: Host,
    cache: Path,
    *arguments: str | Path,
    sources: Sources | None = None,
    offline: bool = False,
    stdin: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """One uv command, deaf to any configuration of uv's own; passwords travel in its environment only."""
    from uv import find_uv_bin  # the wheel that brings the binary; imported late, for --help must be quick

    sources = sources or Sources()
    argv = [find_uv_bin(), *arguments, "--no-config", "--no-progress", "--no-python-downloads", "--color", "never"]
    argv += [*sources.options(), *(["--offline"] if offline else [])]
    environment = {"UV_CACHE_DIR": str(cache), **sources.environment()}
    return host.run(*argv, env=environment, stdin=stdin, on_line=on_line).stdout


def explain_uv(error: CommandFailed, kind: str, settings: Settings, *, is_tested: bool = False) -> EngineFailed:
    """In words of this task; where a tested lock was asked for, what would do without it."""
    said = without_password(error.output).strip()
    vllm = f"{label(settings)} ({kind})"
    tail = "\n".join([line for line in said.splitlines() if line.strip()][-6:])
    what, hint = next((what, hint) for pattern, what, hint in MEANINGS if re.search(pattern, said, re.IGNORECASE))
    advice = tr(hint, mirror=tr(MIRROR), pythons=family_of(settings).packages.said_pythons(kind))
    if is_tested and re.search(LOCKED, said):
        advice = tr("{advice}; or deploy (or upgrade) with --resolve, which takes what is offered", advice=advice)
    return EngineFailed(tr("{what}:\n{said}", what=tr(what, vllm=vllm), said=tail), advice)
