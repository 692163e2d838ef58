"""The names of hosts that somebody types, and the record of those that serve as one."""

from __future__ import annotations

import json

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.spec.group import VERSION, Ended, Group, Joint, Peer, load_group, save_group, to_data
from installer.spec.values import host_names

LAYOUT = Layout("qwen3vl")
GROUP = Group("one", (Peer("gpu1", "a" * 32), Peer("10.0.0.7", "b" * 32, out=True)), epoch=3)


@pytest.mark.parametrize(("name", "address"), [("-oProxyCommand=id", ""), ("gpu1;id", ""), ("gpu1", "10.0.0.1 x")])
def test_what_another_host_wrote_down_as_a_name_or_an_address_is_one(name: str, address: str) -> None:
    with pytest.raises(ValueError, match=r"expected|name"):
        Peer(name, address=address)


def test_who_is_taken_out_does_not_serve() -> None:
    assert [peer.name for peer in GROUP.serving] == ["gpu1"]


def test_hosts_are_named_with_commas_between() -> None:
    assert host_names("gpu1,gpu-2.lab.example,10.0.0.7") == ("gpu1", "gpu-2.lab.example", "10.0.0.7")


@pytest.mark.parametrize(
    "text",
    [
        "-oProxyCommand=id", "gpu1,-l", "gpu 1", "gpu1;id", "gpu1\n", "$(id)", "`id`", "%h", "root@gpu1", "gpu1:22", "",
        ",", "gpu1,", "gpu1,,gpu2", "*", "ssh://gpu1", "gpu1/", "'gpu1'", "\u0261pu1", "gpu1,gpu1", "a" * 254, ".gpu1",
        "gpu..1", "localhost", "LOCALHOST", "localhost.localdomain", "127.0.0.1", "127.1", "0.0.0.0", "0", "::1",
        "ip6-localhost",
    ],
)  # fmt: skip
def test_what_ssh_would_take_for_more_than_a_host_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|twice|every host|line breaks"):
        host_names(text)


def test_a_record_is_read_as_it_was_written(host: Host) -> None:
    assert load_group(host, LAYOUT) is None
    for group in (GROUP, Group("one", GROUP.peers, change=Joint("c", "set PORT=1", first=True)), GROUP):
        save_group(host, LAYOUT, group)
        assert load_group(host, LAYOUT) == group


def test_a_field_of_a_later_tool_is_passed_over_and_a_later_version_is_not(host: Host) -> None:
    data = {**to_data(GROUP), "colour": "red"}
    host.write(LAYOUT.group_file, json.dumps(data))
    assert load_group(host, LAYOUT) == GROUP
    host.write(LAYOUT.group_file, json.dumps({**data, "version": VERSION + 1}))
    with pytest.raises(Refused, match="newer version") as caught:
        load_group(host, LAYOUT)
    assert caught.value.hint.startswith("to go on with this host alone")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "id": 7, "peers": []}', "\0"])
def test_a_damaged_record_is_refused_and_not_taken_for_none(text: str, host: Host) -> None:
    host.write(LAYOUT.group_file, text)
    with pytest.raises(Refused, match=r"group\.json cannot be read"):
        load_group(host, LAYOUT)


def test_the_end_of_a_change_is_a_later_epoch() -> None:
    group = Group("one", GROUP.peers, epoch=3, change=Joint("c", "set PORT=1"))
    assert group.ending(kept=False) == Group("one", GROUP.peers, epoch=4, ended=Ended("c", "set PORT=1", kept=False))
    assert [peer.name for peer in group.serving] == ["gpu1"]
