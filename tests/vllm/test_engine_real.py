"""The real vLLM CPU engine as the real uv installs it: asked for again it is the same, and compiled for a start."""

from __future__ import annotations

import sys
from pathlib import Path

from installer.families.vllm import builds
from installer.forms.venv import engines
from installer.spec.engine import versions
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO

# Seen in a real `vllm serve` (of 5395 modules, the import check alone leaves 489 uncompiled): what it reaches only
# once it builds its routes and compiles the model. The import check does not import these.
STARTED = (
    *builds.NEEDED,
    builds.BUILDS["cpu"].worker,
    "vllm.entrypoints.anthropic.api_router",
    "vllm.compilation.passes.pass_manager",
    "vllm.distributed.elastic_ep.elastic_execute",
    "torch._dynamo.backends.distributed",
    "torch._inductor.choices",
    "torch._inductor.fx_passes.fuse_attention",
    "torch._inductor.fx_passes.quantization",
    "torch.export._trace",
    "compressed_tensors.offload",
    "model_hosting_container_standards.sagemaker",
    "sympy.combinatorics",
    "sympy.physics.units",
    "websockets.server",
)
IMPORT = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
FEW = 5


def compiled(site: Path) -> set[Path]:
    return set(site.rglob("*.pyc"))


def test_the_cpu_engine_imports_and_has_bytecode_for_a_start(cpu_engine: str) -> None:
    engine = Path("/opt/vllm-install/engines", cpu_engine)
    with Machine(network=True, store=True) as machine:
        made = machine.at(engine / engines.MARKER).stat().st_ino
        again = machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", timeout=300)
        assert again.stdout.split()[-1] == cpu_engine
        assert machine.at(engine / engines.MARKER).stat().st_ino == made, "it was installed a second time"
        names = {line.partition("==")[0] for line in versions(machine.at(engine / engines.LOCK).read_text())}
        assert "torch" in names
        assert not names & {"torchvision", "torchaudio", "torchcodec"}

        (site,) = machine.at(engine).glob("lib/python*/site-packages")
        before = compiled(site)
        python, quiet = engine / "bin/python", {"VLLM_NO_USAGE_STATS": "1"}
        machine.run(python, "-I", "-c", IMPORT, *STARTED, env=quiet, timeout=300)
        missing = {path.relative_to(site) for path in compiled(site) - before}
        assert len(missing) <= FEW, sorted(missing)
        shown = machine.run(engine / "bin/vllm", "--version", env=quiet)
        assert shown.stdout.strip().splitlines()[-1] == "0.32.0+cpu"
