"""Whether an engine may use a CUDA compiler here, and what it does without: most hosts have a driver and no more.

vLLM asks FlashInfer and DeepGEMM for kernels that are compiled when they are first used. Where no compiler is there,
a start ends in the middle. So what needs one is off unless a toolkit is chosen: the host's, or the one that is laid
out of the wheels that the engine has anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.engine import cuda_home
from installer.engine.engines import Engine
from installer.engine.uv import EngineFailed
from installer.errors import CommandFailed, Refused
from installer.host import Host
from installer.language import mark, tr
from installer.layout import Layout
from installer.report import Report
from installer.settings import Settings

if TYPE_CHECKING:
    from installer.checks.facts import Gpu, Nvcc

NONE, WHEELS, HOST = "none", "wheels", "host"
# Without this, vLLM, FlashInfer and the rest take whatever they find in /usr/local/cuda.
NOWHERE = "/nonexistent"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# vLLM asks there whether more kernels could be fetched. Nothing is fetched while a service runs: it hears no at once.
NO_DOWNLOADS = {"FLASHINFER_CUBINS_REPOSITORY": "http://127.0.0.1:9/"}
OFF = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"}
# What would be compiled only once requests come in, or while several GPUs wait for each other.
NEVER_LATE = {"VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER": "0", "VLLM_ALLREDUCE_USE_FLASHINFER": "0"}
COST = mark("FlashInfer's sampler and DeepGEMM are off, vLLM's own kernels do their work")
# On this generation vLLM prefers FlashInfer's attention, and does not ask whether it can be compiled.
BLACKWELL = 10
ATTENTION, MLA_ATTENTION = "FLASH_ATTN", "TRITON_MLA"
PATIENCE = "30min"


@dataclass(frozen=True)
class Toolkit:
    """What was chosen for one service, as it stands in its unit."""

    mode: str = NONE
    home: str = NOWHERE  # CUDA_HOME
    attention: str = ""  # the backend that vLLM is told to take, where its own choice would need a compiler
    capabilities: str = ""  # of the GPUs that kernels are compiled for, such as 9.0; empty where none are

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def environment(self, engine: Path) -> dict[str, str]:
        if self.mode == NONE:
            return {"CUDA_HOME": self.home, **OFF, **NO_DOWNLOADS}
        path = {"PATH": f"{engine}/bin:{SYSTEM_PATH}"}  # for ninja
        return {"CUDA_HOME": self.home, **path, **NEVER_LATE, **NO_DOWNLOADS}

    def arguments(self, given: Sequence[str]) -> list[str]:
        """vLLM's flags, but for those that the user gives."""
        words = []
        if self.attention and not any(re.match(r"--attention[-_]b|-ac\b|--attention[-_]c", word) for word in given):
            words += ["--attention-backend", self.attention]
        if self.mode != NONE and not any("flashinfer" in word for word in given):
            words.append("--no-enable-flashinfer-autotune")
        return words

    def describe(self) -> str:
        if self.mode != NONE:
            return tr("CUDA toolkit: {path}", path=self.home)
        said = tr("CUDA toolkit: none; {cost}", cost=tr(COST))
        return said + (tr("; attention by {backend}", backend=self.attention) if self.attention else "")


def choose(
    settings: Settings, engine: Engine, gpus: Sequence[Gpu], nvcc: Nvcc | None, is_mla: Callable[[], bool]
) -> Toolkit | None:
    """The toolkit for a CUDA engine; that the host can carry it was checked before (checks/preflight_toolkit.py)."""
    if engine.kind != "cuda":
        return None
    found = sorted({gpu.capability for gpu in gpus if gpu.capability})
    capabilities = " ".join(f"{major}.{minor}" for major, minor in found)
    if settings.cuda_toolkit == HOST and nvcc:
        return Toolkit(HOST, str(nvcc.home), capabilities=capabilities)
    if settings.cuda_toolkit == WHEELS:
        if not cuda_home.has_compiler(engine.packages):
            raise Refused(
                tr("the packages of vLLM {version} hold no complete CUDA compiler", version=engine.vllm_version),
                tr("choose CUDA_TOOLKIT=none, or CUDA_TOOLKIT=host with a toolkit of your own"),
            )
        home = Layout(settings.service).engines / engine.id / cuda_home.TREE
        return Toolkit(WHEELS, str(home), capabilities=capabilities)
    if not any(major == BLACKWELL for major, _ in found):
        return Toolkit()
    return Toolkit(attention=MLA_ATTENTION if is_mla() else ATTENTION)


# Kernels


@dataclass(frozen=True)
class CompileKernels:
    """Compile what vLLM would compile in its first start; as the service's user and in its sandbox."""

    toolkit: Toolkit
    engine_id: str
    layout: Layout
    sandbox: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]

    @property
    def stamp(self) -> str:
        """Stands for what was compiled, in a place that the service cannot write."""
        return f"{self.engine_id} {self.toolkit.home} {self.toolkit.capabilities}\n"

    def describe(self) -> str:
        return tr("compile FlashInfer's sampler for GPUs of compute capability {capabilities}",
                  capabilities=self.toolkit.capabilities)  # fmt: skip

    def to_json(self) -> dict[str, object]:
        return {"kind": "compile", "toolkit": self.toolkit.mode, "capabilities": self.toolkit.capabilities}

    def apply(self, host: Host, report: Report) -> None:
        layout = self.layout
        properties = [
            f"User={layout.user}", f"Group={layout.user}", f"RuntimeMaxSec={PATIENCE}",
            f"CacheDirectory={layout.service}", "CacheDirectoryMode=0700", *self.sandbox,
        ]  # fmt: skip
        variables = [*self.variables, ("FLASHINFER_CUDA_ARCH_LIST", self.toolkit.capabilities)]
        source = Path(__file__).with_name("compile_kernels.py").read_text()
        try:
            host.run(
                "systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--service-type=exec",
                "--description=kernels for vLLM", *(f"--property={line}" for line in properties),
                *(f"--setenv={name}={value}" for name, value in variables),
                layout.engines / self.engine_id / "bin/python", "-I", "-c", source,
            )  # fmt: skip
        except CommandFailed as error:
            said = "\n".join(error.output.strip().splitlines()[-6:])
            raise EngineFailed(
                tr("the kernels could not be compiled:\n{said}", said=said),
                tr("choose CUDA_TOOLKIT=none, which needs no compiler, or repair the toolkit in {path}",
                   path=self.toolkit.home),
            ) from None  # fmt: skip
        host.write(layout.kernels_stamp, self.stamp)
