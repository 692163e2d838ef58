"""The other hosts of a service: what this one is called among them, which of them are heard, and which are watched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.diagnosis.scene import Scene
from installer.group.ssh import machine_id
from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row
from installer.spec.group import Peer, load_group
from installer.spec.records import services
from installer.units import monitoring
from installer.units.keyring import unit_keys

HEARD = Family("vllm_install_peer_heard", "1 while the gateway of this host hears that of another host of a service.")


def called(host: Host) -> str:
    """The name by which the others of its first group reach this host; of one by itself its own."""
    ours = machine_id(host)
    for service in services(host):
        for peer in _peers(host, service):
            if ours and peer.machine == ours:
                return peer.name
    return host.word(Path("/proc/sys/kernel/hostname")) or "localhost"


def others(host: Host, service: str) -> tuple[Peer, ...]:
    """Those that answer for this one; none where it is taken out itself."""
    found, ours = _peers(host, service), machine_id(host)
    if any(peer.out for peer in found if peer.machine == ours):
        return ()
    return tuple(peer for peer in found if peer.address and not peer.out and peer.machine != ours)


def watched(host: Host, service: str) -> tuple[Peer, ...]:
    """Those of them that are watched together with this one: each of the two knows the other's key."""
    try:
        known = monitoring.others(unit_keys(host, Layout(service)))
    except InstallError:
        return ()
    return tuple(peer for peer in others(host, service) if monitoring.name_of(peer.name) in known)


def _peers(host: Host, service: str) -> tuple[Peer, ...]:
    """What is wrong with a record `doctor` says."""
    try:
        group = load_group(host, Layout(service))
    except InstallError:
        return ()
    return group.peers if group else ()


def rows(moment: Moment) -> Iterator[Row]:
    """Of hosts that answer for one another."""
    (scene,) = moment.services
    for peer in others(scene.host, scene.service) if scene.gateway else ():
        yield from _heard(scene, peer)


def _heard(scene: Scene, peer: Peer) -> Iterator[Row]:
    if scene.gateway and (seen := scene.gateway.others.get(peer.address)):
        yield Row(HEARD.name, {"service": scene.service, "peer": peer.name}, seen.is_heard)


SOURCE = Source("peers", (HEARD,), rows, each=True)
