"""A machine with two GPUs: an nvidia-smi of ours, NVIDIA's library as a stand-in, and what the kernel says of them.

The nvidia-smi says that a GPU is held by the engine that was started for it; one for the CPU holds none.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.kit import nvml
from tests.kit.boot.machine import Machine
from tests.kit.nvml import h200

A, B = "GPU-aaaaaaaa-0000-1111-2222-333333333333", "GPU-bbbbbbbb-0000-1111-2222-333333333333"
HOST = "/var/lib/gpus.json"
MISMATCH = f"{HOST}.mismatch"  # while it is there, the driver is of another version than its library
LIBRARY = "/var/lib/nvml/usr/lib"
NVIDIA_SMI = f"""#!{sys.executable}
import glob, json, os, sys
if os.path.exists({MISMATCH!r}):
    print("Failed to initialize NVML: Driver/library version mismatch")
    sys.exit(18)
gpus = json.load(open({HOST!r}))
held = {{}}
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        words = open(path.replace("environ", "cmdline")).read()
        variables = dict(pair.partition("=")[::2] for pair in open(path).read().split("\\0"))
    except OSError:
        continue
    if words.startswith("VLLM::EngineCore") and "CUDA_HOME" in variables:
        held.setdefault(variables.get("CUDA_VISIBLE_DEVICES", gpus[0]["uuid"]), path.split("/")[2])
for gpu in gpus:
    used = 120000 if gpu["uuid"] in held else 0
    row = {{"driver_version": "580.159.04", "compute_cap": "9.0", "memory.total": 143771, "memory.used": used,
           "index": gpu["index"], "uuid": gpu["uuid"], "name": "NVIDIA H200", "utilization.gpu": 0,
           "pci.bus_id": gpu["pci"], "mig.mode.current": "Disabled"}}
    apps = {{"pid": held.get(gpu["uuid"]), "used_memory": used, "process_name": "VLLM", "gpu_uuid": gpu["uuid"]}}
    for argument in sys.argv[1:]:
        option, _, names = argument.partition("=")
        if option == "--query-gpu":
            print(", ".join(str(row[name]) for name in names.split(",")))
        if option == "--query-compute-apps" and used:
            print(", ".join(str(apps[name]) for name in names.split(",")))
"""


def tools(folder: Path) -> dict[Path, Path]:
    """What a machine has to have bound in."""
    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)
    return {folder: Path("/usr/local/sbin")}


def has(machine: Machine, minors: dict[str, int]) -> None:
    """The host has these GPUs now, with these numbers of their device nodes."""
    gpus = [{"uuid": uuid, "index": index, "pci": place(index)} for index, uuid in enumerate(minors)]
    machine.write(HOST, json.dumps(gpus))
    machine.shell("if mountpoint -q /proc/driver; then umount /proc/driver; fi; mount -t tmpfs none /proc/driver")
    machine.shell("touch /dev/nvidia0 /dev/nvidia1")
    for gpu in gpus:
        folder = f"/proc/driver/nvidia/gpus/{str(gpu['pci'])[4:]}"
        line = f"Device Minor: \t {minors[str(gpu['uuid'])]}"
        machine.shell(f"mkdir -p {folder} && echo '{line}' > {folder}/information")


def place(index: int) -> str:
    return f"00000000:{16 + index}:00.0"


def gpu(uuid: str, **state: object) -> dict[str, object]:
    """What the library says of one of the two."""
    index = [A, B].index(uuid)
    return h200(index, uuid=uuid, pci=place(index), **state)


def load_driver(machine: Machine) -> Path:
    """NVIDIA's library in the machine, found by everybody; where it lies, for `nvml.say`."""
    root = machine.at("/var/lib/nvml")
    nvml.install(root, [gpu(A), gpu(B)])
    machine.write("/etc/ld.so.conf.d/nvml.conf", f"{LIBRARY}\n")
    machine.shell("ldconfig && mkdir -p /proc/driver/nvidia")
    machine.write("/root/version", nvml.DRIVER)
    machine.shell("cp /root/version /proc/driver/nvidia/version && touch /dev/nvidiactl /dev/nvidia-uvm")
    return root


def kernel_says(machine: Machine, line: str) -> None:
    """In the journal, as journald writes it down; a machine has no kernel of its own that could say it."""
    boot, host = machine.shell("cat /proc/sys/kernel/random/boot_id /etc/machine-id").stdout.split()
    now = {"REALTIME": time.time(), "MONOTONIC": time.monotonic()}
    fields = {
        **{f"__{clock}_TIMESTAMP": str(int(seconds * 1e6)) for clock, seconds in now.items()},
        "_BOOT_ID": boot.replace("-", ""), "_MACHINE_ID": host, "_TRANSPORT": "kernel", "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "kernel", "MESSAGE": line,
    }  # fmt: skip
    entry = "".join(f"{name}={value}\n" for name, value in fields.items())
    folder = f"/var/log/journal/{host}"
    machine.run("/lib/systemd/systemd-journal-remote", f"--output={folder}/kernel.journal", "-", stdin=f"{entry}\n")
