"""Whose socket it is that a key would go to, told from the kernel's tables."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.units.api import Api, NoAnswer
from installer.units.custody import Custody
from installer.units.processes import listener, listening, of_unit

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
PORT = 8000


def row(address: str, inode: int, uid: int = 1000, state: str = "0A", port: int = PORT) -> str:
    packed = ipaddress.ip_address(address).packed
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    local = "".join(f"{struct.unpack('=I', word)[0]:08X}" for word in words)
    return f"   0: {local}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid} 0 {inode} 1\n"


@pytest.mark.parametrize(
    ("address", "listeners", "found"),
    [
        ("127.0.0.1", {"127.0.0.1": 1}, {1}),
        ("127.0.0.1", {"0.0.0.0": 1}, {1}),
        ("127.0.0.1", {"0.0.0.0": 1, "::1": 2}, {1}),
        ("127.0.0.1", {"0.0.0.0": 1, "::": 2}, {1}),  # `::` for IPv6 alone, as the kernel allows no other beside it
        ("127.0.0.1", {"::": 2}, {2}),
        ("127.0.0.1", {"::ffff:127.0.0.1": 3}, {3}),
        ("127.0.0.1", {"127.0.0.2": 1, "10.0.0.1": 2, "::1": 3}, set()),
        ("127.0.0.1", {"127.0.0.1": 1, "0.0.0.0": 2}, {1, 2}),
        ("::1", {"::1": 1}, {1}),
        ("::1", {"::": 1, "0.0.0.0": 2}, {1}),
        ("::1", {"0.0.0.0": 2}, set()),
        ("10.0.0.1", {"10.0.0.1": 1, "127.0.0.1": 2}, {1}),
    ],
)
def test_who_takes_connections_to_an_address(
    host: Host, address: str, listeners: dict[str, int], found: set[int]
) -> None:
    tables = {"tcp": HEADER, "tcp6": HEADER}
    for each, inode in listeners.items():
        tables["tcp6" if ":" in each else "tcp"] += row(each, inode)
    for table in tables:
        tables[table] += row(
            "::1" if table == "tcp6" else "127.0.0.1", 99, state="01"
        )  # a connection listens to nobody
        tables[table] += row("::" if table == "tcp6" else "0.0.0.0", 98, port=PORT + 1)
        host.write(Path(f"/proc/net/{table}"), tables[table])
    assert set(map(int, listening(host, ipaddress.ip_address(address), PORT))) == found


@pytest.mark.parametrize("group", ["/system.slice/a.service", ""])
def test_a_unit_has_the_processes_below_its_control_group_too_and_no_others(
    host: Host, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setattr("installer.base.host.PATH", f"{host.at(Path('/usr/bin'))}:/usr/bin:/bin")
    host.write(Path("/usr/bin/systemctl"), f"#!/bin/sh\necho '{group}'\n", 0o755)
    places = ("/system.slice/a.service", "/system.slice/a.service/payload", "/system.slice/a.service2", "/", "/other")
    for pid, place in enumerate(places, 1):
        host.write(Path(f"/proc/{pid}/cgroup"), f"0::{place}\n")
    assert list(of_unit(host, "a.service")) == ([1, 2] if group else [])


def opened(host: Host, pid: int, inode: int) -> None:
    folder = host.at(Path(f"/proc/{pid}/fd"))
    folder.mkdir(parents=True)
    (folder / "3").symlink_to(f"socket:[{inode}]")


@pytest.mark.parametrize(
    ("uid", "holders", "found"),
    [
        (990, (1,), (1, "a.service")),
        (990, (1, 50), (50, "")),
        (0, (1,), (1, "")),
        (1000, (1,), (1, "")),
    ],
)
def test_a_socket_that_systemd_keeps_is_the_service_s(
    host: Host, uid: int, holders: tuple[int, ...], found: tuple[int, str]
) -> None:
    host.write(Path("/etc/passwd"), "root:x:0:0::/:/bin/sh\nvllm-a:x:990:990::/:/bin/false\nana:x:1000:1000::/:\n")
    host.write(Path("/proc/net/tcp"), HEADER + row("127.0.0.1", 7, uid))
    for pid in holders:
        opened(host, pid, 7)
    seen = listener(host, "127.0.0.1", PORT)
    assert seen is not None
    assert (seen.pid, seen.unit) == found


def test_a_socket_of_our_own_user_is_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert Custody(Host(), "").objection("127.0.0.1", port) == ""
        assert Custody(Host(), "").objection("localhost", port) == ""
    assert "nothing listens" in Custody(Host(), "").objection("127.0.0.1", port)
    assert Custody(Host(), "").stranger("127.0.0.1", port) is None


def test_a_unit_s_socket_is_told_from_a_stranger_s_and_no_key_is_sent_to_him() -> None:
    """As root by the unit's processes, as others by its user; this test is in no such unit and no such user."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        custody = Custody(Host(), "no-such.service", "no-such-user")
        assert f"port {port} is held by pid {os.getpid()} (" in custody.objection("127.0.0.1", port)
        with pytest.raises(NoAnswer, match="no key was sent to"):
            Api("127.0.0.1", port, "sk-secret", 10, custody).ask("GET", "/v1/models")
        assert server.accept()[0].recv(1000) == b""


