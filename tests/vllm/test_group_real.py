"""One model on two hosts, a real vLLM on each: it serves after one command, and comes back when one is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.kit.boot.hosts import hosts
from tests.kit.boot.machine import STORE, Machine
from tests.kit.boot.network import Network
from tests.kit.life import SERVICE, cli, processes, serves, until
from tests.kit.memory import LITTLE, share

HEAD_ENGINE = f"{SERVICE}@1"  # behind the gateway, which is the head's API
# Both are on the processors of one host: each by itself would bind its threads to the same first ones.
UNBOUND = "[Service]\nEnvironment=VLLM_CPU_OMP_THREADS_BIND=nobind\n"
OPEN = "[Service]\nIPAddressDeny=\nIPAddressAllow=\n"
SLOW = "[Service]\nRestartSec=20\n"  # time to look at those who are left
START = 400  # seconds; a loaded machine of two cores needs a quarter of them
# What a program gets that has all that an engine has, of the head and its ports: each of the three by its own words.
STRANGER = """
import concurrent.futures, datetime, json, socket, sys, time, urllib.request
import zmq
from torch.distributed import DistNetworkError, TCPStore

head, key, *ports = sys.argv[1:]
pool, context = concurrent.futures.ThreadPoolExecutor(64), zmq.Context()

def connected(port):
    try:
        return socket.create_connection((head, port), 2)
    except OSError:
        return None

