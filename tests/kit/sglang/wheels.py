"""Makes a folder for --find-links: the real SGLang's wheel as a build for processors, and what stands in for kernels.

wheels.py FOLDER    asks the package index once
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from installer.spec.settings import Settings
from tests.kit.wheels import make_wheel

VERSION = Settings.sglang_version
TORCH = "torch==2.13.0"
# What needs a GPU, or brings what does. torchvision comes along, and imports without its compiled operators.
WITHOUT = (
    "torch", "torchaudio", "torchcodec", "flashinfer-python", "flash-attn-4", "humming-kernels",
    "nvidia-cutlass-dsl", "nvidia-mathdx", "nvshmem4py-cu13", "cuda-python", "quack-kernels", "sgl-deep-ep",
    "sgl-deep-gemm", "sgl-flash-mla", "sglang-kernel", "tilelang", "torch-memory-saver", "kernels", "timm",
)  # fmt: skip
HERE = Path(__file__).parent


def build(folder: Path, python: str = "3.11") -> Path:
    """The folder, complete; what was made once is there for the next run."""
    folder.mkdir(parents=True, exist_ok=True)
    make_wheel(folder, "sgl_cpu_stubs", "1", files=_stubs())
    if not list(folder.glob(f"sglang-{VERSION}+cpu-*.whl")):
        _download(folder / "index", python)
        (real,) = (folder / "index").glob(f"sglang-{VERSION}-*.whl")
        _repack(real, folder)
        real.unlink()
    return folder


def _stubs() -> dict[str, str]:
    names = ("sgl_kernel/__init__.py", "sgl_kernel/scalar_type.py", "sgl_cpu_operators.py")
    return {name: (HERE / name).read_text() for name in names} | {"sgl_cpu.pth": "import sgl_cpu_operators\n"}


def _download(folder: Path, python: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--python-version", python, "--dest", folder, f"sglang=={VERSION}"], check=True)


def _repack(real: Path, folder: Path) -> None:
    """The same files under the version of a build for processors, which asks for nothing that needs a GPU."""
    old, new = f"sglang-{VERSION}.dist-info/", f"sglang-{VERSION}+cpu.dist-info/"
    target = folder / real.name.replace(VERSION, f"{VERSION}+cpu", 1)
    part = target.with_suffix(".part")
    with zipfile.ZipFile(real) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for item in source.infolist():
            name, data = item.filename, source.read(item)
            if name == f"{old}METADATA":
                data = _metadata(data.decode()).encode()
            if name == f"{old}RECORD":
                data = _record(data.decode(), old, new).encode()
            made.writestr(name.replace(old, new, 1), data)
    part.replace(target)


def _metadata(text: str) -> str:
    text = text.replace(f"Version: {VERSION}\n", f"Version: {VERSION}+cpu\n", 1)
    head, end, rest = text.partition("\n\n")
    lines = [line for line in head.splitlines() if not _is_left_out(line)]
    return "\n".join([*lines, f"Requires-Dist: {TORCH}", "Requires-Dist: sgl-cpu-stubs==1"]) + end + rest


def _is_left_out(line: str) -> bool:
    found = re.match(r"Requires-Dist: ([\w.-]+)", line)
    return bool(found) and found[1].lower().replace("_", "-") in WITHOUT


def _record(text: str, old: str, new: str) -> str:
    """Of the metadata no checksum stands there any more: it is another."""
    lines = [line.replace(old, new, 1) for line in text.splitlines()]
    return "".join(f"{new}METADATA,,\n" if line.startswith(f"{new}METADATA,") else f"{line}\n" for line in lines)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
