"""What `podman run` is told of a service: its sandbox, what it may see of the host, its GPUs, its image."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from installer.base.layout import Layout
from installer.spec.model import Model
from installer.spec.target import Target
from installer.spec.vendors import NVIDIA

STARTER = "vllm_container.py"
NOTIFY = "/run/systemd/notify"
SANDBOX = (
    "--rm", "--replace", "--pull=never", "--read-only", "--read-only-tmpfs=false",
    # What an image says of itself makes podman keep no writable directory for it and run nothing now and then.
    "--image-volume=ignore", "--no-healthcheck",
    "--tmpfs=/tmp:rw,exec,nosuid,nodev", "--cap-drop=all", "--security-opt=no-new-privileges",
    "--tmpfs=/dev/shm:rw,nosuid,nodev,noexec,size=16g", "--network=host", "--pids-limit=0", "--ulimit=host",
    "--log-driver=passthrough",
    # In the unit's own group, and not by conmon: that passes on no descriptors, and with them the callers who wait.
    "--cgroups=split", "--sdnotify=ignore",
)  # fmt: skip


def run_words(target: Target, layout: Layout, name: str, runtime: Path) -> str:
    """As PODMAN_RUN= has them: options, and the image by its ID last."""
    writable = (Path(NOTIFY), Path("/run") / name, layout.cache_dir, layout.usage_dir)
    credentials = Path(f"/run/credentials/{name}.service")
    weights = dict.fromkeys(weights_of(model, layout) for model in target.read)
    read_only = (runtime, layout.settings_file.parent, credentials, *weights)
    return shlex.join([
        f"--name={called(name)}", *SANDBOX, f"--workdir={layout.cache_dir}",
        *(f"--volume={path}:{path}" for path in writable), *(f"--volume={path}:{path}:ro" for path in read_only),
        *_gpus(target), target.engine.image,
    ])  # fmt: skip


def called(name: str) -> str:
    """The container of a unit: a name that nobody else's has, for one of that name is taken away (--replace)."""
    return f"vllm-install-{name}"


def weights_of(model: Model, layout: Layout) -> Path:
    """What holds them: in the hub's cache they are links into another directory of the same model."""
    path = model.path
    return path.parents[1] if layout.hub in path.parents else path


def _gpus(target: Target) -> Iterator[str]:
    """By the names that the Container Device Interface has for them."""
    if target.engine.kind == NVIDIA.kind:
        yield from (f"--device={NVIDIA.resource}={uuid}" for uuid in [gpu.uuid for gpu in target.gpus] or ["all"])
