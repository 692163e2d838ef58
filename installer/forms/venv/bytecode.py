"""Compiled Python for an engine. The service cannot write into it, so what is missing is compiled at every start.

Compiling all of an engine takes about half a minute and most of it is never imported. So: bytecode that an
earlier engine left for the very same source files is linked in; the import check compiles what it imports;
and next to it, on another core, the packages are compiled that it reaches late or a start imports only later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from installer.base.host import Host

# In the order of work: first what the import check reaches last, so that the two meet in the middle.
COMPILED = (
    "torch/_dynamo", "torch/_inductor", "torch/_export", "torch/_functorch", "torch/_higher_order_ops",
    "torch/_subclasses", "torch/export", "torch/fx", "torch/distributed", "networkx", "transformers/utils",
    "transformers/generation", "huggingface_hub", "vllm", "pydantic", "sympy/physics", "sympy/combinatorics",
    "sympy/tensor", "openai/types", "openai/resources", "opentelemetry", "google", "compressed_tensors",
    "model_hosting_container_standards", "aiohttp", "fastapi", "starlette", "uvicorn", "websockets", "loguru",
    "jmespath", "httptools", "prometheus_client", "prometheus_fastapi_instrumentator", "setproctitle",
    "flashinfer", "deep_gemm",
)  # fmt: skip


def compile_packages(host: Host, python: Path, packages: Path) -> None:
    """What does not compile is not an error here: wheels carry templates and files for other Pythons."""
    paths = [packages / name for name in COMPILED if (packages / name).is_dir()]
    if paths:
        workers = max(1, len(os.sched_getaffinity(0)) - 1)
        host.run(python, "-I", "-m", "compileall", "-q", "-j", str(workers), *paths, check=False)


def restore(store: Path, packages: Path) -> None:
    """Link in the bytecode that is still valid for the sources installed here, by Python's own rule."""
    for compiled in _compiled_files(store):
        target = packages / compiled.relative_to(store)
        source = target.parent.parent / (target.name.rsplit(".", 2)[0] + ".py")
        if not _is_valid(compiled, source):
            continue
        try:
            Host().share(target, compiled)
        except FileExistsError:
            continue
        except OSError:  # another file system: then sources are copied too, and no old bytecode fits them
            return


def save(packages: Path, store: Path) -> None:
    """Keep an engine's bytecode for the next; links cost no space while the engine lives."""
    for compiled in _compiled_files(packages):
        kept = store / compiled.relative_to(packages)
        try:
            if kept.exists():
                if kept.samefile(compiled):
                    continue
                Host().remove(kept)
            Host().share(kept, compiled)
        except OSError:  # a store that cannot be kept costs the next engine some seconds, nothing else
            return


def _compiled_files(root: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(root):
        if directory.endswith("__pycache__"):
            yield from (Path(directory, name) for name in names if name.endswith(".pyc"))


def _is_valid(compiled: Path, source: Path) -> bool:
    """The header names the modification time and size of the source that was compiled (PEP 552, flags 0)."""
    try:
        stat = source.stat()
    except FileNotFoundError:
        return False
    with compiled.open("rb") as file:
        header = file.read(16)
    wanted = [0, int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF]
    return len(header) == 16 and [int.from_bytes(header[at : at + 4], "little") for at in (4, 8, 12)] == wanted
