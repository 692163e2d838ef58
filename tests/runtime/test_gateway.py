"""The gateway for real, before stand-in replicas: HAProxy, its configuration and the process above it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from installer.runtime.vllm_haproxy import SOCKET, ask, worker
from installer.runtime.vllm_hold import queue
from installer.spec.settings import Settings
from installer.spec.target import MEMBER_HOLD
from installer.units import haproxy
from installer.units.gateway import KNOWN_BY
from tests.kit.gateway import HAPROXY, LAYOUT, PATIENCE, Gateway, before, gateway
from tests.kit.load import Plan, load
from tests.kit.replica import Replica, door_of, replicas_on

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")

Future = concurrent.futures.Future[object]
SETTINGS = Settings(service="q")
IMPATIENT = Settings(service="q", hold=1)
SIZES = (0, 13 << 10, 300 << 10)  # of prompts: repeated by one process; by the other, though it would fit; by the other


def eventually(condition: Callable[[], object], what: str = "") -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what or condition
        time.sleep(0.02)


def are_up(made: Gateway, *numbers: int) -> bool:
    members = haproxy.state(made.host, LAYOUT).members
    return {number for number, member in members.items() if member.is_up} == set(numbers)


def in_background(count: int, ask: Callable[[], object]) -> list[Future]:
    pool = concurrent.futures.ThreadPoolExecutor(count)
    asked = [pool.submit(ask) for _ in range(count)]
    pool.shutdown(wait=False)
    return asked


def one_after_another(count: int, ask: Callable[[], object], replicas: list[Replica]) -> list[Future]:
    """Each is with a replica that answers none of them yet, before the next one asks."""
    before, asked = came(replicas), list[Future]()
    for number in range(1, count + 1):
        asked += in_background(1, ask)
        eventually(lambda number=number: came(replicas) == before + number)  # type: ignore[misc]
    return asked


def came(replicas: list[Replica]) -> int:
    """How many requests: one that has its answer may count as busy for a moment more."""
    return sum(len(replica.asked) for replica in replicas)


@contextlib.contextmanager
def standing_still(replicas: list[Replica]) -> Iterator[None]:
    for replica in replicas:
        replica.stands_still = True
    yield
    for replica in replicas:
        replica.stands_still = False


# Balance, retries, holding


def test_replicas_take_turns_and_learn_who_asks() -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        told = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "Authorization": "Bearer sk-1"}
        with standing_still(replicas):
            asked = one_after_another(8, lambda: made.ask(headers=told), replicas)
            assert [replica.busy for replica in replicas] == [4, 4]
        assert {future.result(PATIENCE).status for future in asked} == {200}  # type: ignore[attr-defined]
        head = replicas[0].asked[0].lower()
        assert b"x-forwarded-for: 127.0.0.1\r\n" in head
        assert b"x-forwarded-proto: http\r\n" in head
        assert b"authorization: bearer sk-1\r\n" in head
        assert b"1.2.3.4" not in head


def test_a_replica_that_lets_nobody_in_is_left_for_another() -> None:
    """Somebody listens there and takes no connection: a minute of patience is enough by far."""
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        replicas[0].die()
        with full(door_of(replicas[0].port)):
            asked = in_background(8, lambda: made.ask(timeout=60))
            assert [future.result(PATIENCE).status for future in asked] == [200] * 8  # type: ignore[attr-defined]
        assert int(row(made, "members", "r1")["wredis"]) > 0, "nobody came to it"


@contextlib.contextmanager
def full(door: Path) -> Iterator[None]:
    """Somebody listens there whose queue is full."""
    door.unlink(missing_ok=True)
    with contextlib.ExitStack() as there:
        listener, *waiting = [there.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4)]
        listener.bind(str(door))
        listener.listen(0)
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(str(door))
        yield


def test_callers_are_held_while_no_replica_is_up_and_let_go_when_one_is() -> None:
    with before(2) as (made, replicas):
        for replica in replicas:
            replica.die()
        eventually(lambda: are_up(made))
        asked = in_background(20, made.ask)
        eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 20, "20 wait")
        replicas[1].start()
        assert [future.result(PATIENCE).status for future in asked] == [200] * 20  # type: ignore[attr-defined]
        assert len(replicas[1].asked) == 20


def test_whoever_waits_for_engines_that_all_died_at_once_goes_on_to_wait_here() -> None:
    """Their sockets are kept: a member says only after a while that it does not serve, and then none is up any more."""
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        for replica in replicas:
            replica.holds = MEMBER_HOLD
        asked = in_background(10, made.ask)
        eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 10)
        for replica in replicas:
            replica.holds = 0.0
        assert [future.result(PATIENCE).status for future in asked] == [200] * 10  # type: ignore[attr-defined]


def test_who_waited_too_long_is_told_to_come_again() -> None:
    with before(2, IMPATIENT) as (made, replicas):
        for replica in replicas:
            replica.die()
        eventually(lambda: are_up(made))
        answer = made.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"] == {
            "message": "no replica of the model is up", "type": "service_unavailable", "param": None, "code": "gateway",
        }  # fmt: skip
        assert row(made, "hold", "FRONTEND")["req_tot"] == "1", "nobody waits twice"


def test_without_holding_they_are_told_at_once() -> None:
    with before(1, Settings(service="q", hold=0)) as (made, replicas):
        replicas[0].die()
        eventually(lambda: are_up(made))
        assert made.ask().status == 503
        assert haproxy.state(made.host, LAYOUT).waiting == 0


def test_nobody_is_sent_to_a_replica_before_its_first_check() -> None:
    """At the start none of them is known to be up: a request that went to one that is not would be lost."""
    with before(3) as (made, replicas):
        assert made.ask().status == 200
    with gateway(SETTINGS, [1, 2, 3]) as made:
        assert are_up(made)
    del replicas


@pytest.mark.parametrize(("status", "size"), [(500, 0), (503, 0), (500, 11 << 10), (503, 20 << 10), (500, 900 << 10)])
def test_a_failure_is_tried_once_more_elsewhere(status: int, size: int) -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        replicas[0].status = status
        assert {made.ask({"prompt": "x" * size}).status for _ in range(2)} == {200}
        assert replicas[0].asked


def test_also_of_a_request_that_comes_in_pieces() -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        replicas[0].status = 500
        for number in range(1, 5):
            with socket.create_connection(("127.0.0.1", made.port), timeout=60) as client:
                client.sendall(head(4) + b"xx")
                eventually(lambda n=number: int(row(made, "clients", "FRONTEND")["req_tot"]) == n, "its head has come")
                client.sendall(b"xx")
                assert client.recv(12) == b"HTTP/1.1 200"
        assert replicas[0].asked


def test_a_replica_where_nobody_listens_costs_no_request_and_is_left_at_once() -> None:
    """Its checks go elsewhere and find nothing: that nobody is there is learnt from a request alone."""
    with before(2) as (made, replicas), Replica() as healthy:
        ports = [replica.port for replica in replicas]
        replicas[0].die()
        at = f'server r1 "unix@{door_of(ports[0])}"'
        made.configure(ports, {f"{at}\n": f"{at} addr 127.0.0.1 port {healthy.port}\n"})
        assert made.reload().returncode == 0
        eventually(lambda: are_up(made, 1, 2))
        downs = row(made, "members", "r1")["chkdown"]
        assert [made.ask().status for _ in range(6)] == [200] * 6
        eventually(lambda: row(made, "members", "r1")["chkdown"] != downs)


def test_a_single_check_that_fails_takes_no_replica_out() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        made.configure([replica.port], {"timeout check 1s": "timeout check 60s"})  # no other fails for want of time
        made.start()
        eventually(lambda: are_up(made, 1))
        before_it = row(made, "members", "r1")
        replica.fails_checks = 1
        eventually(lambda: row(made, "members", "r1")["chkfail"] != before_it["chkfail"])
        assert row(made, "members", "r1")["chkdown"] == before_it["chkdown"]


def test_who_is_busy_is_not_asked_while_another_is_idle() -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        replicas[0].delay = 3600
        asked = in_background(2, made.ask)
        eventually(lambda: replicas[0].busy == 1 and any(future.done() for future in asked))
        assert [made.ask().json()["replica"] for _ in range(4)] == ["r2"] * 4
        replicas[0].die()
        assert [future.result(60).status for future in asked] == [200] * 2  # type: ignore[attr-defined]


def test_what_a_client_does_not_wait_for_any_more_is_left_by_its_replica_too() -> None:
    with before(1) as (made, replicas):
        eventually(lambda: are_up(made, 1))
        replicas[0].delay = 3600
        with socket.create_connection(("127.0.0.1", made.port), timeout=60) as client:
            client.sendall(head(4) + b"xxxx")
            eventually(lambda: row(made, "members", "r1")["scur"] == "1")
        eventually(lambda: row(made, "members", "r1")["scur"] == "0")


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 501])
def test_what_the_client_has_to_know_is_not_tried_again(status: int) -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        for replica in replicas:
            replica.status = status
        assert made.ask().status == status
        assert sum(len(replica.asked) for replica in replicas) == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [2, 4])
def test_a_request_that_kills_engines_stops_at_the_second(count: int, size: int) -> None:
    with before(count) as (made, replicas):
        eventually(lambda: are_up(made, *range(1, count + 1)) and has_keeper(made))
        assert made.ask({"prompt": "POISON" + "x" * size}).status in (502, 503)
        assert sum(len(replica.asked) for replica in replicas) == 2


@pytest.mark.parametrize("size", SIZES)
def test_nor_does_it_come_back_once_one_is_up_again(size: int) -> None:
    """Held callers are served by the one that comes up first: none of them may have killed others before."""
    with before(2) as (made, replicas):
        for replica in replicas:
            replica.die()
        eventually(lambda: are_up(made))
        asked = in_background(1, lambda: made.ask({"prompt": "POISON" + "x" * size}))
        eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 1)
        replicas[0].start()
        assert asked[0].result(PATIENCE).status in (502, 503)  # type: ignore[attr-defined]
        assert sum(len(replica.asked) for replica in replicas) == 1


@contextlib.contextmanager
def let_go_together(second: Path | None = None) -> Iterator[tuple[Gateway, list[Replica]]]:
    """Two replicas that come up at one moment, as whoever waits sees it; the second elsewhere than is checked."""
    with before(2) as (made, replicas):
        for replica in replicas:
            replica.is_healthy = False
        at = door_of(replicas[1].port)
        together = {f'{at}" track members/r2': f'{second or at}" track members/r1'}
        made.configure([replica.port for replica in replicas], together)
        assert made.reload().returncode == 0
        eventually(lambda: are_up(made))
        yield made, replicas


def test_nor_does_it_go_on_to_another_that_came_up_with_the_first() -> None:
    with let_go_together() as (made, replicas):
        asked = in_background(1, lambda: made.ask({"prompt": "POISON"}))
        eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 1)
        replicas[0].is_healthy = True
        assert asked[0].result(60).status == 502  # type: ignore[attr-defined]
        assert sum(len(replica.asked) for replica in replicas) == 1


def test_whoever_was_held_is_answered_though_nobody_listens_where_he_is_sent_first() -> None:
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(f"{home}/nobody")
        with let_go_together(Path(home) / "nobody") as (made, replicas):
            asked = in_background(4, made.ask)
            eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 4)
            replicas[0].is_healthy = True
            assert [future.result(60).status for future in asked] == [200] * 4  # type: ignore[attr-defined]
            assert int(row(made, "held", "r2")["wredis"]), "some were sent there"


def test_nor_is_he_told_so_by_one_that_does_not_serve_yet() -> None:
    with let_go_together() as (made, replicas):
        replicas[1].status = 503
        asked = in_background(4, made.ask)
        eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 4)
        replicas[0].is_healthy = True
        assert [future.result(60).status for future in asked] == [200] * 4  # type: ignore[attr-defined]
        assert replicas[1].asked


@pytest.mark.parametrize("size", [300 << 10, 3 << 20])
def test_large_bodies_arrive_whole(size: int) -> None:
    with before(2) as (made, _):
        body = json.dumps({"prompt": "x" * size}).encode()
        answer = made.ask(body)
        assert (answer.status, answer.json()["length"]) == (200, len(body))


@pytest.mark.parametrize("size", SIZES)
def test_a_killed_replica_costs_nobody_who_has_no_answer_yet(size: int) -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2) and has_keeper(made))
        with standing_still(replicas):
            asked = one_after_another(16, lambda: made.ask({"prompt": "x" * size}), replicas)
            assert [replica.busy for replica in replicas] == [8, 8]
            replicas[0].die()
        assert [future.result(PATIENCE).status for future in asked] == [200] * 16  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", SIZES)
def test_nor_one_whose_socket_is_kept_and_that_seems_the_least_busy_of_all(size: int) -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2) and has_keeper(made))
        with standing_still(replicas):
            asked = one_after_another(16, lambda: made.ask({"prompt": "x" * size}), replicas)
            replicas[0].start_anew(MEMBER_HOLD)
            eventually(lambda: are_up(made, 2))
        assert [future.result(PATIENCE).status for future in asked] == [200] * 16  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["keeper", "both"])
def test_the_process_that_keeps_the_large_is_started_anew_and_another_haproxy_does_not_hinder_it(which: str) -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2) and has_keeper(made))
        (pid,) = made.keepers()
        if which == "both":
            os.kill(made.children()[0], signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: made.keepers() not in ([], [pid]) and worker(str(made.run_dir / SOCKET)))
        eventually(lambda: are_up(made, 1, 2) and has_keeper(made))
        replicas[0].status = 500
        assert {made.ask({"prompt": "x" * (300 << 10)}).status for _ in range(2)} == {200}
        assert replicas[0].asked


def test_no_request_fails_though_the_process_that_keeps_the_large_has_just_died() -> None:
    with before(2) as (made, _):
        eventually(lambda: are_up(made, 1, 2) and has_keeper(made))
        for _ in range(2):
            eventually(lambda: has_keeper(made))
            os.kill(made.keepers()[0], signal.SIGKILL)
            eventually(lambda: not can_connect(made))
            assert [made.ask({"prompt": "x" * (300 << 10)}).status for _ in range(4)] == [200] * 4


def test_its_large_requests_are_bounded_and_the_others_go_the_way_of_all() -> None:
    with before(1) as (made, replicas):
        made.configure([replicas[0].port], {"be_conn(large) lt 500": "be_conn(large) lt 2"})
        assert made.reload().returncode == 0
        eventually(lambda: are_up(made, 1) and has_keeper(made))
        with standing_still(replicas):
            asked = one_after_another(5, lambda: made.ask({"prompt": "x" * (300 << 10)}), replicas)
            assert int(row(made, "large", "keeper")["scur"]) == 2
        assert [future.result(PATIENCE).status for future in asked] == [200] * 5  # type: ignore[attr-defined]


def test_a_header_between_the_two_is_none_of_a_client_s() -> None:
    with before(1, Settings(service="q", routing="session")) as (made, replicas):
        eventually(lambda: are_up(made, 1) and has_keeper(made))
        messages = [{"role": "user", "content": "x" * (300 << 10)}]
        for asked in ({"messages": messages}, {"prompt": "x" * (300 << 10)}):
            assert made.ask(asked, headers={KNOWN_BY: "eHg=", "X-Api-Key": "k"}).status == 200
        assert not [text for text in replicas[0].asked if KNOWN_BY.encode() in text.lower()]
        known = ask(str(made.run_dir / SOCKET), "show table members")
        key = hashlib.sha256(b"k:" + b"x" * (300 << 10)).hexdigest().upper()
        assert re.findall(r"\bkey=([0-9A-F]+)", known) == [key]


def test_the_first_piece_of_a_stream_does_not_wait_for_the_second() -> None:
    """Where it waits the kernel sends it after a fifth of a second, never before; else one of many comes sooner."""
    with before(1) as (made, replicas):
        eventually(lambda: are_up(made, 1))
        replicas[0].gap = 3600
        eventually(lambda: until_first_piece(made) < 0.19)


def until_first_piece(made: Gateway) -> float:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)) as connection:
        began = time.monotonic()
        connection.request("POST", "/v1/completions", '{"stream": true}')
        assert connection.getresponse().readline() == b'data: {"choices": []}\n'
        return time.monotonic() - began


def test_one_that_answers_a_check_with_anything_but_200_is_asked_nothing() -> None:
    with before(2) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        replicas[0].health = 302
        eventually(lambda: are_up(made, 2))


# A member leaves and comes back


def test_a_member_leaves_and_comes_back_and_no_request_is_lost() -> None:
    with before(2) as (made, replicas), load(Plan(made.port, "sk-1", rate=40, keep=8, pause=0.05)) as running:
        for replica in replicas:
            replica.gap = replica.delay = 0.01
        eventually(lambda: are_up(made, 1, 2))
        for number, replica in ((1, replicas[0]), (2, replicas[1])):
            running.wait_for(40)
            assert haproxy.drain(made.host, LAYOUT, number, 30) == 0
            assert haproxy.state(made.host, LAYOUT).members[number].is_out
            before_that = len(replica.asked)
            replica.die()
            running.wait_for(40)
            assert len(replica.asked) == before_that
            replica.start()
            assert haproxy.ready(made.host, LAYOUT, number)
            running.wait_for(40)
            assert len(replica.asked) > before_that
    assert running.result.failures == {}


@pytest.mark.parametrize("key", [{"Authorization": "Bearer sk-1"}, {"X-Api-Key": "sk-1"}])
def test_sessions_leave_a_member_that_leaves(key: dict[str, str]) -> None:
    with before(2, Settings(service="q", routing="session")) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2))
        ask = {"messages": [{"role": "user", "content": "hello"}]}
        first = made.ask(ask, headers=key).json()["replica"]
        assert {made.ask(ask, headers=key).json()["replica"] for _ in range(4)} == {first}
        number = int(str(first)[1:])
        assert haproxy.drain(made.host, LAYOUT, number, 10) == 0
        assert made.ask(ask, headers=key).json()["replica"] != first
        assert len(replicas) == 2


def test_the_only_member_leaves_and_callers_wait() -> None:
    with before(1) as (made, replicas):
        eventually(lambda: are_up(made, 1))
        assert haproxy.drain(made.host, LAYOUT, 1, 10) == 0
        asked = in_background(3, made.ask)
        eventually(lambda: haproxy.state(made.host, LAYOUT).waiting == 3)
        assert not replicas[0].asked
        assert haproxy.ready(made.host, LAYOUT, 1)
        assert [future.result(PATIENCE).status for future in asked] == [200] * 3  # type: ignore[attr-defined]


# Reloads, restarts, deaths


def test_twenty_reloads_under_load_cost_no_request() -> None:
    with before(2) as (made, replicas), load(Plan(made.port, "sk-1", rate=40, keep=8, pause=0.05)) as running:
        for number in range(20):
            running.wait_for(5)
            made.configure(
                [replica.port for replica in replicas], {"timeout tunnel 1h": f"timeout tunnel {2 + number}h"}
            )
            done = made.reload()
            assert done.returncode == 0, done.stderr
    assert running.result.failures == {}


def test_a_reload_forgets_neither_who_is_down_nor_who_was_taken_out() -> None:
    with before(3) as (made, replicas):
        eventually(lambda: are_up(made, 1, 2, 3))
        replicas[0].die()
        eventually(lambda: are_up(made, 2, 3))
        haproxy.drain(made.host, LAYOUT, 2, 10)
        made.configure([replica.port for replica in replicas], {"timeout tunnel 1h": "timeout tunnel 2h"})
        assert made.reload().returncode == 0
        members = haproxy.state(made.host, LAYOUT).members
        assert [members[number].is_up for number in (1, 2, 3)] == [False, False, True]
        assert members[2].is_out


def test_members_are_added_and_taken_away_by_a_reload() -> None:
    with before(2) as (made, replicas):
        made.configure([replicas[1].port])
        assert made.reload().returncode == 0
        assert list(haproxy.state(made.host, LAYOUT).members) == [1]
        assert {made.ask().json()["replica"] for _ in range(4)} == {"r2"}


def test_nothing_is_reloaded_where_nothing_changed() -> None:
    with before(1) as (made, _):
        eventually(lambda: time.time() - made.config.stat().st_ctime > 2.5)
        assert made.reload().returncode == 0
        pid, over = pid_of_worker(made), time.time() + 1
        while time.time() < over:  # at whatever moment of a second
            assert made.reload().returncode == 0
            assert pid_of_worker(made) == pid


def test_a_configuration_that_is_none_changes_nothing() -> None:
    with before(1) as (made, _):
        pid = pid_of_worker(made)
        made.config.write_text(made.config.read_text() + "\n    balance nonsense\x1b[2J\n")
        done = made.reload()
        assert done.returncode == 1
        assert "HAProxy would not take" in done.stderr
        assert "\x1b" not in done.stderr
        assert pid_of_worker(made) == pid
        assert made.ask().status == 200


def test_the_socket_and_all_who_wait_there_outlive_a_restart() -> None:
    with before(2) as (made, _):
        assert made.stop() == 0
        assert "http" in made.kept
        asked = in_background(10, made.ask)
        eventually(lambda: waiting_in(made.kept["http"]) == 10)
        made.start()
        assert [future.result(PATIENCE).status for future in asked] == [200] * 10  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", SIZES)
def test_a_stop_lets_finish_who_is_busy(size: int) -> None:
    with gateway(SETTINGS, [1], starts=False) as made, replicas_on(1) as replicas:
        made.drain = 600
        made.configure([replicas[0].port])
        made.start()
        made.ask()
        eventually(lambda: has_keeper(made))
        with standing_still(replicas):
            asked = one_after_another(4, lambda: made.ask({"prompt": "x" * size}), replicas)
            stopping = in_background(1, made.stop)
            eventually(lambda: not pid_of_worker(made), "nobody is let in any more")
        assert stopping[0].result(PATIENCE) == 0
        assert [future.result(PATIENCE).status for future in asked] == [200] * 4  # type: ignore[attr-defined]


def test_a_stop_or_a_reload_right_after_the_start_is_heard() -> None:
    """By HAProxy's master, which minds them only a while after its worker answers."""
    with gateway(SETTINGS, [1], starts=False) as made:
        made.drain = 600
        made.start()
        assert made.reload().returncode == 0
        assert made.stop() == 0
        made.start()
        assert made.stop() == 0


