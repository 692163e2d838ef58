"""Two gateways for real, as on two hosts: they answer for one another, and nobody else gets in between."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.spec.settings import Settings
from installer.units import haproxy
from installer.units.api import FIGURES_OF, ONLY_HERE
from installer.units.authority import link_key
from tests.kit.boot.surroundings import held_port
from tests.kit.gateway import HAPROXY, LAYOUT, PATIENCE, Gateway
from tests.kit.replica import POISON, Replica, replicas_on
from tests.runtime.test_gateway import are_up, eventually, in_background, one_after_another, standing_still

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")

ONE, OTHER = "127.0.0.1", "127.0.0.2"  # where each is reached; whoever connects here does so from 127.0.0.1


class Pair:
    def __init__(self, held: contextlib.ExitStack, key: str, other_key: str, count: int, hold: int) -> None:
        place, self.port = held_port("0.0.0.0")  # for both
        held.enter_context(place)
        settings = Settings(service="q", gateway_hosts=(ONE, OTHER), group_port=self.port, hold=hold)
        self.replicas: list[Replica] = []
        made = []
        for at, other, secret in ((ONE, OTHER, key), (OTHER, ONE, other_key)):
            replicas = held.enter_context(replicas_on(count))
            self.replicas += replicas
            ports = [replica.port for replica in replicas]
            home = Path(held.enter_context(tempfile.TemporaryDirectory()))
            one = Gateway(home, settings, ports, (other,))
            held.callback(one.close)
            self.configure(one, at, ports, lets_in=ONE)
            (one.credentials / "peers.pem").write_text(secret)
            made.append(one)
        self.one, self.other = made

    def configure(self, made: Gateway, at: str, ports: list[int], *, lets_in: str) -> None:
        where = {f'bind ":{self.port}"': f'bind "{at}:{self.port}"'}
        made.configure(ports, where | {f"src {made.others[0]}": f"src {lets_in}"})

    def reach(self) -> bool:
        return [up(self.one, OTHER), up(self.other, ONE)] == [True, True]


def up(made: Gateway, other: str) -> bool:
    return haproxy.state(made.host, LAYOUT).others[other].is_up


@contextlib.contextmanager
def pair(key: str, other_key: str = "", count: int = 1, hold: int = 2) -> Iterator[Pair]:
    with contextlib.ExitStack() as held:
        made = Pair(held, key, other_key or key, count, hold)
        made.one.start()
        made.other.start()
        yield made


@pytest.fixture(scope="module")
def key() -> str:
    return link_key("q", Host())


def test_each_asks_the_replicas_of_both_and_says_who_asked(key: str) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        for gateway in (hosts.one, hosts.other):
            told = {"X-Forwarded-For": "1.2.3.4", "Authorization": "Bearer sk-1"}
            with standing_still(hosts.replicas):
                asked = one_after_another(4, partial(gateway.ask, headers=told), hosts.replicas)
                assert [replica.busy for replica in hosts.replicas] == [2, 2]
            assert {future.result(PATIENCE).status for future in asked} == {200}  # type: ignore[attr-defined]
        for replica in hosts.replicas:
            for head in replica.asked:
                assert b"x-forwarded-for: 127.0.0.1\r\n" in head.lower()
                assert b"authorization: bearer sk-1\r\n" in head.lower()


def test_one_without_replicas_has_the_other_answer_and_a_proof_asks_nobody_but_its_own(key: str) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        hosts.replicas[0].die()
        assert Counter(hosts.one.ask().status for _ in range(6)) == {200: 6}
        eventually(lambda: not up(hosts.other, ONE), "the other knows that nobody answers there")
        assert hosts.one.ask(headers={ONLY_HERE: "1"}).status == 503
        before = len(hosts.replicas[1].asked)
        hosts.replicas[0].start()
        eventually(lambda: are_up(hosts.one, 1))
        assert hosts.one.ask(headers={ONLY_HERE: "1"}).status == 200
        assert len(hosts.replicas[1].asked) == before


def test_nobody_is_sent_round_in_a_circle(key: str) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        for replica in hosts.replicas:
            replica.die()
        assert hosts.one.ask().status == 503
        assert hosts.other.ask().status == 503


def test_the_last_host_without_a_replica_costs_no_request_before_that_is_noticed(key: str) -> None:
    with pair(key, hold=int(PATIENCE)) as hosts:
        hosts.replicas[0].is_healthy = False
        eventually(lambda: up(hosts.one, OTHER) and are_up(hosts.one) and are_up(hosts.other, 1))
        haproxy.drain(hosts.other.host, LAYOUT, 1, 0)
        asked = in_background(8, hosts.one.ask)
        eventually(lambda: haproxy.state(hosts.one.host, LAYOUT).waiting + sum(each.done() for each in asked) == 8)
        haproxy.ready(hosts.other.host, LAYOUT, 1)
        assert [future.result(PATIENCE).status for future in asked] == [200] * 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [500, 502, 503])  # 502 says a gateway whose engine ended
def test_what_fails_on_another_host_is_answered_by_the_next(key: str, status: int) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        hosts.replicas[1].status = status
        assert Counter(hosts.one.ask().status for _ in range(4)) == {200: 4}
        assert hosts.replicas[1].asked


def test_what_an_engine_here_took_along_when_it_died_is_answered_by_another_host(key: str) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        eventually(lambda: are_up(hosts.one, 1))
        hosts.replicas[0].delay = 3600
        asked = in_background(8, hosts.one.ask)
        eventually(lambda: hosts.replicas[0].busy)
        hosts.replicas[0].die()
        assert [future.result(60).status for future in asked] == [200] * 8  # type: ignore[attr-defined]


def test_what_kills_an_engine_is_tried_once_more_and_not_again(key: str) -> None:
    with pair(key, count=2) as hosts:
        eventually(hosts.reach)
        assert hosts.one.ask(POISON).status in (502, 503)
        assert sum(POISON in asked for replica in hosts.replicas for asked in replica.asked) <= 2


def test_who_wants_an_answer_of_one_host_kills_one_engine_there(key: str) -> None:
    """So does another gateway, which asks the next host itself: were it tried again here as well, four would die."""
    with pair(key, count=2) as hosts:
        eventually(hosts.reach)
        eventually(lambda: are_up(hosts.one, 1, 2))
        assert hosts.one.ask(POISON, headers={ONLY_HERE: "1"}).status in (502, 503)
        assert sum(POISON in asked for replica in hosts.replicas for asked in replica.asked) == 1


def test_figures_are_those_of_the_one_engine_that_was_asked_for(key: str) -> None:
    with pair(key, count=2) as hosts:
        eventually(hosts.reach)
        eventually(lambda: are_up(hosts.one, 1, 2) and are_up(hosts.other, 1, 2))
        for number in (2, 1, 2):
            assert figures(hosts, number) == (200, f"r{number}")
        assert [len(replica.asked) for replica in hosts.replicas] == [0, 0, 1, 2]
        for head in hosts.replicas[3].asked:
            assert head.startswith(b"GET /metrics HTTP/1.1\r\n")
            assert b"authorization: bearer sk-1\r\n" in head.lower(), "whose guard judges it"


def test_no_other_engine_answers_in_the_place_of_one_that_is_down(key: str) -> None:
    with pair(key, count=2) as hosts:
        eventually(hosts.reach)
        eventually(lambda: are_up(hosts.other, 1, 2))
        hosts.replicas[2].die()
        eventually(lambda: are_up(hosts.other, 2))
        assert [figures(hosts, number) for number in (1, 2)] == [(503, ""), (200, "r2")]
        assert len(hosts.replicas[3].asked) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/hosts/127.0.0.2/engines/3/metrics", "/hosts/127.0.0.3/engines/1/metrics",
        "/hosts/127.0.0.2/engines/1/metrics/x", "/hosts/127.0.0.2/engines/../metrics",
    ],
)  # fmt: skip
def test_what_is_no_engine_comes_to_the_guards_as_it_was_asked(key: str, path: str) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        hosts.one.ask(b"", method="GET", path=path)
        (head,) = [head for replica in hosts.replicas for head in replica.asked]
        assert head.startswith(f"GET {path} ".encode())


def figures(hosts: Pair, number: int) -> tuple[int, str]:
    """The status, and who answered."""
    path = FIGURES_OF.format(address=OTHER, number=number)
    answer = hosts.one.ask(b"", method="GET", path=path, headers={"Authorization": "Bearer sk-1"})
    return answer.status, answer.headers.get("x-replica", "")


def test_a_stranger_is_not_heard_nor_believed(key: str) -> None:
    stranger = link_key("q", Host())
    with pair(key, stranger) as hosts:
        eventually(lambda: not up(hosts.one, OTHER) and not up(hosts.other, ONE), "another key opens nothing")
        assert {hosts.one.ask().status for _ in range(4)} == {200}
        assert len(hosts.replicas[1].asked) == 0
        assert [spoken(ONE, hosts.port, each) for each in ("", stranger)] == [b"", b""]
        assert spoken(OTHER, hosts.port, stranger).startswith(b"HTTP/1.1 200"), "the same words with the right key"


def test_the_right_key_from_another_address_is_not_heard(key: str) -> None:
    with pair(key) as hosts:
        eventually(hosts.reach)
        hosts.configure(hosts.one, ONE, [hosts.replicas[0].port], lets_in=OTHER)
        assert hosts.one.reload().returncode == 0
        eventually(lambda: not up(hosts.other, ONE))
        assert spoken(ONE, hosts.port, key) == b""


def spoken(address: str, port: int, key: str) -> bytes:
    """What somebody hears who has this key, or none, and does not care whom he asks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(key)
        file.flush()
        if key:
            context.load_cert_chain(file.name)
    heard = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        while chunk := connection.recv(4096):
            heard += chunk
    return heard
