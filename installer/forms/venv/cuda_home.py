"""A CUDA toolkit made of the wheels that an engine has anyway: links in the places where compilers and linkers look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from installer.base.host import Host

TREE = "cuda"  # below the engine
# These have to be of one version, or compiler and headers refuse each other.
PARTS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl", "nvidia-cuda-runtime")


def has_compiler(packages: Sequence[str]) -> bool:
    """Whether everything that compiles is among the packages of a lock, and fits together."""
    pinned = dict(package.split("==", 1) for package in packages)
    return len({".".join(pinned.get(part, part).split(".")[:2]) for part in PARTS}) == 1


def lay_out(packages: Sequence[str], site: Path, engine: Path, host: Host) -> None:
    wheels, tree = site / "nvidia/cu13", engine / TREE
    if not has_compiler(packages) or not host.exists(wheels / "bin/nvcc"):
        return
    host.make_dir(tree / "lib64")
    for name in ("bin", "nvvm", "include"):
        host.link(tree / name, wheels / name)
    for library in host.children(wheels / "lib"):
        # The linker wants the name without a version, which wheels do not bring.
        if match := re.fullmatch(r"(lib\w+\.so)\.\d+", library.name):
            host.link(tree / "lib64" / match[1], library)
    # The driver's own library, by the name that it has on every host.
    host.write(tree / "lib64/libcuda.so", "INPUT(-l:libcuda.so.1)\n")
