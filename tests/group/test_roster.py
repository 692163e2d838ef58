"""A host that is let go: where hosts answer for one another nobody asks it any more, nor it the others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.report import Report
from installer.group import carry, roster
from installer.group.member import Member, Ran
from installer.group.reach import Team
from installer.spec.group import Group, Peer, of_data
from tests.group.test_facts import HEALTHY
from tests.group.world import Told

PEERS = tuple(Peer(f"gpu{number}", address=f"10.0.0.{number}") for number in (1, 2, 3))


class Hosts:
    """Three of them, with a gateway each; what is asked of whom, and which record each has in the end."""

    def __init__(self, *away: str, gateway: bool = True) -> None:
        self.asked: list[tuple[str, str]] = []
        self.records: dict[str, Any] = {peer.name: Group("mine", PEERS, epoch=3) for peer in PEERS}
        self.away, self.gateway = away, gateway
        self.is_bare = False  # whether the host that is let go has no service of ours

    @contextmanager
    def changing(self, peers: Any, *_: Any) -> Iterator[Team]:
        lost = {name: Refused(f"{name}: it cannot be reached") for name in self.away}
        yield Team([Asked(peer.name, self) for peer in peers if peer.name not in self.away], lost)


class Asked:
    def __init__(self, name: str, hosts: Hosts) -> None:
        self.name, self.hosts = name, hosts

    def ask(self, do: str, **told: Any) -> Any:
        given = json.loads(json.dumps(told))
        if do == "look":
            group = self.hosts.records[self.name]
            look = replace(HEALTHY, machine=self.name, gateway=self.hosts.gateway, active="active", group=group)
            return json.loads(json.dumps(asdict(look)))
        if do in ("run", "switch") and "--dry-run" not in given["words"]:
            self.hosts.asked.append((self.name, given["words"][-1]))
        if do in ("claim", "end"):
            self.hosts.records[self.name] = of_data(given["group"]) if given["group"] else None
        if do == "leave":
            return self.hosts.is_bare
        if do == "watch":
            return {"key": "", "together": False}
        if do == "read_by":
            return None
        if do == "linked":
            self.hosts.asked.append((self.name, ",".join(given["addresses"])))
        return {"code": 0, "out": "{}", "message": "", "hint": ""}

    def stop(self) -> None: ...


def remove(hosts: Hosts, monkeypatch: pytest.MonkeyPatch, name: str = "gpu3") -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(roster, "changing", hosts.changing)
    roster.remove(Group("mine", PEERS, epoch=3), name, "qwen3vl", Host(), Told(said))
    return said


def test_the_others_go_on_without_it_and_it_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts()
    remove(hosts, monkeypatch)
    left = "GATEWAY_HOSTS=10.0.0.1,10.0.0.2"
    assert hosts.asked == [
        ("gpu1", left), ("gpu2", left), ("gpu1", "10.0.0.2"), ("gpu2", "10.0.0.1"), ("gpu3", "GATEWAY_HOSTS="),
    ]  # fmt: skip
    assert hosts.records["gpu3"] is None
    assert hosts.records["gpu1"] == hosts.records["gpu2"]
    assert [peer.name for peer in hosts.records["gpu1"].peers] == ["gpu1", "gpu2"]
    assert hosts.records["gpu1"].change is None


def test_of_two_the_one_that_is_left_answers_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts()
    hosts.records = {name: Group("mine", PEERS[:2], epoch=3) for name in ("gpu1", "gpu2")}
    monkeypatch.setattr("tests.group.test_roster.PEERS", PEERS[:2])
    remove(hosts, monkeypatch, "gpu2")
    assert hosts.asked == [("gpu1", "GATEWAY_HOSTS="), ("gpu1", ""), ("gpu2", "GATEWAY_HOSTS=")]


def test_one_that_is_lost_is_let_go_and_one_that_stays_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts("gpu3")
    assert remove(hosts, monkeypatch) == [
        *(f"{name}: hosts remove gpu3" for name in ("gpu1", "gpu2")), "gpu3: it cannot be reached",
    ]  # fmt: skip
    assert [name for name, _ in hosts.asked] == ["gpu1", "gpu2", "gpu1", "gpu2"]
    hosts = Hosts("gpu2")
    with pytest.raises(Refused, match="gpu2: it cannot be reached"):
        remove(hosts, monkeypatch)
    assert hosts.asked == []


def test_one_that_was_let_go_while_it_was_lost_hears_of_it_and_changes_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = Hosts("gpu3")
    remove(hosts, monkeypatch)
    hosts.away, hosts.asked = (), []
    stale = Group("mine", tuple(replace(peer, machine=peer.name) for peer in PEERS), epoch=3)
    host = Host(tmp_path)
    host.write(Path("/etc/machine-id"), "gpu3\n")
    with pytest.raises(Refused, match="gpu3 was let go by the other hosts while it could not be reached"):
        roster.drain(stale, "gpu1", "qwen3vl", host, Told([]))
    assert hosts.asked == []
    assert hosts.records["gpu3"] is None
    assert [peer.name for peer in hosts.records["gpu1"].peers] == ["gpu1", "gpu2"]
    host.write(Path("/etc/machine-id"), "gpu2\n")
    roster.drain(replace(stale, peers=stale.peers[:2]), "gpu1", "qwen3vl", host, Told([]))


def test_what_stays_on_a_host_that_is_let_go_is_said_with_the_command_that_removes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(gateway=False)
    (said,) = remove(hosts, monkeypatch)
    assert said == f"this tool stays on gpu3 with what serves there; once that is uninstalled: {carry.BY_HAND}"
    hosts = Hosts(gateway=False)
    hosts.is_bare = True
    assert remove(hosts, monkeypatch) == []


def test_that_command_takes_away_what_was_carried_and_nothing_else(tmp_path: Path) -> None:
    """As the step does where no service is left."""
    for by_hand in (False, True):
        host = Host(tmp_path / str(by_hand))
        for path in (f"{carry.CARRIED}-0123/bin/vllm-install", f"{carry.TOP}/runtime/x", "/usr/local/bin/other"):
            host.write(Path(path), "")
        host.at(carry.CARRIED).symlink_to("carried-0123")
        host.at(carry.COMMAND).symlink_to(carry.CARRIED / "bin/vllm-install")
        member = Member("q", host, Report(), lambda *_: Ran(0, ""))
        host.write(Path("/var/lib/vllm-install/q/state.json"), "{}")
        assert member.leave() is False
        assert host.at(carry.COMMAND).is_symlink()
        host.remove(Path("/var/lib/vllm-install/q/state.json"))
        if by_hand:
            command = carry.BY_HAND.removeprefix("sudo ")
            for path in (carry.CARRIED, carry.COMMAND):
                command = command.replace(str(path), str(host.at(path)))
            subprocess.run(command, shell=True, check=True)
        else:
            assert member.leave() is True
        left = {path.name for path in host.at(Path("/")).rglob("*") if not path.is_dir()}
        assert left == {"x", "other"}


def test_where_each_is_at_its_own_address_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(gateway=False)
    remove(hosts, monkeypatch)
    assert hosts.asked == []
    assert hosts.records["gpu3"] is None
