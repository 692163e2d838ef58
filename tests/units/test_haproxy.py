"""The runtime socket of a gateway: what comes over it is believed as far as it can be, whoever sits there."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.runtime import vllm_haproxy
from installer.units import haproxy
from installer.units.haproxy import GatewayState, MemberState, NoGateway

LAYOUT = Layout("q")
HEAD = "# pxname,svname,qcur,scur,status,check_status,\n"


@pytest.fixture
def host() -> Iterator[Host]:
    """At a short path: a socket's has at most 107 letters."""
    with tempfile.TemporaryDirectory() as place:
        host = Host(Path(place))
        host.make_dir(LAYOUT.run_dir)
        yield host


@contextlib.contextmanager
def gateway(host: Host, answer: Callable[[str], str | None]) -> Iterator[list[str]]:
    """Somebody at the other end; None is an answer that never ends."""
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.at(LAYOUT.run_dir / vllm_haproxy.SOCKET)))
        listener.listen(8)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with connection, contextlib.suppress(OSError):
                        heard.append(connection.recv(4096).decode().strip())
                        said = answer(heard[-1])
                        while said is None:
                            connection.sendall(b"x" * 65536)
                        connection.sendall(said.encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def table(*rows: str) -> str:
    return HEAD + "".join(f"{row},\n" for row in rows) + "\n"


def test_members_and_those_who_wait(host: Host) -> None:
    rows = (
        "hold,FRONTEND,,7,OPEN,", "members,r1,0,3,UP,L7OK", "members,r12,0,0,DOWN 1/2,L4CON", "members,spare,0,9,UP,",
        "members,BACKEND,0,3,UP,", "held,r1,0,2,MAINT (via members/r1),", "other,r3,0,5,UP,",
    )  # fmt: skip
    with gateway(host, lambda _: table(*rows)):
        seen = haproxy.state(host, LAYOUT)
    assert seen == GatewayState({1: MemberState("UP", "L7OK", 5), 12: MemberState("DOWN 1/2", "L4CON", 0)}, 7)
    assert seen.members[1].is_up
    assert not seen.members[12].is_up


@pytest.mark.parametrize(("status", "since", "seconds"), [("UP", "9", None), ("DOWN", "9", 9), ("DOWN", "-1", 0)])
def test_for_how_long_no_member_is_up(host: Host, status: str, since: str, seconds: int | None) -> None:
    rows = f"# pxname,svname,status,lastchg,\nheld,BACKEND,{status},{since},\nmembers,BACKEND,DOWN,77,\n"
    with gateway(host, lambda _: rows):
        assert haproxy.state(host, LAYOUT).down_for == seconds


def test_a_member_leaves_when_nobody_is_left_in_it(host: Host) -> None:
    left = [2, 1, 0]

    def answer(command: str) -> str:
        return table(f"members,r2,0,{left.pop(0)},MAINT,") if command == "show stat" else "\n"

    with gateway(host, answer) as heard:
        assert haproxy.drain(host, LAYOUT, 2, 60) == 0
    assert heard == ["set server members/r2 state maint"] + ["show stat"] * 3


def test_who_is_still_there_when_the_time_is_over_is_counted(host: Host) -> None:
    with gateway(host, lambda command: table("members,r2,0,4,MAINT,") if command == "show stat" else "\n"):
        assert haproxy.drain(host, LAYOUT, 2, 0) == 4


def test_a_member_is_back_once_it_is_up(host: Host) -> None:
    states = ["DOWN", "UP 1/2"]

    def answer(command: str) -> str:
        return table(f"members,r1,0,0,{states.pop(0)},L7OK") if command == "show stat" else "\n"

    with gateway(host, answer) as heard:
        assert haproxy.ready(host, LAYOUT, 1)
    assert heard == ["set server members/r1 state ready", "show stat", "show stat"]


def test_one_that_does_not_come_up_is_said_to_be_down(host: Host) -> None:
    with gateway(host, lambda command: table("members,r1,0,0,DOWN,L4CON") if command == "show stat" else "\n"):
        assert not haproxy.ready(host, LAYOUT, 1, 0)


def test_what_it_refuses_is_said_without_its_terminal_codes(host: Host) -> None:
    with gateway(host, lambda _: "No such server.\x1b[2J\n"), pytest.raises(NoGateway) as failed:
        haproxy.drain(host, LAYOUT, 2, 1)
    assert failed.value.message == r"the gateway of q cannot be asked: No such server.\x1b[2J"


def test_a_member_that_it_does_not_know(host: Host) -> None:
    with gateway(host, lambda command: table() if command == "show stat" else "\n"), pytest.raises(NoGateway):
        haproxy.drain(host, LAYOUT, 2, 1)


@pytest.mark.parametrize(
    "said",
    [
        "", "\n", "\0", "{}", "x" * 200_000, HEAD * 3, '"', HEAD + '"members,r1',
        HEAD + "members,r1\n", HEAD + "members,r1,0,-3,UP,\n", HEAD + "members,r1,0,99999999999,UP,,,,,\n",
        HEAD + "members,r1,0,\u0663,UP,\n", HEAD + "members,r0,0,1,UP,\nmembers,r\u0661,0,1,UP,\n",
    ],
)  # fmt: skip
def test_nonsense_is_no_number_and_no_error(host: Host, said: str) -> None:
    with gateway(host, lambda _: said):
        seen = haproxy.state(host, LAYOUT)
    assert seen.waiting == 0
    assert all(number == 1 and member.current == 0 for number, member in seen.members.items())


def test_words_are_short_and_harmless(host: Host) -> None:
    with gateway(host, lambda _: table(f"members,r1,0,1,\x1b[31m{'U' * 900},{'L' * 900}")):
        (member,) = haproxy.state(host, LAYOUT).members.values()
    assert member.status.isprintable()
    assert (len(member.status), len(member.check)) == (20, 20)


def test_an_answer_without_an_end_is_given_up(host: Host) -> None:
    with gateway(host, lambda _: None), pytest.raises(NoGateway, match="no end"):
        haproxy.state(host, LAYOUT)


def test_silence_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "ANSWERS_WITHIN", 0.01)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.at(LAYOUT.run_dir / vllm_haproxy.SOCKET)))
        listener.listen(1)
        with pytest.raises(NoGateway, match="does not answer"):
            haproxy.state(host, LAYOUT)