def test_a_stop_waits_no_longer_than_it_may() -> None:
    with before(1) as (made, replicas):
        made.ask()
        replicas[0].delay = 3600
        asked = in_background(1, made.ask)
        eventually(lambda: replicas[0].busy == 1)
        assert made.stop() == 0
        assert asked[0].exception(PATIENCE) or asked[0].result().status == 503  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["master", "worker"])
def test_haproxy_killed_is_started_anew_and_the_unit_lives_on(which: str) -> None:
    with before(1) as (made, _):
        assert made.process
        pid = pid_of_worker(made)
        os.kill(made.children()[0] if which == "master" else pid, signal.SIGKILL)
        eventually(lambda: pid_of_worker(made) not in (0, pid))
        assert made.ask().status == 200
        assert made.process.poll() is None
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the former worker is gone")


def test_its_runtime_socket_gone_it_serves_and_a_reload_says_so() -> None:
    with before(1) as (made, _):
        (made.run_dir / SOCKET).unlink()
        assert made.ask().status == 200
        done = made.reload()
        assert (done.returncode, "does not answer" in done.stderr) == (1, True)


def test_a_former_worker_ends_however_long_its_streams_are() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        replica.gap = 3600
        made.configure([replica.port], {"hard-stop-after 1h": "hard-stop-after 1s"})
        made.start()
        eventually(lambda: are_up(made, 1))
        with socket.create_connection(("127.0.0.1", made.port), timeout=60) as client:
            client.sendall(head(16) + b'{"stream": true}')
            assert client.recv(12) == b"HTTP/1.1 200"
            pid = pid_of_worker(made)
            made.configure([replica.port], {"hard-stop-after 1h": "hard-stop-after 2s"})
            eventually(lambda: made.reload().returncode == 0 and pid_of_worker(made) not in (0, pid))
            eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_its_sockets_are_for_its_own_user() -> None:
    with before(1) as (made, _):
        eventually(lambda: has_keeper(made))
        for name in (SOCKET, "hold.sock", "back.sock", "again.sock", "large.sock"):
            assert (made.run_dir / name).stat().st_mode & 0o077 == 0


