"""The part of preflight that is about containers: what runs them, and how they are given GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from installer.base.language import tr
from installer.checks.packages import install_command
from installer.spec.facts import Facts
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.vendors import AMD, NVIDIA

OLDEST = (4, 4)


def check_podman(settings: Settings, facts: Facts, kind: str) -> Iterator[Problem]:
    podman, unified = facts.podman, [gpu for gpu in facts.gpus if gpu.is_unified]
    if podman is None:
        yield Problem(
            tr("no podman was found"),
            tr("with RUNTIME=podman it runs the engine's container"),
            install_command(facts, "podman"),
        )
    elif podman.version < OLDEST:
        yield Problem(
            tr("podman {version} is too old", version=".".join(map(str, podman.version))),
            tr("version {needed} or newer is needed", needed=".".join(map(str, OLDEST))),
            tr("upgrade the distribution (Debian 13, Ubuntu 24.04 and RHEL 9 are new enough), or choose RUNTIME=venv"),
        )
    elif kind == NVIDIA.kind and not any(name.startswith(f"{NVIDIA.resource}=") for name in podman.devices):
        yield Problem(
            tr("podman knows no GPU"),
            tr("containers are given {vendor} GPUs by the Container Device Interface", vendor=NVIDIA.title),
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        )
    if not facts.interpreters:
        yield Problem(tr("no Python was found"), tr("it starts the container"), install_command(facts, "python3"))
    if kind == NVIDIA.kind and unified and settings.image is None:
        yield Problem(
            tr("vLLM's own image may not be for {gpu}", gpu=unified[0].name),
            tr("NVIDIA makes one for GPUs whose memory is the host's, and nobody has tried either"),
            tr(
                "choose that one: --image {image}:TAG, with the version it holds as --vllm-version",
                image=NVIDIA.unified_image,
            ),
            fatal=False,
        )
    if kind == AMD.kind:
        yield Problem(
            tr("RUNTIME=podman has no way to give a container AMD's GPUs"),
            tr("none was tried"),
            tr("choose RUNTIME=venv"),
        )