def test_nobody_there(host: Host) -> None:
    with pytest.raises(NoGateway, match="No such file"):
        haproxy.state(host, LAYOUT)
    host.write(LAYOUT.run_dir / vllm_haproxy.SOCKET, "")
    with pytest.raises(NoGateway, match="is not its runtime socket"):
        haproxy.state(host, LAYOUT)


def test_a_configuration_counts_as_read_by_a_worker_that_began_after_it(host: Host) -> None:
    config = Path("/etc/q.cfg")
    host.write(config, "")
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    host.write(Path(f"/proc/{os.getpid()}/stat"), f"1 (x) {' '.join(['0'] * 19)} {began} 0")
    now = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + began / os.sysconf("SC_CLK_TCK")
    for said, moved, is_read in (
        (f"Pid: {os.getpid()}\n", -1.0, True),
        (f"Pid: {os.getpid()}\n", 1.0, False),
        ("Pid: 999999999\n", -1.0, False),
        ("nothing of the kind\n", -1.0, False),
    ):
        os.utime(host.at(config), (now + moved, now + moved))
        with gateway(host, lambda _, said=said: said):  # type: ignore[misc]
            assert haproxy.has_read(host, LAYOUT, config) == is_read
        host.remove(LAYOUT.run_dir / vllm_haproxy.SOCKET)
    assert not haproxy.has_read(host, LAYOUT, config), "nobody is there"


def test_no_link_is_followed(host: Host) -> None:
    """Code in the gateway's sandbox may lay one to any socket of the host."""
    elsewhere = host.at(Path("/run/another.sock"))
    heard = []
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(elsewhere))
        another.listen(1)
        another.settimeout(0)
        os.symlink(elsewhere, host.at(LAYOUT.run_dir / vllm_haproxy.SOCKET))
        with pytest.raises(NoGateway):
            haproxy.state(host, LAYOUT)
        with contextlib.suppress(BlockingIOError):
            heard.append(another.accept())
    assert heard == []
