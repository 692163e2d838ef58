"""Compiling kernels at deploy, under a real systemd: whose process it is, what it may write, and when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO

ENGINE = "/opt/vllm-install/engines/e"
PACKAGES = f"{ENGINE}/packages"
# In place of FlashInfer's compiler: it notes who it is, what it was told, and where it could write.
SAMPLING = """
import os, pathlib
class Module:
    def build_and_load(self):
        print("compiling", flush=True)
        here = pathlib.Path(os.environ["FLASHINFER_WORKSPACE_BASE"])
        writable = [place for place in ("/etc", "/opt", "/usr", "/var/lib") if os.access(place, os.W_OK)]
        said = [os.getuid(), os.environ["FLASHINFER_CUDA_ARCH_LIST"], os.environ["CUDA_HOME"], writable]
        if (here / "fail").exists():
            raise SystemExit("nvcc fatal   : Unsupported gpu architecture 'compute_90a'")
        (here / "compiled").write_text(repr(said))
def gen_sampling_module():
    return Module()
"""
APPLY = """
import dataclasses, pathlib
from installer.flow import steps
from installer.spec.toolkit import Toolkit
from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.report import Lines
from tests.kit.targets import wanted
want = wanted()
toolkit = Toolkit("wheels", "/opt/vllm-install/engines/e/cuda", capabilities="9.0")
engine = dataclasses.replace(want.target.engine, id="e")
want = dataclasses.replace(want, target=dataclasses.replace(want.target, engine=engine, toolkit=toolkit))
host = Host()
for change in [*steps.account(want, host), *steps.kernels(want, host)]:
    try:
        change.apply(host, Lines())
    except InstallError as error:
        print(error.exit_code.value, error.message, error.hint)
print(len(list(steps.kernels(want, host))), "due")
"""


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    """A new one for each test."""
    return boot()


@pytest.fixture
def engine(machine: Machine) -> Machine:
    machine.write(f"{PACKAGES}/flashinfer/jit/sampling.py", SAMPLING)
    machine.write(f"{PACKAGES}/flashinfer/jit/__init__.py", "")
    machine.write(f"{PACKAGES}/flashinfer/__init__.py", "")
    # -I, as the engine's own Python is called: neither PYTHONPATH nor the working directory counts.
    code = f"import sys; sys.path.insert(0, '{PACKAGES}'); exec(sys.argv[1])"
    machine.write(f"{ENGINE}/bin/python", f'#!/bin/sh\nexec /usr/bin/python3 -c "{code}" "$3"\n', 0o755)
    return machine


def apply(machine: Machine) -> str:
    return machine.run(sys.executable, "-c", APPLY, env={"PYTHONPATH": str(REPO)}).stdout


def test_kernels_are_compiled_by_the_service_in_its_sandbox_and_once(engine: Machine) -> None:
    assert apply(engine).splitlines() == ["0 due"]
    uid = engine.run("id", "-u", "vllm-qwen3vl").stdout.strip()
    written = engine.at("/var/cache/qwen3vl/compiled")
    assert written.read_text() == repr([int(uid), "9.0", f"{ENGINE}/cuda", []])
    assert str(written.stat().st_uid) == uid
    written.unlink()
    assert apply(engine).splitlines() == ["0 due"]
    assert not written.exists(), "what was compiled once is not compiled again"


def test_a_compiler_that_fails_is_quoted_and_nothing_counts_as_compiled(engine: Machine) -> None:
    engine.shell("mkdir -p /var/cache/qwen3vl && touch /var/cache/qwen3vl/fail")
    said = apply(engine)
    assert said.startswith("4 the kernels could not be compiled:"), said
    assert "Unsupported gpu architecture" in said
    assert "CUDA_TOOLKIT=none" in said
    assert said.endswith("1 due\n")
