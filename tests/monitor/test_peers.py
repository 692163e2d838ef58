"""The other hosts of a service, as Prometheus reads them from one: which, by which names, and asked of whom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.diagnosis.scene import Scene
from installer.monitor import collect, peers, targets
from installer.monitor.moment import Moment
from installer.spec.group import Group, Peer, save_group
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Replica
from installer.units.custody import Custody
from installer.units.haproxy import GatewayState, MemberState
from tests.flow.test_transaction import LAYOUT
from tests.kit.targets import target

PEERS = tuple(Peer(f"gpu{number}", f"id-{number}", address=f"10.0.0.{number}") for number in (1, 2, 3))
HEARD, AWAY = MemberState("UP", "L7OK", 0), MemberState("DOWN", "L4TOUT", 0)


class Seen(Scene):
    """A gateway that runs, before engines that serve."""

    unit = {"ActiveState": "active"}  # noqa: RUF012
    gateway = GatewayState({}, 0, None, {"10.0.0.2": HEARD, "10.0.0.3": AWAY})
    holding = None
    standing = None

    @property
    def serves(self) -> bool:
        return True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(Custody, "objection", lambda *_: "")
    found = Host(tmp_path)
    found.write(Path("/etc/machine-id"), "id-1\n")
    found.write(Path("/proc/sys/kernel/hostname"), "its-own\n")
    found.write(LAYOUT.state_file, "{}")
    found.make_dir(targets.TARGETS)
    return found


def in_group(host: Host, *which: Peer) -> None:
    save_group(host, LAYOUT, Group("mine", which or PEERS))


def knows(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(peers, "watched", lambda host, service: tuple(
        peer for peer in peers.others(host, service) if peer.name in names
    ))  # fmt: skip


def scene(host: Host, **settings: object) -> Seen:
    made = replace(Settings(service=LAYOUT.service, gateway_hosts=tuple(p.address for p in PEERS)), **settings)
    proved = replace(target(made), replicas=(Replica(1, 9001), Replica(2, 9002)), others=("10.0.0.2", "10.0.0.3"))
    return Seen(host, LAYOUT, State(LAYOUT.service, proved=proved), None)


def written(host: Host, moment: Moment, name: str) -> list[dict[str, dict[str, str]]]:
    targets.bring_up_to_date(moment)
    found: list[dict[str, dict[str, str]]] = json.loads(host.read(targets.TARGETS / name) or "")
    return found


def test_engines_of_watched_hosts_are_asked_of_the_gateway_and_bear_their_hosts_names(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_group(host)
    knows(monkeypatch, "gpu2")
    found = written(host, Moment(host, (scene(host),)), f"{LAYOUT.service}.json")
    shown = [(each["targets"], each["labels"]["host"], each["labels"].get("__metrics_path__")) for each in found]
    assert shown == [
        (["127.0.0.1:9001"], "gpu1", None), (["127.0.0.1:9002"], "gpu1", None),
        (["127.0.0.1:8000"], "gpu2", "/hosts/10.0.0.2/engines/1/metrics"),
        (["127.0.0.1:8000"], "gpu2", "/hosts/10.0.0.2/engines/2/metrics"),
    ]  # fmt: skip
    assert [each["labels"]["instance"] for each in found] == ["gpu1:9001", "gpu1:9002", "gpu2:9001", "gpu2:9002"]
    assert [each["labels"].get("__scheme__") for each in found[2:]] == ["http", "http"]


def test_a_gateway_with_a_certificate_is_asked_over_tls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(host)
    knows(monkeypatch, "gpu2")
    found = written(host, Moment(host, (scene(host, tls="self"),)), f"{LAYOUT.service}.json")
    assert [each["labels"].get("__scheme__") for each in found] == [None, None, "https", "https"]


def test_node_exporters_of_watched_hosts_are_read_at_their_own_addresses(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_group(host)
    knows(monkeypatch, "gpu2", "gpu3")
    found = written(host, Moment(host, (scene(host),)), "hosts.yml")
    assert [(each["targets"], each["labels"]["host"]) for each in found] == [
        (["10.0.0.2:9100"], "gpu2"), (["10.0.0.3:9100"], "gpu3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (PEERS, ["gpu2", "gpu3"]),
        ((PEERS[0], replace(PEERS[1], out=True), PEERS[2]), ["gpu3"]),
        ((replace(PEERS[0], out=True), *PEERS[1:]), []),
        ((PEERS[0], replace(PEERS[1], address=""), PEERS[2]), ["gpu3"]),
        (PEERS[:1], []),
    ],
)
def test_a_host_that_is_out_or_has_left_is_no_target(which: tuple[Peer, ...], left: list[str], host: Host) -> None:
    in_group(host, *which)
    assert [peer.name for peer in peers.others(host, LAYOUT.service)] == left


def test_only_hosts_that_were_introduced_are_read(host: Host) -> None:
    in_group(host)
    assert peers.watched(host, LAYOUT.service) == ()
    digest = "0" * 64
    host.write(LAYOUT.unit, f"[Service]\nExecStart=/x launch --api-key monitor-of-gpu3:metrics=sha256:{digest}\n")
    assert [peer.name for peer in peers.watched(host, LAYOUT.service)] == ["gpu3"]


def test_nobody_is_asked_through_a_port_that_is_not_ours(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(host)
    knows(monkeypatch, "gpu2")
    monkeypatch.setattr(Custody, "objection", lambda *_: "somebody else listens there")
    assert written(host, Moment(host, (scene(host),)), f"{LAYOUT.service}.json") == []


def test_each_figure_bears_the_name_by_which_the_others_know_the_host(host: Host) -> None:
    assert peers.called(host) == "its-own"
    in_group(host)
    assert peers.called(host) == "gpu1"
    said = collect.text(Moment(host, (scene(host),)), (peers.SOURCE,)).splitlines()
    assert [line for line in said if line.startswith("vllm_install_peer_heard")] == [
        'vllm_install_peer_heard{host="gpu1",service="qwen3vl",peer="gpu2"} 1',
        'vllm_install_peer_heard{host="gpu1",service="qwen3vl",peer="gpu3"} 0',
    ]
    assert all('{host="gpu1"' in line for line in said if not line.startswith("#"))


@pytest.mark.parametrize(
    ("status", "check", "is_heard"),
    [
        ("UP", "L7OK", True), ("DOWN", "L7STS", True), ("DOWN", "* L7STS", True), ("DOWN", "L4TOUT", False),
        ("DOWN", "L4CON", False), ("DOWN", "L6RSP", False), ("DOWN", "L7TOUT", False), ("DOWN", "", False),
    ],
)  # fmt: skip
def test_a_host_whose_engine_starts_is_heard(status: str, check: str, is_heard: bool) -> None:
    assert MemberState(status, check, 0).is_heard is is_heard
