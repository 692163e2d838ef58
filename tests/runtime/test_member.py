"""A head and a follower for real, around the stand-in for vLLM: they start, are lost and come back together."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.runtime.vllm_group import CREDENTIAL
from installer.runtime.vllm_member import ENDED, SHOWN
from tests.kit.boot.surroundings import held_port
from tests.kit.launched import PATIENCE, USER, Service, wait_until

HOSTS = ("127.0.0.1", "127.0.0.2")
KEY = "0123456789abcdef" * 4


class Member(Service):
    def __init__(self, home: Path, rank: int, port: int) -> None:
        home.mkdir()
        super().__init__(home)
        (self.credentials / CREDENTIAL).write_text(KEY + "\n")
        self.environment |= {
            "HOLD": "120", "GROUP_HOSTS": ",".join(HOSTS), "GROUP_RANK": str(rank), "GROUP_PORT": str(port),
            "GROUP_ENGINE": "e1", "GROUP_MODEL": "tiny@1",
        }  # fmt: skip

    @property
    def supervisor(self) -> int:
        return self.named("vllm_supervisor.py")

    def stands(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.run / SHOWN).read_text())
        return found

    def freeze(self) -> None:
        for pid in self.ours():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.ours():
            os.kill(pid, signal.SIGCONT)

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def port() -> Iterator[int]:
    place, port = held_port(HOSTS[0])
    with place:
        yield port


@pytest.fixture
def head(tmp_path: Path, port: int) -> Iterator[Member]:
    member = Member(tmp_path / "head", 0, port)
    yield member
    member.end()


@pytest.fixture
def follower(tmp_path: Path, port: int) -> Iterator[Member]:
    member = Member(tmp_path / "follower", 1, port)
    yield member
    member.end()


def start(*members: Member) -> None:
    for member in members:
        member.start()
    serve(*members)


def serve(*members: Member) -> None:
    """All say so, and the head answers."""
    for member in members:
        member.hear("READY=1")
    wait_until(lambda: all(member.stands()["stage"] == "" for member in members))
    assert members[0].status("/v1/models", USER) == 200


def again(head: Member, follower: Member, epochs: int) -> None:
    """Serving, after so many beginnings: nothing is green before."""
    wait_until(lambda: head.said.count("epoch ") >= epochs and head.said.count("a request was answered") >= epochs)
    wait_until(lambda: head.stands()["stage"] == follower.stands()["stage"] == "")
    assert head.status("/v1/models", USER) == 200


def test_a_follower_waits_for_the_head_and_has_no_api(head: Member, follower: Member) -> None:
    follower.start()
    follower.hear(f"STATUS=waiting for the group: {HOSTS[0]}: it has not answered yet")
    follower.hear("EXTEND_TIMEOUT_USEC=")
    assert not follower.pids("vllm_listen.py"), "no engine waits for another one"
    head.start()
    serve(head, follower)
    assert "--headless" in Path(f"/proc/{follower.vllm()}/cmdline").read_text()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOSTS[0], follower.port), PATIENCE)
    assert KEY not in "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in (*head.ours(), *follower.ours()))
    assert KEY not in head.said + follower.said


def test_a_head_that_waits_answers_nobody_until_all_serve(head: Member, follower: Member) -> None:
    head.start()
    head.hear(f"STATUS=waiting for the group: {HOSTS[1]}")
    assert not head.pids("vllm_listen.py")
    wait_until((head.run / "holding").exists)
    follower.start()
    serve(head, follower)
    wait_until(lambda: not (head.run / "holding").exists())


def test_a_follower_that_dies_ends_the_heads_engine_and_all_start_when_it_is_back(
    head: Member, follower: Member
) -> None:
    start(head, follower)
    supervisor, engine = head.supervisor, head.vllm()
    follower.kill()
    head.hear(f"STATUS=the group is broken: {HOSTS[1]} is lost: ")
    head.hear(f"STATUS=waiting for the group: {HOSTS[1]}")
    wait_until((head.run / "holding").exists)  # nothing says that it serves
    assert not head.pids("vllm_listen.py")
    follower.restart()
    again(head, follower, 2)
    assert head.supervisor == supervisor, "it is no failed start of the head"
    assert head.vllm() != engine
    assert f"the group is broken: {HOSTS[1]} is lost: " in head.said


def test_a_head_that_dies_ends_the_followers_engine_which_waits_for_it(head: Member, follower: Member) -> None:
    start(head, follower)
    supervisor = follower.supervisor
    head.kill()
    follower.hear(f"STATUS=the group is broken: {HOSTS[0]} is lost: ")
    follower.hear("STATUS=waiting for the group: ")
    assert not follower.pids("vllm_listen.py")
    assert follower.stands()["stage"] != ""
    head.restart()
    again(head, follower, 2)
    assert follower.supervisor == supervisor, "it is no failed start of the follower"


def test_an_engine_that_ends_by_itself_is_a_failure_of_its_own_host_alone(head: Member, follower: Member) -> None:
    start(head, follower)
    supervisor = head.supervisor
    process = follower.process
    assert process
    os.kill(next(iter(follower.pids("VLLM::"))), signal.SIGKILL)
    wait_until(lambda: follower.stands()["stage"] == ENDED)  # also while it asks the others why
    assert process.wait(PATIENCE) == 1, "vLLM itself exits 0"
    assert "the engine of this host has ended by itself" in follower.said
    head.hear(f"STATUS=the group is broken: {HOSTS[1]}: its engine has ended with status 0")
    follower.restart()
    again(head, follower, 2)
    assert head.supervisor == supervisor


@pytest.mark.parametrize("who", [0, 1])
def test_an_engine_that_was_stopped_is_noticed_and_all_start_anew(head: Member, follower: Member, who: int) -> None:
    start(head, follower)
    supervisors = head.supervisor, follower.supervisor
    for pid in (head, follower)[who].pids("VLLM::"):
        os.kill(pid, signal.SIGSTOP)
    again(head, follower, 2)
    assert (head.supervisor, follower.supervisor) == supervisors
    assert "was stopped" in head.said


@pytest.mark.parametrize("who", [0, 1])
def test_a_host_that_is_frozen_is_lost_for_the_other_and_comes_back(head: Member, follower: Member, who: int) -> None:
    start(head, follower)
    frozen, other = ((head, follower), (follower, head))[who]
    frozen.freeze()
    other.hear("nothing was heard of it for 10 s")
    wait_until(lambda: not other.pids("vllm_listen.py"))
    frozen.thaw()
    again(head, follower, 2)


def test_another_model_is_refused_in_words_on_both(head: Member, follower: Member) -> None:
    follower.environment["GROUP_MODEL"] = "tiny@2"
    head.start()
    follower.start()
    why = f"{HOSTS[1]}: its model is 'tiny@2', and 'tiny@1' here"
    follower.hear(f"STATUS=waiting for the group: {HOSTS[0]}: it refuses this host: {why}")
    head.hear(f"STATUS=waiting for the group: {HOSTS[1]}: {why}")
    assert not head.pids("vllm_listen.py") + follower.pids("vllm_listen.py")


def test_a_head_that_cannot_start_fails_and_its_follower_does_not(head: Member, follower: Member) -> None:
    head.faults("die-at-start=1")
    head.start()
    follower.start()
    assert head.process
    assert head.process.wait(PATIENCE) != 0
    follower.hear(f"STATUS=the group is broken: {HOSTS[0]}: its engine has ended")
    follower.hear("STATUS=waiting for the group: ")
    assert follower.process
    assert follower.process.poll() is None


def test_a_follower_that_is_told_to_end_ends_at_once_and_the_head_waits(head: Member, follower: Member) -> None:
    start(head, follower)
    assert follower.process
    follower.substate("stop-sigterm", "1 q.service stop running")
    os.kill(follower.process.pid, signal.SIGTERM)
    assert follower.process.wait(PATIENCE) == 0
    head.hear(f"STATUS=the group is broken: {HOSTS[1]}: it was stopped")


@pytest.mark.parametrize("key", [None, "short"])
def test_without_a_key_nobody_is_a_member(head: Member, key: str | None) -> None:
    path = head.credentials / CREDENTIAL
    path.unlink()
    if key:
        path.write_text(key)
    assert head.start().wait(PATIENCE) == 78
    assert "a member of a group that cannot be one" in head.said
