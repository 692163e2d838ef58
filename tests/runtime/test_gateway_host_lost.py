"""A host that loses its power says nothing: its cable is cut, and what is sent there is lost without a word."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.runtime.vllm_haproxy import SOCKET, ask
from installer.spec.settings import Settings
from installer.units import haproxy
from installer.units.authority import link_key
from tests.kit.boot.network import Network
from tests.kit.gateway import HAPROXY, LAYOUT, PATIENCE, Gateway
from tests.kit.replica import Replica
from tests.runtime.test_gateway import eventually

pytestmark = [pytest.mark.root, pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")]
CLIENTS = 16


@dataclass
class Hosts:
    """This test is on the first, whose gateway it asks."""

    network: Network
    one: Gateway
    replicas: list[Replica]

    def is_up(self) -> bool:
        return haproxy.state(self.one.host, LAYOUT).others[self.network.address(2)].is_up

    def sent_elsewhere(self) -> int:
        """Requests that were meant for the other host, and that it did not get."""
        answer = ask(str(self.one.run_dir / SOCKET), "show stat").removeprefix("# ")
        rows = csv.DictReader(answer.splitlines())
        (row,) = (each for each in rows if each["pxname"] == "members" and each["svname"] == self.network.address(2))
        return int(row["wredis"])

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """The other host has no power, until it is back."""
        self.network.cut(2)
        yield
        self.network.mend(2)
        eventually(self.is_up)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as held:
        network = held.enter_context(Network(2))
        addresses = (network.address(1), network.address(2))
        settings = Settings(service="q", gateway_hosts=addresses)
        key, gateways, replicas = link_key("q", Host()), [], []
        for number, other in ((1, addresses[1]), (2, addresses[0])):
            with network.inside(number):
                replicas.append(held.enter_context(Replica(f"r{number}")))
                home = Path(held.enter_context(tempfile.TemporaryDirectory()))
                gateways.append(Gateway(home, settings, [replicas[-1].port], (other,)))
                held.callback(gateways[-1].close)
                (gateways[-1].credentials / "peers.pem").write_text(key)
                gateways[-1].start()
        held.enter_context(network.inside(1))
        found = Hosts(network, gateways[0], replicas)
        eventually(found.is_up)
        yield found


@pytest.mark.parametrize("size", [10, 300 << 10])
def test_what_never_reached_an_engine_is_answered_by_another_host(hosts: Hosts, size: int) -> None:
    """Of clients that keep their connections, too, and however large it is."""
    body = json.dumps({"prompt": "x" * size})
    before, after = threading.Barrier(CLIENTS + 1, timeout=PATIENCE), threading.Barrier(CLIENTS + 1, timeout=PATIENCE)

    def converse() -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", hosts.one.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            for _ in range(3):
                status_of(connection, body)
            before.wait()
            after.wait()
            return [status_of(connection, body) for _ in range(3)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(converse) for _ in range(CLIENTS)]
        before.wait()
        asked, elsewhere = [len(replica.asked) for replica in hosts.replicas], hosts.sent_elsewhere()
        hosts.replicas[0].delay = 0.2  # the other one is asked meanwhile
        with hosts.cut():
            after.wait()
            statuses = Counter(status for client in clients for status in client.result())
    hosts.replicas[0].delay = 0.0
    assert statuses == {200: 3 * CLIENTS}
    assert [len(replica.asked) for replica in hosts.replicas] == [asked[0] + 3 * CLIENTS, asked[1]], "each once"
    assert hosts.sent_elsewhere() > elsewhere


def status_of(connection: http.client.HTTPConnection, body: str) -> int:
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


@pytest.mark.parametrize("size", [10, 300 << 10])
@pytest.mark.parametrize("earlier", [0, 1])
def test_what_was_being_answered_there_is_asked_again_unless_a_word_had_come(
    hosts: Hosts, earlier: int, size: int
) -> None:
    """On a new connection, and on one by which something was asked before."""
    here, there = hosts.replicas
    body = json.dumps({"prompt": "x" * size})
    here.gap, there.gap, there.delay = 3600, 3600, 0
    here.asked.clear()
    with contextlib.ExitStack() as held:
        heard = {}
        for name in (b"first", b"second"):  # one for each host: whichever has fewer is asked
            stream = http.client.HTTPConnection("127.0.0.1", hosts.one.port, timeout=PATIENCE)
            held.callback(stream.close)
            stream.request("POST", "/v1/completions", b'{"stream": true, "prompt": "%s"}' % name)
            heard[name] = stream.getresponse()
            assert heard[name].readline() == b'data: {"choices": []}\n'
        (lost,) = (name for name in heard if name in there.asked[-1])
        clients = [http.client.HTTPConnection("127.0.0.1", hosts.one.port, timeout=PATIENCE) for _ in range(4)]
        for client in clients * earlier:
            status_of(client, body)
        there.delay = 3600
        pool = held.enter_context(ThreadPoolExecutor(len(clients)))
        asked = [pool.submit(status_of, client, body) for client in clients]
        eventually(lambda: there.busy > 1)
        with hosts.cut():
            assert [future.result(PATIENCE) for future in asked] == [200] * 4
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                heard[lost].read()
        assert not any(lost in each for each in here.asked)
