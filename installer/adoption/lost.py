"""What a container that runs without us has not got of a service: named one by one, so that nothing goes silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from installer.adoption.container import Container
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.runtime import vllm_flags, vllm_limits
from installer.runtime.vllm_text import one_line
from installer.spec.keys import INFERENCE, Key
from installer.spec.settings import FIELDS, Settings, named
from installer.spec.target import Target
from installer.spec.values import AUTO
from installer.units.graph import units

# Of the settings that are no flags of vLLM's: what the form says itself, and what the image and the files came of.
SAID = ("gpus", "replicas", "hold", "vllm_args", "vllm_version")
CAME_OF = (
    "models_dir", "engine", "cuda_toolkit", "python", "index_url", "find_links", "offline", "hf_endpoint",
    "download_connections", "allow_pickle", "hf_token_file", "model_sources",
)  # fmt: skip
ALWAYS = (
    mark("vLLM asks for its key on /v1 and little else; /metrics, /tokenize and others answer without one"),
    mark("roles, limits and usage of keys: whoever has the key may all, and nobody counts"),
    mark("a change is not proved, nothing goes back by itself, and an engine that hangs while /health answers goes on"),
    mark("the container may open connections to any address"),
)
OF_FORM = {
    "compose": (mark("docker shows that it is unhealthy and does not start it anew"),),
    "quadlet": (),
    "k8s": (
        mark("limits of locked memory and open files are those of the node"),
        mark("the model lies at a path of this host: each node that may run it needs it there"),
        mark("who reaches it from outside the cluster, and by TLS: an ingress of yours says that"),
    ),
}
_PATH = re.compile(r"(?:^|[=:\"'\[,])/[^/\s]")


@dataclass(frozen=True)
class Loss:
    """One thing that is lost: a text in English, and what stands in it."""

    text: str
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def english(self) -> str:
        return one_line(self.text.format(**self.values))

    @property
    def said(self) -> str:
        return tr(self.text, **self.values)


def losses(form: str, target: Target, it: Container, held: Sequence[Key], layout: Layout, host: Host) -> Iterator[Loss]:
    yield from map(Loss, ALWAYS)
    yield from map(Loss, OF_FORM[form])
    yield from _of_keys(held, layout, host)
    yield from _of_settings(target.settings)
    yield from _of_gpus(form, target, it)
    yield from _of_paths(target.settings, it)
    for directory in (*(member.drop_ins for member in units(layout, target)), layout.replicas_drop_ins):
        for path in host.children(directory):
            yield Loss(mark("what {path} says"), {"path": path})


def _of_keys(held: Sequence[Key], layout: Layout, host: Host) -> Iterator[Loss]:
    if len(held) > 1:
        yield Loss(mark("of {count} keys all but one: {names}"), _counted(key.name for key in held))
    if special := [key.name for key in held if key.role != INFERENCE or key.expiry]:
        yield Loss(mark("role or last day of the keys {names}"), _counted(special))
    if limited := list(vllm_limits.parse(host.read(layout.limits_file) or "")[0]):
        yield Loss(mark("limits of the keys {names}"), _counted(limited))


def _counted(names: Iterable[str]) -> dict[str, object]:
    found = list(names)
    return {"count": len(found), "names": ", ".join(found)}


def _of_settings(settings: Settings) -> Iterator[Loss]:
    if settings.hold:
        yield Loss(mark("HOLD={seconds}: callers are refused while the engine starts, and do not wait"),
                   {"seconds": settings.hold})  # fmt: skip
    if settings.has_tls:
        yield Loss(mark("TLS: it speaks plain HTTP, and so listens on 127.0.0.1 alone; put a proxy before it"))
    changed = [
        name for name, about in FIELDS.items()
        if (name in CAME_OF or not (about.flags or name in SAID)) and getattr(settings, name) != about.default
    ]  # fmt: skip
    if lost := [named(name) for name in changed if name not in CAME_OF]:
        yield Loss(mark("the settings {names}"), _counted(lost))
    if came_of := [named(name) for name in changed if name in CAME_OF]:
        yield Loss(mark("the settings {names}, which image and files take the place of"), _counted(came_of))


def _of_gpus(form: str, target: Target, it: Container) -> Iterator[Loss]:
    if target.toolkit:
        yield Loss(mark("what CUDA_TOOLKIT chose of vLLM's kernels: the image has a compiler of its own, or none"))
    if it.replicas > 1 and form == "k8s":
        yield Loss(mark("the gateway before {count} replicas and ROUTING: the cluster asks any of them"),
                   {"count": it.replicas})  # fmt: skip
    elif it.replicas > 1:
        yield Loss(mark("REPLICAS={count} and the gateway: it is one engine, with the GPUs of the first"),
                   {"count": it.replicas})  # fmt: skip
    if target.settings.gpus != AUTO and not it.gpus:
        yield Loss(mark("GPUS: they have no names that are the same after every start"))
    if form == "k8s" and it.gpus:
        yield Loss(mark("which GPUs: the cluster chooses {count} of its own"), {"count": it.count})
    if form == "k8s":
        yield Loss(mark("LISTEN_HOST={host}: it listens within the cluster"), {"host": target.settings.host})


def _of_paths(settings: Settings, it: Container) -> Iterator[Loss]:
    inside = {path for path, _ in it.mounts}
    for flag in vllm_flags.parse(settings.vllm_args)[1]:
        if any(_PATH.search(value) and value not in inside for value in flag.values):
            yield Loss(mark("what {flag} names: a path of this host, which is not mounted"), {"flag": flag.name})