def has_keeper(made: Gateway) -> bool:
    """What is large goes by it."""
    return bool(made.keepers()) and row(made, "large", "keeper")["status"] == "UP" and can_connect(made)


def can_connect(made: Gateway) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(made.run_dir / "large.sock")) == 0


def row(made: Gateway, proxy: str, server: str) -> dict[str, str]:
    """What HAProxy counts there."""
    rows = csv.DictReader(ask(str(made.run_dir / SOCKET), "show stat").removeprefix("# ").splitlines())
    (found,) = (each for each in rows if (each["pxname"], each["svname"]) == (proxy, server))
    return found


def pid_of_worker(made: Gateway) -> int:
    return worker(str(made.run_dir / SOCKET))


def waiting_in(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        return (queue(listener) or (0, 0))[0]


# Clients that behave badly


def test_half_open_heads_and_bodies_are_closed() -> None:
    """Also those of which a byte comes now and then; 3.0 would have kept them for ever, had they been told why."""
    chunks = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n"
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        made.configure([replica.port], {"timeout http-request 30s": "timeout http-request 300ms"})
        made.start()
        eventually(lambda: has_keeper(made))
        large = head(300 << 10) + b"x" * (100 << 10)
        for text in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: h\r\n", head(1000) + b"x" * 10, chunks, large):
            for trickles in (False, True):
                with socket.create_connection(("127.0.0.1", made.port), timeout=0.05) as client:
                    client.sendall(text)
                    eventually(lambda c=client, more=trickles: is_closed(c, more), f"{text!r} {trickles}")
        assert replica.asked == []


def is_closed(client: socket.socket, trickles: bool) -> bool:
    try:
        assert client.recv(65536) == b""
    except TimeoutError:
        with contextlib.suppress(ConnectionError):
            client.send(b"x" * trickles)
        return False
    except ConnectionError:
        return True
    return True


def test_a_client_that_never_reads_is_left() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        made.configure([replica.port], {"timeout client 120s": "timeout client 300ms"})
        made.start()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", made.port))
            client.sendall(head(4) + b"HUGE")
            eventually(lambda: replica.most_busy == 1)
            eventually(lambda: replica.busy == 0, "the replica is rid of it")


def test_between_two_requests_a_client_has_less_time_than_for_one() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        soon = {"timeout http-keep-alive 5s": "timeout http-keep-alive 300ms",
                "timeout http-request 30s": "timeout http-request 1h"}  # fmt: skip
        made.configure([replica.port], soon)
        made.start()
        with socket.create_connection(("127.0.0.1", made.port), timeout=60) as client:
            client.sendall(head(4) + b"xxxx")
            assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 200")


def test_a_slow_answer_is_waited_for_however_impatient_we_are_with_clients() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        made.configure([replica.port], {"timeout client 120s": "timeout client 1s"})
        made.start()
        replica.delay = 3
        assert made.ask().status == 200


def test_a_websocket_may_be_silent_for_longer_than_a_client() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        made.configure([replica.port], {"timeout client 120s": "timeout client 300ms"})
        made.start()
        with socket.create_connection(("127.0.0.1", made.port), timeout=60) as client, socket.socket() as other:
            asks = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            client.sendall(b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\n" + asks)
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            other.connect(("127.0.0.1", made.port))
            other.sendall(head(4) + b"HUGE")
            eventually(lambda: replica.busy == 1)
            eventually(lambda: replica.busy == 0, "who began to be silent later has been left")
            client.sendall(b"still here")
            assert client.recv(4096) == b"still here"


def head(length: int) -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length


# What HAProxy itself answers


def test_what_it_answers_itself_has_the_api_s_form() -> None:
    with gateway(SETTINGS, [1], starts=False) as made, Replica() as replica:
        made.configure([replica.port], {"timeout server 1h": "timeout server 1s", "retries 1": "retries 0"})
        made.start()
        eventually(lambda: are_up(made, 1))
        replica.delay = 3600
        late = made.ask()
        broken = made.ask({"prompt": "POISON"})
    for answer, status in ((late, 504), (broken, 502)):
        error = answer.json()["error"]
        assert isinstance(error, dict)
        assert [answer.status, error["type"], error["code"]] == [status, "server_error", "gateway"]
        assert answer.headers["content-type"] == "application/json"


# Sessions


@pytest.mark.parametrize("role", ["system", "developer", None])
def test_a_conversation_is_known_by_its_key_and_the_first_words_of_its_user(role: str | None) -> None:
    with before(2, Settings(service="q", routing="session")) as (made, _):
        eventually(lambda: are_up(made, 1, 2))
        first = [{"role": role, "content": "Be brief."}] if role else []
        for key in ({"Authorization": "Bearer sk-1"}, {"Authorization": "Bearer sk-2"}, {"X-Api-Key": "sk-1"}, {}):
            for asked in ("one", "two"):
                for more in ([], [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "and?"}]):
                    messages = [*first, {"role": "user", "content": asked}, *more]
                    assert made.ask({"messages": messages}, headers=key).status == 200
        known = ask(str(made.run_dir / SOCKET), "show table members")
        assert len(re.findall(r"\bserver_id=", known)) == 6, "two of each key; without one none is kept"


def test_a_large_one_is_known_too_once_a_reload_asks_for_it() -> None:
    with before(1) as (made, replicas):
        eventually(lambda: are_up(made, 1) and has_keeper(made))
        made.settings = Settings(service="q", routing="session")
        made.configure([replicas[0].port])
        assert made.reload().returncode == 0
        eventually(lambda: are_up(made, 1) and has_keeper(made))
        messages = [{"role": "user", "content": "x" * (300 << 10)}]
        assert made.ask({"messages": messages}, headers={"X-Api-Key": "k"}).status == 200
        assert "key=" in ask(str(made.run_dir / SOCKET), "show table members")


def test_a_conversation_stays_with_its_replica_and_the_load_is_even() -> None:
    sessions = Settings(service="q", routing="session")
    with replicas_on(4) as replicas, gateway(sessions, [1], starts=False) as made:
        patient = {"timeout check 1s": "timeout check 60s"}  # all that runs here is in one process, and none is lost
        made.configure([replica.port for replica in replicas], patient)
        made.start()
        eventually(lambda: are_up(made, 1, 2, 3, 4))
        for replica in replicas:
            replica.delay = 0.01
        same = list[bool]()

        def converse(number: int) -> None:
            system = {"role": "system", "content": f"You are assistant {number % 8}. " + "Be brief. " * 20}
            messages = [*[system][: number % 2], {"role": "user", "content": f"session {number}"}]
            seen = []
            for turn in range(5):
                key = {"Authorization": f"Bearer sk-{number % 3}"}
                seen.append(made.ask({"messages": messages}, headers=key).json()["replica"])
                messages += [
                    {"role": "assistant", "content": "Yes. " * 20},
                    {"role": "user", "content": f"and {turn}?"},
                ]
            same.extend(each == seen[0] for each in seen[1:])

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(converse, range(160)))
        counts = [len(replica.asked) for replica in replicas]
        assert statistics.mean(same) >= 0.99
        assert max(counts) / statistics.mean(counts) <= 1.2, counts
