"""Callers wait in the kernel's queue while an engine starts anew: the socket outlives it, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from installer.runtime import vllm_hold, vllm_supervision
from tests.kit.boot.surroundings import held_port
from tests.kit.launched import PATIENCE, USER, Service, arguments, digest, wait_until

REQUEST = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {USER}\r\nConnection: close\r\n\r\n".encode()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    service.environment["HOLD"] = "120"
    yield service
    service.end()


def call(port: int, request: bytes = REQUEST) -> socket.socket:
    """Who connects and asks, and waits for an answer."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(PATIENCE)
    connection.sendall(request)
    return connection


def answer(connection: socket.socket) -> str:
    with connection:
        text = b""
        while part := connection.recv(65536):
            text += part
        return text.decode()


def status(connection: socket.socket) -> int:
    return int(answer(connection).split(" ")[1])


def loads(service: Service, **more: str) -> None:
    """Start, and stand still in the middle of loading."""
    service.environment |= more
    service.faults("stall=load")
    service.start()
    service.hear("STATUS=loading weights")


# Waiting


def test_who_calls_while_it_loads_waits_and_is_answered(service: Service) -> None:
    loads(service)
    callers = [call(service.port) for _ in range(50)]
    service.hear("STATUS=loading weights; 50 callers wait, longest ")
    noted = json.loads((service.run / "holding").read_text())
    assert (noted["waiting"], noted["hold"]) == (50, 120)
    assert noted["since"] <= vllm_hold.now()
    service.faults("")
    assert {status(caller) for caller in callers} == {200}
    service.hear("READY=1")
    wait_until(lambda: not (service.run / "holding").exists())


@pytest.mark.parametrize("victim", ["vllm_supervisor.py", "vllm_listen.py", "VLLM::EngineCore"])
def test_who_calls_after_a_crash_is_answered_by_the_next_start(service: Service, victim: str) -> None:
    service.start()
    service.hear("READY=1")
    os.kill(service.named(victim), signal.SIGKILL)
    assert service.process is not None
    assert service.process.wait(PATIENCE) == -signal.SIGKILL
    service.kill()  # whatever is left might answer still
    caller = call(service.port)
    service.start()
    assert status(caller) == 200
    assert {name: len(kept) for name, kept in service.store.items()} == {"http": 1, "hold": 1}


def test_nothing_of_the_engine_outlives_it(service: Service) -> None:
    """Not even what has left its group and its parent: of that, nobody would think at a switch to the next engine."""
    service.start()
    service.hear("READY=1")
    core = service.named("VLLM::EngineCore")
    os.kill(service.vllm(), signal.SIGKILL)
    assert service.process is not None
    service.process.wait(PATIENCE)
    with suppress(FileNotFoundError):
        assert "VLLM" not in arguments(core)
    assert service.ours() == []


