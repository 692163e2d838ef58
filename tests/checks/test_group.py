"""What a group needs of a host, judged before anything is changed: one place in it, a key that is root's, settings."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.checks.group import addresses, check_group, look
from installer.checks.placement import gpus_of_one
from installer.families.vllm.serve import serve_arguments
from installer.spec.facts import Peers
from installer.spec.settings import Settings
from installer.spec.target import Place
from installer.units.gateway import needs_gateway
from tests.checks.test_preflight import HEALTHY
from tests.kit.targets import target

HOSTS = ("10.0.0.1", "10.0.0.2")
SETTINGS = Settings(group_hosts=HOSTS, group_key_file="/key")
SOUND = Peers((1,), "enp5s0")


def said(settings: Settings = SETTINGS, found: Peers = SOUND) -> list[str]:
    return [str(problem) for problem in check_group(settings, replace(HEALTHY, peers=found))]


def test_a_sound_one_is_no_problem_and_no_group_is_none() -> None:
    assert said() == []
    assert list(check_group(Settings(), HEALTHY)) == []


@pytest.mark.parametrize(
    ("changed", "found", "words"),
    [
        ({}, Peers((), ""), "no single place in the group: of 10.0.0.1, 10.0.0.2 it has none"),
        ({}, Peers((0, 1), "lo"), "no single place in the group: of 10.0.0.1, 10.0.0.2 it has 10.0.0.1, 10.0.0.2"),
        ({}, replace(SOUND, unfit="/key: others than root may read it"), "no key of the group: /key: others"),
        ({"engine_family": "sglang", "tensor_parallel_size": 2}, SOUND, "ENGINE_FAMILY=sglang"),
        ({"runtime": "podman"}, SOUND, "RUNTIME=podman: the engines of a group are no containers"),
        ({"replicas": 2}, SOUND, "REPLICAS=2: a group is one engine"),
        ({"hold": 0}, SOUND, "HOLD=0: the head waits for the others"),
        ({"tensor_parallel_size": 3, "vllm_args": ("--pipeline-parallel-size", "1")}, SOUND,
         "3 GPUs in all cannot be divided among 2 hosts"),
    ],
)  # fmt: skip
def test_each_fault_is_told(changed: dict[str, object], found: Peers, words: str) -> None:
    (told,) = said(replace(SETTINGS, **changed), found)  # type: ignore[arg-type]
    assert words in told


def with_cards(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Peers:
    cards = [
        {
            "ifname": f"card{n}",
            "addr_info": [{"local": each, "prefixlen": 24, "scope": "host" if each[:3] == "127" else "global"}],
        }
        for n, each in enumerate(addresses)
    ]
    fake = tmp_path / "bin/ip"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf '%s' '{json.dumps(cards)}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    return look(host, SETTINGS)


def test_its_place_and_interface_are_found_by_its_addresses(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = with_cards(host, tmp_path, monkeypatch, "127.0.0.1", "192.0.2.1", "10.0.0.2")
    assert (found.ranks, found.interface) == ((1,), "card2")


def test_the_key_is_roots_alone_and_long(host: Host) -> None:
    key = host.at(Path("/key"))
    assert "No such file" in look(host, SETTINGS).unfit
    key.write_text("k" * 64)
    key.chmod(0o640)
    assert look(host, SETTINGS).unfit == "/key: others than root may read it"
    key.chmod(0o600)
    assert look(host, SETTINGS).unfit == ""
    key.write_text("short")
    assert look(host, SETTINGS).unfit == "/key: it is shorter than 32 characters"
    own = Layout(SETTINGS.service).group_key
    assert look(host, replace(SETTINGS, group_key_file=None)).unfit == f"{own}: No such file or directory"
    host.at(Path("/")).chmod(0o777)
    assert look(host, SETTINGS).unfit == "/key: others than root can change /"


def test_the_layers_are_divided_among_the_hosts_and_the_gpus_counted_on_one() -> None:
    eight = replace(SETTINGS, tensor_parallel_size=8)
    assert gpus_of_one(eight) == 8
    assert gpus_of_one(replace(eight, tensor_parallel_size=16, vllm_args=("--pipeline-parallel-size", "1"))) == 8
    words = serve_arguments(replace(target(eight), place=Place(1, "e0")))
    assert words[words.index("--pipeline-parallel-size") + 1] == "2"
    assert words[words.index("--node-rank") + 1] == "1"


def test_a_group_that_is_asked_from_elsewhere_is_asked_by_way_of_a_gateway() -> None:
    assert needs_gateway(replace(SETTINGS, host="0.0.0.0"))
    assert not needs_gateway(replace(SETTINGS, host="127.0.0.1"))


def test_others_reach_it_by_the_addresses_that_are_no_loopback(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cards(host, tmp_path, monkeypatch, "127.0.0.1", "10.0.0.2")
    assert addresses(host) == ["10.0.0.2/24"]
