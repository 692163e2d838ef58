"""One model on two hosts, a real vLLM on each: it serves after two deploys at once, and comes back when one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.network import Network
from tests.kit.life import SERVICE, Outcome, chat, cli, processes, until

KEY = "/etc/vllm-install.group.key"
DROP_INS = f"/etc/systemd/system/{SERVICE}.service.d"
# Both are on the processors of one host: each by itself would bind its threads to the same first ones.
UNBOUND = "[Service]\nEnvironment=VLLM_CPU_OMP_THREADS_BIND=nobind\n"
# Prints the ports of a host that a connection can be made to.
CONNECT = """
import concurrent.futures, socket, sys
def reached(port):
    try:
        socket.create_connection((sys.argv[1], int(port)), 2).close()
        return port
    except OSError:
        return ""
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(*pool.map(reached, sys.argv[2:]))
"""
START = 400  # seconds; a loaded machine of two cores needs a quarter of them


class Group(NamedTuple):
    network: Network
    head: Machine
    follower: Machine
    key: str

    @property
    def ready(self) -> list[bool]:
        return [cli(machine, "status", "--json").json["ready"] for machine in (self.head, self.follower)]

    def until_all_serve(self) -> None:
        for machine in (self.head, self.follower):
            until("all serve", lambda: self.ready == [True, True], machine, START)

    def open_to_a_stranger(self) -> set[int]:
        """The head's ports that a third host gets a connection to."""
        rows = self.head.run("ss", "-Hltn").stdout.splitlines()
        places = (row.split()[3].rpartition(":") for row in rows)
        ports = {int(port) for host, _, port in places if not host.startswith(("127.", "[::1]"))}
        assert {29500, 29501} <= ports, rows
        assert len(ports) > 4, "the random ones as well"
        tried = self.network.stranger(3, "/usr/bin/python3", "-c", CONNECT, self.network.address(1), *map(str, ports))
        return {int(port) for port in tried.stdout.split()}


@pytest.fixture(scope="module")
def group(cpu_engine: str) -> Iterator[Group]:
    with ExitStack() as up:
        network = up.enter_context(Network())
        head, follower = (up.enter_context(network.machine(number, store=True)) for number in (1, 2))
        for machine in (head, follower):
            machine.write(KEY, "0123456789abcdef" * 4 + "\n", 0o600)
            machine.write(f"{DROP_INS}/unbound.conf", UNBOUND)
        options = (
            "--model", "builtin:tiny", "--engine", "cpu", "--offline", "--gpu-memory-utilization", "0.05",
            "--host", "127.0.0.1", "--context", "512", "--group-key-file", KEY,
            "--group-hosts", f"{network.address(1)},{network.address(2)}",
        )  # fmt: skip

        def deploy(machine: Machine) -> Outcome:
            return cli(machine, "deploy", *options, timeout=2 * START)

        with ThreadPoolExecutor() as pool:
            done = list(pool.map(deploy, (head, follower)))
        yield Group(network, head, follower, done[0].key)


def test_two_deploys_at_once_serve_one_model(group: Group) -> None:
    assert chat(group.head, group.key).status == 200
    assert group.ready == [True, True]
    for rank, machine in enumerate((group.head, group.follower)):
        found = cli(machine, "status", "--json").json["group"]
        assert (found["rank"], found["complete"], found["stage"]) == (rank, True, None)
        assert cli(machine, "doctor", "--json").json["findings"] == []
        assert any("Worker" in line for line in processes(machine).values())
    assert ":8000" not in group.follower.run("ss", "-Hltn").stdout, "the API is on the head alone"
    assert cli(group.follower, "deploy", "--json").changes == []


def test_a_third_host_gets_nothing_and_without_the_filter_it_does_and_a_lost_head_comes_back(group: Group) -> None:
    assert group.open_to_a_stranger() == set()
    for machine in (group.head, group.follower):
        machine.write(f"{DROP_INS}/open.conf", "[Service]\nIPAddressDeny=\nIPAddressAllow=\n")
        machine.run("systemctl", "daemon-reload")
    group.head.run("systemctl", "kill", "--signal=KILL", SERVICE)
    said = f"the group is broken: {group.network.address(1)} is lost"
    until("it is noticed", lambda: said in group.follower.journal("--unit", SERVICE), group.follower)
    assert group.ready == [False, False]
    group.until_all_serve()
    assert chat(group.head, group.key).status == 200
    assert {29500, 29501} <= group.open_to_a_stranger(), "without the filter anybody gets in"
    assert group.follower.run("systemctl", "show", SERVICE, "--property=NRestarts", "--value").stdout == "0\n"
