"""What keeps hosts from being a group: all of it is said at once, with the command that helps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Exit, InstallError, Refused
from installer.base.host import Host
from installer.base.report import Report
from installer.group import carry, facts, ssh
from installer.group.change import everywhere, run
from installer.group.job import Job
from installer.group.member import LEADS_ASTRAY, Look
from installer.group.reach import Team, raise_all, refused, understood
from installer.group.roster import example_for
from installer.spec.group import Group, Peer
from installer.spec.values import REPLICAS, SPAN
from tests.group.world import Told

HEALTHY = Look("a" * 32, "x86_64", "the-same", time.time())
OTHERS = Group("another", (Peer("gpu1"), Peer("gpu9")))


class Answering:
    """A host that answers this, whatever it is asked."""

    def __init__(self, name: str, answers: Mapping[str, Any] | None = None) -> None:
        self.name, self.answers = name, answers or {}

    def ask(self, do: str, **given: Any) -> Any:
        return self.answers.get(do, {})

    def stop(self) -> None: ...


def check(seen: Mapping[str, Look], team: Team | None = None, said: list[str] | None = None) -> None:
    seen = {name: replace(look, clock=look.clock + time.time() - HEALTHY.clock) for name, look in seen.items()}
    facts.check(team or Team(map(Answering, seen)), seen, "qwen3vl", "mine", Told([] if said is None else said))


def test_two_healthy_hosts_are_a_group() -> None:
    check({"gpu1": HEALTHY, "gpu2": replace(HEALTHY, machine="b" * 32)})


def test_all_that_stands_against_it_is_said_at_once() -> None:
    seen = {
        "gpu1": HEALTHY,
        "alias": HEALTHY,
        "gpu3": replace(HEALTHY, machine="c" * 32, group=OTHERS),
        "gpu4": replace(HEALTHY, machine="d" * 32, clock=HEALTHY.clock + 3600),
        "gpu5": replace(HEALTHY, machine=""),
        "gpu6": replace(HEALTHY, machine="e" * 32, damage="state.json cannot be read"),
    }
    team = Team(map(Answering, seen), {"gpu7": ssh.Unreachable("gpu7: it cannot be reached", "ssh gpu7 true")})
    with pytest.raises(InstallError) as caught:
        check(seen, team)
    lines = caught.value.message.splitlines()
    assert [line.split(" (help")[0] for line in lines] == [
        "gpu7: it cannot be reached",
        "alias and gpu1 are the same host",
        "gpu3: qwen3vl is of another group there: gpu1, gpu9",
        "gpu4: its clock is +3600 s off, and keys expire by it",
        "gpu5: it has no machine-id",
        "gpu6: state.json cannot be read",
    ]
    assert "(help: ssh gpu3 sudo vllm-install uninstall qwen3vl --this-host-only)" in lines[2]
    assert caught.value.exit_code == Exit.REFUSED


def test_a_name_that_leads_elsewhere_on_another_host_is_refused() -> None:
    seen = {"gpu1": HEALTHY, "gpu2": replace(HEALTHY, machine="b" * 32)}
    team = Team([Answering("gpu1"), Answering("gpu2", {"reach": {"gpu1": LEADS_ASTRAY}})])
    with pytest.raises(Refused, match="on gpu2 the name gpu1 leads to another host") as caught:
        check(seen, team)
    assert "127.0.1.1" in caught.value.hint


def test_a_host_that_cannot_lead_a_change_is_no_reason_to_refuse() -> None:
    seen = {"gpu1": HEALTHY, "gpu2": replace(HEALTHY, machine="b" * 32)}
    said: list[str] = []
    check(seen, Team([Answering("gpu1"), Answering("gpu2", {"reach": {"gpu1": "ssh is refused\x1b[2J\nthere"}})]), said)
    assert said == [
        "from gpu2 no change of all hosts can be made, for it does not reach gpu1: ssh is refused\\x1b[2J there"
    ]


def test_hosts_that_would_serve_different_things_are_refused() -> None:
    same = {"gpu1": replace(HEALTHY, model="m@1", engine="e"), "gpu2": replace(HEALTHY, model="m@1", engine="e")}
    facts.check_same(same)
    with pytest.raises(Refused, match="model is gpu1: m@1, gpu2: m@2"):
        facts.check_same({**same, "gpu2": replace(HEALTHY, model="m@2", engine="e")})
    with pytest.raises(Refused, match="engine is"):
        facts.check_same({**same, "gpu2": replace(HEALTHY, model="m@1", engine="f")})


SAYS = {"machine": "a", "arch": "b", "tool": "c", "clock": 1.0}


@pytest.mark.parametrize(
    "answer",
    [
        None, [], "x", {"group": 7}, {"machine": "a"}, {"group": {"id": 1}}, {**SAYS, "machine": ["a"]},
        {**SAYS, "clock": "soon"}, {**SAYS, "keys": "default=x"},
        {**SAYS, "group": {"id": "mine", "peers": [{"name": "-oProxyCommand=id"}]}},
        {**SAYS, "group": {"id": "mine", "peers": [{"name": "gpu1;id"}]}},
    ],
)  # fmt: skip
def test_what_a_host_says_of_itself_is_checked(answer: object) -> None:
    team = Team([Answering("gpu1", {"look": answer})])
    assert facts.looks(team) == {}
    assert "gpu1: it says what nobody understands" in str(team.lost["gpu1"])


def test_a_look_of_a_newer_tool_is_understood() -> None:
    team = Team([Answering("gpu1", {"look": {**SAYS, "colour": "red", "keys": ["a"]}})])
    assert facts.looks(team) == {"gpu1": Look("a", "b", "c", 1.0, keys=("a",))}


@pytest.mark.parametrize("answer", [None, [], {"gpu1": 1}, {"gpu1": ["x"]}])
def test_what_a_host_says_of_the_others_is_checked(answer: object) -> None:
    seen = {"gpu1": HEALTHY, "gpu2": replace(HEALTHY, machine="b" * 32)}
    with pytest.raises(InstallError, match="gpu2: it says what nobody understands"):
        check(seen, Team([Answering("gpu1"), Answering("gpu2", {"reach": answer})]))


@pytest.mark.parametrize("answer", [None, 7, {"code": "0"}, {"code": 0, "out": []}, {"out": "x"}])
def test_how_a_verb_ended_on_a_host_is_checked(answer: object) -> None:
    with pytest.raises(InstallError, match="gpu2: it says what nobody understands"):
        everywhere(Team([Answering("gpu2", {"run": answer})]), ["gpu2"], Job("set", ("set",)))


def test_a_host_that_joins_gets_the_settings_of_this_one_before_anybody_elses(host: Host) -> None:
    host.write(Path("/etc/machine-id"), "b\n")
    seen = {name: replace(HEALTHY, machine=machine) for name, machine in (("gpu1", "a"), ("gpu2", "b"), ("gpu3", "c"))}
    group = Group("mine", tuple(map(Peer, seen)))
    assert [example_for(name, group, seen, host) for name in seen] == ["gpu2", "gpu1", "gpu2"]


def test_what_a_host_refuses_stands_on_lines_that_bear_its_name() -> None:
    text = "one\x1b[31m\n  error: two\r\nthree"
    error = refused("gpu2", {"message": text, "hint": "journalctl\n-u x", "code": 6})
    assert error.message == "gpu2: one\\x1b[31m\ngpu2: error: two\ngpu2: three"
    assert error.hint == "on gpu2: journalctl -u x"
    assert error.exit_code == Exit.NOT_PROVED
    for code in (250, "6", None, float("inf"), []):
        assert refused("gpu2", {"message": "x", "hint": "", "code": code}).exit_code == Exit.BUG


def test_errors_of_several_hosts_keep_an_exit_code_that_they_share() -> None:
    errors = [InstallError("gpu1: x", "do", Exit.ENGINE), InstallError("gpu2: y", "", Exit.ENGINE)]
    with pytest.raises(InstallError, match=r"gpu1: x \(help: do\)\ngpu2: y") as caught:
        raise_all(errors)
    assert caught.value.exit_code == Exit.ENGINE
    raise_all([])


def test_another_architecture_is_said_before_anything_is_sent() -> None:
    carry.check_arch("gpu1", ssh.os.uname().machine)
    with pytest.raises(Refused, match=r"gpu1: its processor is another \(riscv64\)"):
        carry.check_arch("gpu1", "riscv64")


@pytest.mark.parametrize(
    ("said", "meaning", "hint"),
    [
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "another one",
            "-R gpu1",
        ),
        ("Host key verification failed.", "not known here", "ssh gpu1 once"),
        ("No ED25519 host key is known for gpu1 and you have requested strict checking.", "not known", "ssh gpu1 once"),
        ("root@gpu1: Permission denied (publickey).", "ssh is refused there", "ssh-copy-id gpu1"),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "nobody knows", "getent hosts gpu1"),
        ("sudo: a password is required", "sudo wants a password", "NOPASSWD"),
        ("ssh: connect to host gpu1 port 22: Connection refused", "cannot be reached", "ssh gpu1 true"),
        ("ssh: connect to host gpu1 port 22: Connection timed out", "cannot be reached", "ssh gpu1 true"),
        ("Timeout, server gpu1 not responding.", "cannot be reached", "ssh gpu1 true"),
        ("sh: 1: sudo: not found", "no sudo", "as root"),
        ("what\x1b[2J ever", r"what\x1b[2J ever", "ssh gpu1 true"),
        ("", "the connection ended", "ssh gpu1 true"),
    ],
)
def test_what_ssh_says_is_explained_with_the_command_that_helps(said: str, meaning: str, hint: str) -> None:
    error = ssh.explain("gpu1", said, "the connection ended")
    assert meaning in error.message
    assert error.message.startswith("gpu1: ")
    assert hint in error.hint


def test_nothing_that_is_typed_becomes_an_option_of_ssh() -> None:
    words = ssh.command("gpu1", "true")
    assert words[-3:] == ["--", "gpu1", "true"]
    assert "StrictHostKeyChecking=yes" in words
    assert "BatchMode=yes" in words


STAGED = {"engine": "e", "model": "m@1", "words": ["serve", "--tensor-parallel-size", "2"]}


@pytest.mark.parametrize(
    ("other", "mode", "said"),
    [
        ({}, SPAN, ""),
        ({"model": "m@sha256:2"}, REPLICAS, "model is gpu1: m@1, gpu2: m@sha256:2"),
        ({"engine": "f"}, REPLICAS, "engine is gpu1: e, gpu2: f"),
        ({"words": ["serve", "--tensor-parallel-size", "4"]}, REPLICAS, ""),
        ({"words": ["serve", "--tensor-parallel-size", "4"]}, SPAN, "command is gpu1: 2, gpu2: 4"),
        ({"words": "x"}, SPAN, "cannot be compared"),
    ],
)
def test_hosts_that_would_serve_different_things_are_not_switched(
    other: dict[str, object], mode: str, said: str
) -> None:
    ran = {"code": 0, "message": "", "hint": ""}
    asked: list[str] = []

    class Staging(Answering):
        def ask(self, do: str, **given: Any) -> Any:
            asked.append(do)
            if do == "look":
                return json.loads(json.dumps(asdict(HEALTHY)))
            if "needs" in given.get("words", ()):
                return {**ran, "out": "[]"}
            staged = STAGED | other if self.name == "gpu2" else STAGED
            return {**ran, "out": json.dumps(staged) if "--stage" in given.get("words", ()) else ""}

    team = Team(Staging(name) for name in ("gpu1", "gpu2"))
    job = Job("set", ("set",), stages=True)
    with pytest.raises(InstallError, match=re.escape(said)) if said else nullcontext():
        run(team, Group("mine", (Peer("gpu1"), Peer("gpu2")), mode), job, Host(), Report())
    assert ("switch" in asked) == (said == "")


CARDS = {"gpu1": ["192.0.2.7/24", "172.17.0.1/16", "10.0.0.1/24"], "gpu2": ["172.17.0.1/16", "10.0.0.2/24"]}


@pytest.mark.parametrize(
    ("cards", "within", "meeting"),
    [
        (CARDS, None, ("10.0.0.1", "10.0.0.2")),  # not the bridge that each has for itself
        (CARDS, "10.0.0.0/8", ("10.0.0.1", "10.0.0.2")),
        (CARDS, "192.0.2.0/24", None),
        (CARDS, "172.17.0.0/16", None),
        ({"gpu1": ["10.1.0.1/24"], "gpu2": ["10.2.0.1/24"]}, None, None),
        ({"gpu1": ["10.1.0.1/24"], "gpu2": ["10.2.0.1/24"]}, "10.0.0.0/8", ("10.1.0.1", "10.2.0.1")),
        ({name: [*own, f"10.9.0.{name[-1]}/24"] for name, own in CARDS.items()}, None, None),
        ({"gpu1": ["10.0.0.1/24", "10.0.0.3/24"], "gpu2": ["10.0.0.2/24"]}, None, None),
        ({"gpu1": ["10.0.0.1/24", "10.0.0.3/24"], "gpu2": ["192.0.2.1/24"]}, None, None),
        ({"gpu1": [], "gpu2": ["10.0.0.2/24"]}, None, None),
    ],
)
def test_hosts_of_one_model_meet_in_the_one_network_that_all_of_them_are_in(
    cards: Mapping[str, list[str]], within: str | None, meeting: tuple[str, ...] | None
) -> None:
    team = Team(Answering(name, {"addresses": own}) for name, own in cards.items())
    if meeting is None:
        with pytest.raises(Refused, match="no single network") as caught:
            facts.meet(team, list(cards), within)
        assert "--peer-network" in caught.value.hint
        assert all(address in caught.value.message for own in cards.values() for address in own)
    else:
        assert facts.meet(team, list(cards), within) == meeting


@pytest.mark.parametrize("told", [None, "10.0.0.1/24", ["10.0.0.1/24", "\x1b[2J"], [{}]])
def test_what_a_host_says_of_its_addresses_is_checked(told: object) -> None:
    with pytest.raises(Refused, match="gpu1: it says what nobody understands"):
        facts.meet(Team([Answering("gpu1", {"addresses": told})]), ["gpu1"], None)


def test_a_verb_that_fails_on_one_host_is_undone_on_all() -> None:
    group = Group("mine", (Peer("gpu1"), Peer("gpu2")))
    ran = {"code": 0, "out": "{}", "message": "", "hint": ""}
    failed = Answering("gpu2", {"run": ran, "switch": {**ran, "code": 4}})
    with pytest.raises(InstallError, match="gpu2: it ended with exit status 4; all hosts are as they were"):
        run(
            Team([Answering("gpu1", {"run": ran, "switch": ran}), failed]),
            group,
            Job("set", ("set",)),
            Host(),
            Report(),
        )


# Hosts that answer for one another


def having(**cards: list[str]) -> Team:
    return Team(Answering(name, {"addresses": told}) for name, told in cards.items())


def test_hosts_meet_in_the_one_network_that_all_of_them_are_in() -> None:
    team = having(gpu1=["192.168.7.3/24", "10.0.0.1/24", "172.17.0.1/16"], gpu2=["10.0.0.2/24", "172.17.0.1/16"])
    assert facts.meet(team, ["gpu1", "gpu2"], None) == ("10.0.0.1", "10.0.0.2")


def test_where_two_would_do_one_is_to_be_named() -> None:
    team = having(gpu1=["10.0.0.1/24", "10.9.0.1/24"], gpu2=["10.0.0.2/24", "10.9.0.2/24"])
    with pytest.raises(Refused, match=r"gpu1: 10\.0\.0\.1/24, 10\.9\.0\.1/24; gpu2: ") as caught:
        facts.meet(team, ["gpu1", "gpu2"], None)
    assert "--peer-network" in caught.value.hint
    assert facts.meet(team, ["gpu1", "gpu2"], "10.9.0.0/24") == ("10.9.0.1", "10.9.0.2")
    with pytest.raises(Refused):
        facts.meet(team, ["gpu1", "gpu2"], "10.8.0.0/24")


@pytest.mark.parametrize("told", [{}, ["10.0.0.1/99"], ["x"], "10.0.0.1/24", [["10.0.0.1/24"]]])
def test_a_host_that_says_no_addresses_has_none(told: Any) -> None:
    with pytest.raises(Refused, match="gpu1"):
        facts.meet(Team([Answering("gpu1", {"addresses": told})]), ["gpu1"], None)


def test_a_gateway_that_does_not_reach_another_ends_the_change() -> None:
    asked: dict[str, Any] = {}

    class Gateway(Answering):
        def ask(self, do: str, **given: Any) -> Any:
            asked[self.name] = given["addresses"]
            if self.name == "gpu2":
                raise Refused("its gateway does not reach 10.0.0.1 (L4CON)")

    out = Peer("gpu3", out=True, address="10.0.0.3")
    peers = (Peer("gpu1", address="10.0.0.1"), Peer("gpu2", address="10.0.0.2"), out)
    seen = {"gpu1": replace(HEALTHY, gateway=True), "gpu2": replace(HEALTHY, gateway=True)}
    with pytest.raises(Refused, match="does not reach"):
        facts.check_linked(Team(map(Gateway, seen)), Group("mine", peers), seen)
    assert asked == {"gpu1": ["10.0.0.2"], "gpu2": ["10.0.0.1"]}, "one that was taken out is not missed"
    asked.clear()
    facts.check_linked(Team(map(Gateway, seen)), Group("mine", peers), dict.fromkeys(seen, HEALTHY))
    assert asked == {}


def test_a_look_comes_back_as_it_was_sent() -> None:
    look = replace(HEALTHY, keys=("default=sha256:1",), gateway=True)
    assert understood("gpu1", Look, json.loads(json.dumps(asdict(look)))) == look