def test_a_listener_that_came_while_the_connection_was_opened_is_no_proof_of_whose_it_is() -> None:
    """A stranger may take the connection and go, as soon as the service wants the port."""
    custody = Custody(Host(), "")
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        before = custody.sockets("127.0.0.1", port)
        assert custody.objection("127.0.0.1", port, before) == ""
    with socket.create_server(("127.0.0.1", port)):
        assert "another one listens" in custody.objection("127.0.0.1", port, before)


def test_no_key_is_sent_where_another_one_listens_once_the_connection_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"1": os.geteuid()}, {"2": os.geteuid()}])
    monkeypatch.setattr(Custody, "sockets", lambda *_: next(looks))
    with socket.create_server(("127.0.0.1", 0)) as server:
        asking = Api("127.0.0.1", server.getsockname()[1], "sk-secret", 10, Custody(Host(), ""))
        with pytest.raises(NoAnswer, match="another one listens"):
            asking.ask("GET", "/v1/models")
        assert server.accept()[0].recv(1000) == b""


# Listens as another user until its input ends.
OTHER = """
import os, socket
os.setuid(65534)
mine = socket.create_server(("127.0.0.1", 0))
print(mine.getsockname()[1], flush=True)
input()
"""


@pytest.mark.root
def test_a_socket_of_another_user_is_a_stranger_s() -> None:
    with subprocess.Popen([sys.executable, "-c", OTHER], stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert f"held by pid {process.pid}" in Custody(Host(), "").objection("127.0.0.1", port)
        process.communicate("\n")


def open_in(host: Host, pid: int, inode: int) -> None:
    host.make_dir(Path(f"/proc/{pid}/fd"))
    host.at(Path(f"/proc/{pid}/fd/3")).symlink_to(f"socket:[{inode}]")
    host.write(Path(f"/proc/{pid}/cmdline"), f"program-{pid}\0")


USERS = "root:x:0:0::/:/bin/sh\nvllm-qwen3vl:x:990:990::/:/bin/false\nana:x:1000:1000::/:/bin/sh\n"


@pytest.mark.parametrize(("uid", "unit"), [(990, "qwen3vl.service"), (1000, ""), (0, ""), (7, "")])
def test_a_socket_that_systemd_keeps_is_the_service_s_whose_user_made_it(host: Host, uid: int, unit: str) -> None:
    """Between two of its processes nobody else holds it; systemd has those that it listens on for others as well."""
    host.write(Path("/etc/passwd"), USERS)
    host.write(Path("/proc/net/tcp"), HEADER + row("0.0.0.0", 7, uid))
    open_in(host, 1, 7)
    found = listener(host, "127.0.0.1", PORT)
    assert found
    assert (found.pid, found.unit) == (1, unit)
    open_in(host, 30, 7)
    found = listener(host, "127.0.0.1", PORT)
    assert found
    assert (found.pid, found.unit) == (30, ""), "who uses it is asked before who keeps it"


@pytest.mark.parametrize(("uid", "other", "is_strange"), [(990, False, False), (990, True, True), (1000, False, True)])
def test_a_socket_that_systemd_keeps_for_a_unit_is_no_stranger_s(
    host: Host, monkeypatch: pytest.MonkeyPatch, uid: int, other: bool, is_strange: bool
) -> None:
    host.write(Path("/etc/passwd"), USERS)
    host.write(Path("/proc/net/tcp"), HEADER + row("0.0.0.0", 7, uid))
    open_in(host, 1, 7)
    if other:
        open_in(host, 30, 7)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    custody = Custody(host, "no-such.service", "vllm-qwen3vl")
    assert bool(custody.objection("127.0.0.1", PORT)) == is_strange


@pytest.mark.parametrize(
    ("says", "uid", "is_strange"),
    [("61200", 61200, False), ("61200", 61201, True), ("[not set]", 61200, True), ("0", 0, True), ("1000", 1000, True)],
)
def test_a_gateway_s_socket_is_that_of_the_user_that_systemd_made_up(
    host: Host, monkeypatch: pytest.MonkeyPatch, says: str, uid: int, is_strange: bool
) -> None:
    """It stands in no /etc/passwd; any other user that a unit may have is none that we gave it."""
    host.write(Path("/etc/passwd"), USERS)
    host.write(Path("/proc/net/tcp"), HEADER + row("0.0.0.0", 7, uid))
    host.write(Path("/usr/bin/systemctl"), f"#!/bin/sh\necho '{says}'\n", 0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    custody = Custody(host, "qwen3vl.service", "vllm-qwen3vl")
    assert bool(custody.objection("127.0.0.1", PORT)) == is_strange
    host.write(Path("/proc/net/tcp"), HEADER + row("0.0.0.0", 7, 990))
    assert not custody.objection("127.0.0.1", PORT), "one engine becomes two, and the socket that it made stays"
