"""SGLang of the lock that ships, as far as a host without a GPU can start it: every package in the lock's version and
by its checksum, torch's CUDA build among them; only SGLang's compiled kernels are replaced, by the tests' stand-in.

Installs, deploys on the CPU and runs all of `vllm-install test`; a test that fails, fails this. Nothing of CUDA runs.
Needs root and the network: some 6 GB are fetched, or linked from STORE/cache where one is named.

    python bench/locked.py [STORE]
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from installer.base.host import Host  # noqa: E402
from installer.base.layout import Layout  # noqa: E402
from installer.base.report import Lines  # noqa: E402
from installer.checks import facts, preflight  # noqa: E402
from installer.families.family import Packages  # noqa: E402
from installer.families.sglang.family import SGLANG  # noqa: E402
from installer.forms.venv import engines, resolving, soundness  # noqa: E402
from installer.forms.venv.pipconf import Sources  # noqa: E402
from installer.spec.engine import versions  # noqa: E402
from installer.spec.settings import Settings  # noqa: E402
from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.life import cli  # noqa: E402
from tests.kit.sglang import wheels  # noqa: E402

INSIDE = "inside"
KERNELS = "sgl_kernel"
FOLDER = REPO / "build/sglang"
LIMIT = 1800.0
DEPLOY = (
    "--engine-family", "sglang", "--model", "builtin:tiny", "--served-model-name", "tiny", "--engine", "cpu",
    "--find-links", str(FOLDER), "--offline", "--context", "1024", "--sglang-args", "--max-total-tokens 8192",
)  # fmt: skip


def install() -> None:
    """Within the machine: the engine of the lock, in the place of the one that such a deploy would work out."""
    settings = Settings(engine="cpu", engine_family=SGLANG.name, find_links=str(FOLDER))
    host, layout, report = Host(), Layout("qwen3vl"), Lines()
    python = preflight.choose_interpreter(settings, facts.gather(host, settings, layout), "cpu")
    assert python is not None
    lock = SGLANG.packages.lock("cuda", settings.sglang_version, resolving.look_at(python.path, host).target)
    assert lock is not None, f"there is no lock for {python.path}"
    soundness_of = soundness.check_site

    def without_kernels(site: Path, kind: str, sources: Sources, packages: Packages) -> None:
        del kind
        soundness_of(site, "cuda", sources, packages)
        shutil.rmtree(site / KERNELS)
        shutil.copytree(REPO / "tests/kit/sglang" / KERNELS, site / KERNELS)

    soundness.check_site = without_kernels
    engine = engines.carried(settings, "cpu", lock, python.path, host)
    change = engines.InstallEngine(engine, replace(settings, find_links=None), layout)
    started = time.perf_counter()
    change.apply(host, report)
    taken = sum(path.lstat().st_size for path in host.at(change.path).rglob("*") if path.is_file())
    print(f"{len(versions(lock))} packages of the lock in {time.perf_counter() - started:.0f} s, {taken} bytes")


def main(store: Path | None) -> int:
    wheels.build(FOLDER)
    with Machine(network=True, store=store or False) as machine:
        print(machine.run(sys.executable, REPO / "bench/locked.py", INSIDE, timeout=LIMIT).stdout, flush=True)
        started = time.perf_counter()
        cli(machine, "deploy", *DEPLOY, timeout=LIMIT)
        print(f"deployed in {time.perf_counter() - started:.0f} s", flush=True)
        shown = cli(machine, "status", "--json").json
        print({name: shown[name] for name in ("engine_family", "vllm_version", "ready", "kv_tokens")})
        (engine,) = machine.at("/opt/vllm-install/engines").iterdir()
        python = Path("/opt/vllm-install/engines", engine.name, "bin/python")
        print("torch", machine.run(python, "-c", "import torch; print(torch.__version__)").stdout.strip())
        tested = cli(machine, "test", "--json", timeout=LIMIT).json
        for each in tested["tests"]:
            print(f"  {each['status']:8} {each['name']}")
        print(f"test: {tested['passed']} passed, {tested['failed']} failed")
    return bool(tested["failed"])


if __name__ == "__main__":
    if sys.argv[1:] == [INSIDE]:
        install()
    else:
        sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else None))