def ask(prompt):
    body = json.dumps({"model": "builtin:tiny", "prompt": prompt, "max_tokens": 2}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
    request = urllib.request.Request(f"http://{head}:8000/v1/completions", body, headers)
    return urllib.request.urlopen(request, timeout=60)

def store():
    try:
        found = TCPStore(head, 29501, is_master=False, timeout=datetime.timedelta(seconds=3), wait_for_workers=False)
    except DistNetworkError:
        return None
    found.set("stranger", "was here")
    return found

def calls():
    engines = [port for port in ports if port not in ("29500", "29501")]
    subscribers = [context.socket(zmq.SUB) for _ in engines]
    for port, subscriber in zip(engines, subscribers):
        subscriber.linger = 0
        subscriber.subscribe("")
        subscriber.connect(f"tcp://{head}:{port}")
    time.sleep(1)
    ask("what a third host is not to read")
    heard = b"".join(b"".join(each.recv_multipart()) for each in subscribers for _ in range(9) if each.poll(200))
    return heard.count(b"execute_model")

def taken_by_gloo(told):
    # An address as the kernel has it, family, port, host; who connects says which pair he means, and is waited for.
    at = told.index(socket.inet_aton(head))
    pair = connected(int.from_bytes(told[at - 2 : at], "big"))
    pair.sendall(bytes(8))
    pair.settimeout(1)
    try:
        return pair.recv(1) != b""
    except TimeoutError:
        return True

found = store()
print(json.dumps({
    "open": [port for port, got in zip(map(int, ports), pool.map(connected, map(int, ports))) if got],
    "store": found and found.get("stranger").decode(),
    "calls": calls(),
    "gloo": found and taken_by_gloo(found.get("default_pg/0//cpu//0/0")),
    "gateway": ask("Hi").status,
}))
"""


class Group(NamedTuple):
    network: Network
    head: Machine
    follower: Machine
    engine: str
    key: str

    @property
    def ready(self) -> list[bool]:
        return [cli(machine, "status", "--json").json["ready"] for machine in (self.head, self.follower)]

    def until_all_serve(self) -> None:
        for machine in (self.head, self.follower):
            until("all serve", lambda: self.ready == [True, True], machine, START)

    def drop_in(self, name: str, text: str) -> None:
        for machine in (self.head, self.follower):
            for unit in (SERVICE, f"{SERVICE}@"):
                machine.write(f"/etc/systemd/system/{unit}.service.d/{name}.conf", text)
            machine.run("systemctl", "daemon-reload")

    @property
    def ports(self) -> set[int]:
        """Of the head's engine, that listen to more than itself."""
        rows = [row for row in self.head.run("ss", "-Hltnp").stdout.splitlines() if "haproxy" not in row]
        places = (row.split()[3].rpartition(":") for row in rows if "sshd" not in row)
        ports = {int(port) for host, _, port in places if not host.startswith(("127.", "[::1"))}
        assert {29500, 29501} <= ports, rows
        assert len(ports) > 4, "the random ones as well"
        return ports

    def stranger(self) -> dict[str, Any]:
        """What a third host in their network gets."""
        python = STORE / "engines" / self.engine / "bin/python"
        words = (python, "-c", STRANGER, self.network.address(1), self.key, *map(str, sorted(self.ports)))
        done = self.network.stranger(3, *words, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def group(cpu_engine: str) -> Iterator[Group]:
    options = (
        "--model", "builtin:tiny", "--engine", "cpu", "--offline", "--gpu-memory-utilization", share(LITTLE),
        "--host", "0.0.0.0", "--context", "512",
    )  # fmt: skip
    with hosts(2, store=True) as (network, (head, follower)):
        group = Group(network, head, follower, cpu_engine, "")
        group.drop_in("unbound", UNBOUND)
        done = cli(head, "deploy", "--hosts", "gpu1,gpu2", "--mode", "span", *options, timeout=2 * START)
        yield group._replace(key=done.key)


def test_one_command_serves_one_model(group: Group) -> None:
    serves(group.head, group.key)
    assert group.ready == [True, True]
    for rank, (machine, unit) in enumerate(((group.head, HEAD_ENGINE), (group.follower, SERVICE))):
        found = cli(machine, "status", "--json").json["group"]
        assert (found["names"], found["rank"], found["complete"]) == (["gpu1", "gpu2"], rank, True)
        assert any("Worker_PP" in line for line in processes(machine, unit).values())
    assert cli(group.follower, "doctor", "--json").json["findings"] == []
    assert ":8000" not in group.follower.run("ss", "-Hltn").stdout, "the API is on the head alone"
    keys = [machine.at(f"/var/lib/vllm-install/{SERVICE}/group-key") for machine in (group.head, group.follower)]
    assert keys[0].read_text() == keys[1].read_text()
    assert [key.stat().st_mode & 0o777 for key in keys] == [0o600, 0o600]


def test_a_stranger_gets_nothing_and_without_the_filter_all_and_one_host_changes_both(group: Group) -> None:
    assert group.stranger() == {"open": [], "store": None, "calls": 0, "gloo": None, "gateway": 200}
    group.drop_in("open", OPEN)
    cli(group.follower, "set", "TENSOR_PARALLEL_SIZE=2", "--", "--pipeline-parallel-size", "1", timeout=2 * START)
    serves(group.head, group.key)
    for machine, unit in ((group.head, HEAD_ENGINE), (group.follower, SERVICE)):
        assert any("Worker_TP" in line for line in processes(machine, unit).values())
    got = group.stranger()
    assert set(got.pop("open")) == group.ports
    assert got.pop("calls") > 0
    assert got == {"store": "was here", "gloo": True, "gateway": 200}


def test_a_head_that_is_killed_is_named_by_the_other_host_and_comes_back(group: Group) -> None:
    group.drop_in("slow", SLOW)
    group.head.run("systemctl", "kill", "--signal=KILL", HEAD_ENGINE)
    said = f"the group is broken: {group.network.address(1)} is lost"
    until("it is noticed", lambda: said in group.follower.journal("--unit", SERVICE), group.follower)
    found = cli(group.follower, "doctor", "--json", code=8).json["findings"]
    broken = [finding for finding in found if finding["id"] == "group-broken"]
    assert any(f"{group.network.address(1)} is lost" in finding["evidence"] for finding in broken), found
    assert group.ready == [False, False]
    group.until_all_serve()
    serves(group.head, group.key)
    assert group.follower.run("systemctl", "show", SERVICE, "--property=NRestarts", "--value").stdout == "0\n"
