"""A service as a container that runs without us: what it is given, in whatever form it is written down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.checks.placement import gpus_of_one
from installer.families.vllm.serve import serve_arguments
from installer.runtime import vllm_flags
from installer.spec.settings import Settings
from installer.spec.target import LOOPBACK, Adapter, Placed, Target
from installer.spec.vendors import Vendor, image_of, is_uuid, of_kind

USER = 2000  # whom vLLM's own images know as vllm
PORT = 8000  # inside
# Below /run no host path of a service can lie: its sandbox hides them.
MODEL, HUB, CACHE, ADAPTERS = "/run/vllm/model", "/run/vllm/hub", "/run/vllm/cache", "/run/vllm/adapters"
PATHS = ("--chat-template", "--tokenizer")  # of vLLM's flags, that may name a file or directory
ENVIRONMENT = {
    "HOME": CACHE,
    "USER": "vllm",
    "LOGNAME": "vllm",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "FLASHINFER_WORKSPACE_BASE": CACHE,
    "HF_HUB_CACHE": HUB,
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_USE_RUST_FRONTEND": "0",
    "VLLM_HOST_IP": LOOPBACK,
}
IMAGE = re.compile(
    r"(?=.{1,500}$)[a-z0-9][\w.-]*(?::\d{1,5}(?=/))?(?:/[\w.-]+)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


@dataclass(frozen=True)
class Container:
    """What `vllm` is started with, and what of the host it is given."""

    service: str
    model_id: str
    image: str
    words: tuple[str, ...]  # after vllm
    mounts: tuple[tuple[str, str], ...]  # (path on the host, path inside), read-only
    host: str
    port: int
    drain: int
    vendor: Vendor | None = None
    gpus: tuple[str, ...] = ()  # by uuid; none where they are not known
    count: int = 0  # of GPUs that one engine takes
    nodes: tuple[str, ...] = ()  # device nodes, where GPUs are given as such
    groups: tuple[int, ...] = ()  # to which those belong
    replicas: int = 1

    @property
    def environment(self) -> dict[str, str]:
        chosen = {self.vendor.variables[0]: ",".join(self.gpus)} if self.vendor and self.nodes and self.gpus else {}
        return {**ENVIRONMENT, **chosen}


def container_of(target: Target, image: str | None, host: Host) -> Container:
    settings, vendor = target.settings, of_kind(target.engine.kind)
    placed = target.replicas[0].gpus if target.replicas else target.gpus
    nodes = _nodes(placed, vendor)
    return Container(
        service=settings.service,
        model_id=target.model.id,
        image=image or image_of(target.engine.kind, target.engine.vllm_version),
        words=_words(target),
        mounts=tuple(
            dict.fromkeys((_model(target)[1], *(mount for _, mount, _ in _adapters(target)), *_files(settings, host)))
        ),
        host=LOOPBACK if settings.has_tls or settings.host == "localhost" else settings.host,
        port=settings.port,
        drain=settings.drain,
        vendor=vendor,
        gpus=tuple(gpu.uuid for gpu in placed) if all(is_uuid(gpu.uuid) for gpu in placed) else (),
        count=gpus_of_one(settings) if vendor else 0,
        nodes=nodes,
        groups=tuple(sorted({group for node in nodes if (group := host.group(Path(node)))})),
        replicas=settings.replicas,
    )


def check_image(image: str) -> str:
    if not IMAGE.fullmatch(image):
        raise UsageError(
            tr("{image!r} cannot be the name of an image", image=image),
            tr("for example: {example}", example="--image docker.io/vllm/vllm-openai:v0.32.0"),
        )
    return image


def _words(target: Target) -> tuple[str, ...]:
    """vLLM's command line with the host's own places replaced by those inside."""
    inside = replace(target.settings, host="0.0.0.0", port=PORT)  # noqa: S104 of the container's own network
    there = tuple(replace(each, model=replace(each.model, path=inside)) for each, _, inside in _adapters(target))
    words = serve_arguments(replace(target, settings=inside, toolkit=None, replicas=(), adapters=there))
    return (words[0], *_model(target)[0], *words[2:])


def _model(target: Target) -> tuple[tuple[str, ...], tuple[str, str]]:
    """How vLLM is told of the model, and what of the host is mounted for it."""
    model = target.model
    if model.commit and model.path.parent.name == "snapshots":
        return (model.repo, "--revision", model.commit), (str(model.folder), f"{HUB}/{model.folder.name}")
    return (MODEL,), (str(model.path), MODEL)


def _adapters(target: Target) -> Iterator[tuple[Adapter, tuple[str, str], Path]]:
    """Each with what of the host is mounted for it, and where it then lies: the files of a commit are links."""
    for number, adapter in enumerate(target.adapters, 1):
        model, inside = adapter.model, Path(f"{ADAPTERS}/{number}")
        if model.commit:
            yield adapter, (str(model.folder), str(inside)), inside / "snapshots" / model.commit
        else:
            yield adapter, (str(model.path), str(inside)), inside


def _files(settings: Settings, host: Host) -> Iterator[tuple[str, str]]:
    """What vLLM's other flags name lies inside where it lies on the host."""
    for flag in vllm_flags.parse(settings.vllm_args)[1]:
        path = Path(flag.value)
        if flag.base in PATHS and path.is_absolute() and len(path.parts) > 2 and host.exists(path):
            yield flag.value, flag.value


def _nodes(placed: tuple[Placed, ...], vendor: Vendor | None) -> tuple[str, ...]:
    if vendor is None or vendor.names_devices:
        return ()
    own = tuple(sorted({gpu.node for gpu in placed}))
    return (*vendor.nodes_beside, *(own if own and all(own) else vendor.nodes))
