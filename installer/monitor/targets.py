"""What Prometheus is to scrape, as files that it reads anew by itself: the engines that serve just now.

One that starts, holds callers or has ended is left out: a question would wait among the callers there, and a key must
not go to somebody else who listens on its port meanwhile. That it is down the figures of the host say.

The engines of other hosts are asked of the gateway of this one, which knows those of the others; their node-exporters
are read at their own addresses, without a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from installer.base.errors import InstallError
from installer.base.layout import MONITOR
from installer.diagnosis.scene import Scene
from installer.monitor import peers
from installer.monitor.moment import Moment
from installer.units.api import FIGURES_OF, local_address

TARGETS = MONITOR / "targets"
NODES = TARGETS / "hosts.yml"  # JSON is YAML; no service's file ends like this
NODE_EXPORTER = 9100


def bring_up_to_date(moment: Moment) -> None:
    """A service that is gone loses its file; one that nothing is new about keeps it as it is."""
    if not moment.host.exists(TARGETS):
        return
    wanted = {TARGETS / f"{scene.service}.json": text(scene) for scene in moment.services}
    wanted[NODES] = as_text(_nodes(moment))
    for path in moment.host.children(TARGETS):
        if path.suffix == ".json" and path not in wanted:
            moment.host.remove(path)
    for path, told in wanted.items():
        if moment.host.read(path) != told:
            moment.host.write(path, told)


def text(scene: Scene) -> str:
    return as_text([*_engines(scene), *_engines_of_others(scene)])


def as_text(groups: Iterable[dict[str, object]]) -> str:
    return json.dumps([*groups], indent=1) + "\n"


def _engines(scene: Scene) -> Iterator[dict[str, object]]:
    for engine in scene.replicas or (scene,):
        if engine.serves and _is_ours(engine):
            yield {"targets": [_address(engine)], "labels": _labels(engine, peers.called(scene.host))}


def _engines_of_others(scene: Scene) -> Iterator[dict[str, object]]:
    """As many as this host has. Whether one serves its own gateway knows, and keeps nobody waiting."""
    if not (scene.gateway and _is_ours(scene)):
        return
    scheme = "https" if scene.settings.has_tls else "http"
    for peer in peers.watched(scene.host, scene.service):
        for engine in scene.replicas:
            path = FIGURES_OF.format(address=peer.address, number=engine.number)
            labels = {**_labels(engine, peer.name), "__metrics_path__": path, "__scheme__": scheme}
            yield {"targets": [_address(scene)], "labels": labels}


def _nodes(moment: Moment) -> Iterator[dict[str, object]]:
    """Each host once, whatever it serves."""
    found = {peer.name: peer for scene in moment.services for peer in peers.watched(moment.host, scene.service)}
    for name, peer in found.items():
        labels = {"host": name, "instance": f"{name}:{NODE_EXPORTER}"}
        yield {"targets": [f"{peer.address}:{NODE_EXPORTER}"], "labels": labels}


def _labels(engine: Scene, host: str) -> dict[str, str]:
    """The same from whichever host it is read; another host may have such a service too."""
    instance = f"{host}:{engine.settings.port}"
    return {"service": engine.service, "member": str(engine.number), "host": host, "instance": instance}


def _is_ours(unit: Scene) -> bool:
    """Whether what listens there is the unit itself."""
    try:
        return not unit.custody.objection(local_address(unit.settings.host), unit.settings.port)
    except (InstallError, OSError):
        return False


def _address(engine: Scene) -> str:
    host = local_address(engine.settings.host)
    return f"[{host}]:{engine.settings.port}" if ":" in host else f"{host}:{engine.settings.port}"
