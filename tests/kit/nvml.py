"""NVIDIA's management library as a stand-in, in C: a host with as many GPUs as are wanted, and with what is wrong."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Wed Oct  1 00:00:00 UTC 2026\n"


def h200(index: int, **others: object) -> dict[str, object]:
    """One as a real H200 told: the figures as NVML has them, in milliwatts, millijoules and megahertz."""
    return {
        "uuid": f"GPU-{index:08x}-0000-1111-2222-333333333333",
        "name": "NVIDIA H200",
        "pci": f"00000000:{index + 16:02X}:00.0",
        "memory_total": 150754820096,
        "memory_used": 4 << 30,
        "utilization": 37,
        "power": 412345,
        "power_limit": 700000,
        "power_usual_limit": 700000,
        "energy": 1234567890,
        "temperature": 44,
        "memory_temperature": 51,
        "clock_sm": 1980,
        "clock_memory": 3201,
        "throttled": 0,
        "ecc_corrected": 2,
        "ecc_uncorrected": 0,
        "ecc_uncorrected_now": 0,
        "remapped_corrected": 0,
        "remapped_uncorrected": 0,
        "remapped_pending": 0,
        "remapped_failed": 0,
        "pcie_replays": 3,
        "links": 18,
        "nvlink_errors": 5,
        "recovery": 0,
        **others,
    }


def install(root: Path, gpus: Sequence[Mapping[str, object]], *, is_old: bool = False, **of_host: object) -> Path:
    """The library below a root, with what it says; the folder it lies in, for LD_LIBRARY_PATH."""
    library = root / "usr/lib/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_compiled(is_old), library)
    driver = root / "proc/driver/nvidia/version"
    driver.parent.mkdir(parents=True, exist_ok=True)
    driver.write_text(DRIVER)
    say(root, gpus, **of_host)
    return library.parent


def say(root: Path, gpus: Sequence[Mapping[str, object]], **of_host: object) -> None:
    """What it says from now on."""
    sections = ["".join(f"{key}={value}\n" for key, value in each.items()) for each in gpus]
    text = "gpu\n".join(["".join(f"{k}={v}\n" for k, v in {"driver": "580.159.04", **of_host}.items()), *sections])
    (root / "usr/lib/libnvidia-ml.so.1.state").write_text(text)


@functools.cache
def _compiled(is_old: bool) -> Path:
    """Once for all tests of a process; an old one lacks what later drivers brought."""
    folder = tempfile.mkdtemp(prefix="nvml-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder, "libnvidia-ml.so.1")
    flags = ("-DOLD",) if is_old else ()
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", *flags, "-o", library, SOURCE, "-ldl"], check=True)
    return library