def test_callers_wait_through_a_restart_that_is_asked_for(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    service.substate("stop-sigterm", job="7 x.service restart running")
    process.terminate()
    assert process.wait(PATIENCE) == 0
    caller = call(service.port)
    service.restart()
    assert status(caller) == 200


def test_a_stop_means_stop(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    service.substate("stop-sigterm", job="7 x.service stop running")
    still_held = os.dup(service.store["http"][0])
    process.terminate()
    assert process.wait(PATIENCE) == 0
    with pytest.raises(ConnectionRefusedError):
        call(service.port)
    os.close(still_held)
    assert service.store == {}


def test_another_port_is_another_socket(service: Service) -> None:
    service.start()
    service.hear("READY=1")
    service.kill()
    old, caller = service.port, call(service.port)
    place, service.port = held_port()
    with place:
        service.start()
        assert status(call_when_it_listens(service)) == 200
    with pytest.raises(ConnectionRefusedError):
        call(old)
    with pytest.raises(ConnectionResetError):
        answer(caller)
    assert {name: len(kept) for name, kept in service.store.items()} == {"http": 1, "hold": 1}


def test_an_address_that_covers_the_old_one_can_be_taken(service: Service) -> None:
    service.start()
    service.hear("READY=1")
    service.kill()
    service.start(serve=("serve", "/models/tiny", "--host", "0.0.0.0", "--port", str(service.port)))
    service.hear("READY=1")
    assert len(service.store["http"]) == 1


def test_without_hold_nothing_is_kept(service: Service) -> None:
    service.environment["HOLD"] = "0"
    service.start()
    service.hear("READY=1")
    assert service.store == {}


def test_what_was_kept_is_let_go_once_nobody_is_to_be_held(service: Service) -> None:
    service.start()
    service.hear("READY=1")
    service.kill()
    service.environment["HOLD"] = "0"
    service.start()
    service.hear("READY=1")
    assert service.store == {}
    assert status(call(service.port)) == 200


@pytest.mark.parametrize("hold", ["-1", "long", "3601", "", "1.5"])
def test_a_hold_that_is_no_time_is_refused(service: Service, hold: str) -> None:
    service.environment["HOLD"] = hold
    refused = service.once("launch", digest(USER), serve=None)
    assert refused.returncode == 78
    assert "HOLD is not a number of seconds from 0 to 3600" in refused.stderr


def test_a_killed_watcher_costs_nothing(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    vllm = service.vllm()
    os.kill(service.named("vllm_watcher.py"), signal.SIGKILL)
    service.hear("READY=1")
    service.hear("WATCHDOG=1")
    assert service.vllm() == vllm
    assert process.poll() is None


def test_a_watcher_that_keeps_dying_ends_the_service(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    for _ in range(vllm_supervision.WATCHERS):
        os.kill(service.named("vllm_watcher.py"), signal.SIGKILL)
        service.hear("READY=1")
    os.kill(service.named("vllm_watcher.py"), signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL


# The end of waiting


def test_who_has_waited_too_long_is_told_to_come_back(service: Service) -> None:
    loads(service, HOLD="1")
    said = answer(call(service.port))
    head, _, body = said.partition("\r\n\r\n")
    assert head.splitlines()[0] == "HTTP/1.1 503 Service Unavailable"
    assert {"Retry-After: 10", "Content-Type: application/json", "Connection: close"} <= set(head.splitlines())
    assert json.loads(body)["error"]["type"] == "service_unavailable"
    assert json.loads(body)["error"]["code"] == "starting"
    service.faults("")
    service.hear("READY=1")
    assert status(call(service.port)) == 200


def test_the_wait_is_counted_over_several_starts(service: Service) -> None:
    loads(service, HOLD="1")
    assert status(call(service.port)) == 503
    service.kill()
    callers = [call(service.port) for _ in range(3)]
    service.environment["HOLD"] = "60"
    since, starts = vllm_hold.Record(service.store["hold"][0]).read()
    assert since is not None
    assert len(starts) == 1
    vllm_hold.Record(service.store["hold"][0]).write(since - 61, starts)
    service.start()
    assert {status(caller) for caller in callers} == {503}


def test_who_is_slow_to_ask_keeps_nobody_from_an_answer(service: Service) -> None:
    loads(service, HOLD="1")
    assert status(call(service.port)) == 503
    with ExitStack() as slow:
        for _ in range(2 * vllm_hold.MOST_CALLERS):
            slow.enter_context(call(service.port, b"GET / HTTP/1.1\r\nX: "))
        assert status(call(service.port)) == 503
        held = list(Path(f"/proc/{service.named('vllm_supervisor.py')}/fd").iterdir())
        assert len(held) < vllm_hold.MOST_CALLERS + 50


@pytest.mark.parametrize("request_", [b"", b"x" * 100_000, b"POST /v1/completions HTTP/1.1\r\n\r\n" + b"{" * 500_000])
def test_whatever_is_asked_the_answer_is_the_same(service: Service, request_: bytes) -> None:
    loads(service, HOLD="1")
    assert status(call(service.port)) == 503
    assert status(call(service.port, request_)) == 503


def test_who_hangs_up_while_waiting_is_no_trouble(service: Service) -> None:
    loads(service, HOLD="1")
    for _ in range(20):
        call(service.port).close()
    assert status(call(service.port)) == 503
    service.faults("")
    service.hear("READY=1")


@pytest.mark.parametrize("code", [2, 78])
def test_a_start_that_is_not_tried_again_tells_those_who_wait(service: Service, code: int) -> None:
    loads(service)
    caller = call(service.port)
    service.kill()
    service.faults(f"die-at-start={code}")
    assert service.start().wait(PATIENCE) == code
    assert status(caller) == 503
    assert service.store == {}


def test_a_refused_start_tells_those_who_wait(service: Service) -> None:
    loads(service)
    caller = call(service.port)
    service.kill()
    assert service.start("sha256:abc").wait(PATIENCE) == 78
    assert status(caller) == 503


@pytest.mark.parametrize(
    ("limits", "before", "is_told"),
    [
        ("StartLimitBurst=3\nStartLimitIntervalUSec=1h\nRestart=always", [1, 2], True),
        ("StartLimitBurst=4\nStartLimitIntervalUSec=1h\nRestart=always", [1, 2], False),
        ("StartLimitBurst=3\nStartLimitIntervalUSec=1h 30min\nRestart=always", [1, 5390], True),
        ("StartLimitBurst=3\nStartLimitIntervalUSec=1h\nRestart=always", [1, 3700], False),
        ("StartLimitBurst=0\nStartLimitIntervalUSec=1h\nRestart=always", [1, 2], False),
        ("StartLimitBurst=5\nStartLimitIntervalUSec=1h\nRestart=no", [], True),
        ("", [1, 2, 3, 4, 5], False),
    ],
)
def test_the_last_start_of_several_tells_those_who_wait(
    service: Service, limits: str, before: list[int], *, is_told: bool
) -> None:
    service.substate("start", limits=limits)
    service.faults("stall=load")
    record = vllm_hold.Record()
    record.write(None, [vllm_hold.now() - seconds for seconds in before])
    service.store["hold"] = [record.descriptor]
    process = service.start()
    caller = call_when_it_listens(service)
    service.faults("die-at-start=1")
    assert process.wait(PATIENCE) == 1
    if is_told:
        assert status(caller) == 503
        assert service.store == {}
    else:
        service.faults("")
        service.restart()
        assert status(caller) == 200


def call_when_it_listens(service: Service) -> socket.socket:
    assert service.process is not None
    while service.process.poll() is None:
        with suppress(ConnectionRefusedError):
            return call(service.port)
    raise AssertionError(service.log.read_text())
