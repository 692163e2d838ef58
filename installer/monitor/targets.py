"""What Prometheus is to scrape, as files that it reads anew by itself: the engines that serve just now.

One that starts, holds callers or has ended is left out: a question would wait among the callers there, and a key must
not go to somebody else who listens on its port meanwhile. That it is down the figures of the host say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import MONITOR
from installer.diagnosis.scene import Scene
from installer.monitor.moment import Moment
from installer.units.api import local_address

TARGETS = MONITOR / "targets"


def bring_up_to_date(moment: Moment) -> None:
    """A service that is gone loses its file; one that nothing is new about keeps it as it is."""
    if not moment.host.exists(TARGETS):
        return
    wanted = {TARGETS / f"{scene.service}.json": text(scene) for scene in moment.services}
    for path in moment.host.children(TARGETS):
        if path.suffix == ".json" and path not in wanted:
            moment.host.remove(path)
    for path, told in wanted.items():
        if moment.host.read(path) != told:
            moment.host.write(path, told)


def text(scene: Scene) -> str:
    return json.dumps([*_groups(scene)], indent=1) + "\n"


def _groups(scene: Scene) -> Iterator[dict[str, object]]:
    for engine in scene.replicas or (scene,):
        if _may_be_asked(engine):
            address = _address(engine)
            instance = f"{hostname(scene.host)}:{engine.settings.port}"  # another host may have such a service too
            labels = {"service": scene.service, "member": str(engine.number), "instance": instance}
            yield {"targets": [address], "labels": labels}


def _may_be_asked(engine: Scene) -> bool:
    try:
        address = local_address(engine.settings.host)
        return engine.serves and not engine.custody.objection(address, engine.settings.port)
    except (InstallError, OSError):
        return False


def _address(engine: Scene) -> str:
    host = local_address(engine.settings.host)
    return f"[{host}]:{engine.settings.port}" if ":" in host else f"{host}:{engine.settings.port}"


def hostname(host: Host) -> str:
    return host.word(Path("/proc/sys/kernel/hostname")) or "localhost"
