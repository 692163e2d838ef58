"""Whether an engine may use a CUDA compiler here, and what it does without: most hosts have a driver and no more.

vLLM asks FlashInfer and DeepGEMM for kernels that are compiled when they are first used. Where no compiler is there,
a start ends in the middle. So what needs one is off unless a toolkit is chosen: the host's, or the one that is laid
out of the wheels that the engine has anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.base.errors import CommandFailed, Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.families.known import family_of
from installer.forms.venv import cuda_home, python_of
from installer.forms.venv.uv import EngineFailed
from installer.spec.engine import Engine
from installer.spec.settings import Settings
from installer.spec.toolkit import HOST, WHEELS, Toolkit
from installer.spec.vendors import NVIDIA

if TYPE_CHECKING:
    from installer.spec.facts import Gpu, Nvcc

PATIENCE = "30min"


def capabilities(gpus: Sequence[Gpu]) -> list[tuple[int, int]]:
    return sorted({gpu.capability for gpu in gpus if gpu.capability})


def has_compiler(engine: Engine) -> bool:
    return cuda_home.has_compiler(engine.packages)


def choose(
    settings: Settings, engine: Engine, gpus: Sequence[Gpu], nvcc: Nvcc | None, is_mla: Callable[[], bool]
) -> Toolkit | None:
    """The toolkit for a CUDA engine; that the host can carry it was checked before (checks/preflight_toolkit.py)."""
    compiling = family_of(settings).compiling
    if engine.kind != NVIDIA.kind or compiling is None:
        return None
    found = capabilities(gpus)
    dotted = " ".join(f"{major}.{minor}" for major, minor in found)
    if settings.cuda_toolkit == HOST and nvcc:
        return Toolkit(HOST, str(nvcc.home), capabilities=dotted)
    if settings.cuda_toolkit == WHEELS:
        if not has_compiler(engine):
            raise Refused(
                tr("the packages of vLLM {version} hold no complete CUDA compiler", version=engine.vllm_version),
                tr("choose CUDA_TOOLKIT=none, or CUDA_TOOLKIT=host with a toolkit of your own"),
            )
        home = Layout(settings.service).engines / engine.id / cuda_home.TREE
        return Toolkit(WHEELS, str(home), capabilities=dotted)
    return Toolkit(attention=compiling.attention(found, is_mla))


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
                python_of(layout.engines / self.engine_id), "-I", "-c", source,
            )  # fmt: skip
        except CommandFailed as error:
            said = "\n".join(error.output.strip().splitlines()[-6:])
            raise EngineFailed(
                tr("the kernels could not be compiled:\n{said}", said=said),
                tr("choose CUDA_TOOLKIT=none, which needs no compiler, or repair the toolkit in {path}",
                   path=self.toolkit.home),
            ) from None  # fmt: skip
        host.write(layout.kernels_stamp, self.stamp)
