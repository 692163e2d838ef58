"""The real vLLM CPU engine, installed by the real uv. Its packages are downloaded once, into build/."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.forms.venv import engines
from installer.forms.venv.engines import InstallEngine
from installer.spec.settings import Settings
from tests.kit.boot.surroundings import REPO

LAYOUT = Layout("qwen3vl")
PYTHON = Path("/usr/bin/python3.11")
# Seen in a real `vllm serve` (of 5395 modules, the import check alone leaves 489 uncompiled): what it reaches only
# once it builds its routes and compiles the model. The import check does not import these.
STARTED = (
    *engines.NEEDED,
    engines.WORKER["cpu"],
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
FEW = 5


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A root of our own, with this host's pip configuration; kept, because it holds what was downloaded."""
    host = Host(root=REPO / "build/engine-test")
    host.root.mkdir(parents=True, exist_ok=True)
    configured = [Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf"]
    for path in configured:
        if path.exists():
            host.write(path, path.read_text())
    with (host.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield host


def compiled(site: Path) -> set[Path]:
    return set(site.rglob("*.pyc"))


def test_the_cpu_engine_imports_and_has_bytecode_for_a_start(host: Host, tmp_path: Path) -> None:
    settings = Settings(engine="cpu")
    engine = engines.resolve(settings, "cpu", PYTHON, host, Report())
    assert engine.has_torch
    assert not [line for line in engine.packages if line.startswith(("torchvision", "torchaudio", "torchcodec"))]
    change = InstallEngine(engine, settings, LAYOUT)
    change.apply(host, Report())
    assert engines.is_complete(host, LAYOUT, engine.id)
    assert engines.resolve(settings, "cpu", PYTHON, host, Report()) == engine

    (site,) = host.at(change.path).glob("lib/python*/site-packages")
    before = compiled(site)
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    python = host.at(change.path) / "bin/python"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1"}
    subprocess.run([python, "-I", "-c", code, *STARTED], check=True, env=environment)
    missing = {path.relative_to(site) for path in compiled(site) - before}
    assert len(missing) <= FEW, sorted(missing)
    shown = subprocess.run([python.with_name("vllm"), "--version"], env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout.strip().splitlines()[-1]) == (0, "0.32.0+cpu"), shown.stderr
