"""The next engine takes the place of the one that runs, behind the same socket; or all is as if nothing had been."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.runtime import vllm_handover, vllm_launcher
from tests.kit.boot.surroundings import held_port
from tests.kit.launched import PATIENCE, PROBE, USER, Service, digest, wait_until
from tests.runtime.test_hold import answer, call, status

NEW = "sk-new-0123456789abcdef"
WIDER = ("--max-model-len", "8192")
BODY = b'{"prompt": "Hi", "stream": true}'
STREAM = (
    f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {USER}\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    service = Service(tmp_path)
    service.environment["HOLD"] = getattr(request, "param", "120")
    service.start()
    service.hear("READY=1")
    yield service
    service.end()


class Load:
    """Somebody who asks again and again, each time on a new connection, and counts what came back."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: list[str] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.ask)

    def ask(self) -> None:
        while not self.over.is_set():
            try:
                self.seen.append(answer(call(self.port)).split(" ")[1])
            except (OSError, IndexError) as error:
                self.seen.append(repr(error))

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        assert set(self.seen) == {"200"}


def context(service: Service) -> int:
    said = answer(call(service.port))
    return int(said.partition('"max_model_len": ')[2].partition("}")[0])


def journal(service: Service) -> str:
    return service.log.read_text()


def test_the_next_engine_takes_over_and_nobody_is_refused(service: Service) -> None:
    first = service.process
    assert first is not None
    old = service.vllm()
    with Load(service.port):
        reload = service.reload(*WIDER)
        main = int(service.hear("MAINPID=").partition("=")[2])
        assert reload.wait(PATIENCE) == 0
        assert first.wait(PATIENCE) == 0
        service.hear("WATCHDOG=1")
    assert service.vllm() != old
    assert service.named("vllm_supervisor.py") == main
    assert context(service) == 8192
    assert main in service.serving()
    assert {name: len(kept) for name, kept in service.store.items()} == {"http": 1, "hold": 1}
    assert not (service.run / "holding").exists()


@pytest.mark.parametrize("service", ["1"], indirect=True)
def test_whoever_comes_while_the_last_answers_are_finished_waits_no_longer_than_he_may(service: Service) -> None:
    """Behind a gateway another replica answers him then, or he waits there."""
    assert service.reload("--shutdown-timeout", "60").wait(PATIENCE) == 0
    old = service.vllm()
    service.faults("hang")
    busy = call(service.port, STREAM)
    begun = busy.recv(65536)
    reload = service.reload(*WIDER)
    wait_until(lambda: status(call(service.port)) == 503)
    assert old in service.pids("vllm_listen.py"), "it has not finished"
    service.faults("")
    assert (begun.decode() + answer(busy)).endswith("data: [DONE]\n\n\r\n0\r\n\r\n")
    assert reload.wait(PATIENCE) == 0
    assert context(service) == 8192


@pytest.mark.parametrize("service", ["1"], indirect=True)
def test_who_comes_while_the_last_answers_are_finished_for_one_that_is_gone_is_told_to_come_later(
    service: Service,
) -> None:
    """He would get the keys of that one's change, and its word that the engine is gone."""
    assert service.reload("--shutdown-timeout", "60").wait(PATIENCE) == 0
    main, old = service.named("vllm_supervisor.py"), service.vllm()
    service.faults("hang")
    busy = call(service.port, STREAM)
    busy.recv(65536)
    gone = service.reload(*WIDER, keys=(digest(USER), f"ops={digest(NEW)}"))
    wait_until(lambda: status(call(service.port)) == 503)
    os.kill(next(pid for pid in service.pids("vllm_supervisor.py") if pid != main), signal.SIGKILL)
    assert gone.wait(PATIENCE) == 1
    wait_until(lambda: "the change is not taken over" in journal(service))
    assert service.reload("--max-model-len", "512").wait(PATIENCE) == 1
    assert "another change is being taken over" in journal(service)
    assert old in service.pids("vllm_listen.py"), "it has not finished"
    service.faults("")
    answer(busy)
    wait_until(lambda: service.status("/v1/models", USER) == 200)
    assert service.status("/v1/models", NEW) == 401
    assert context(service) == 4096


def test_one_change_after_the_other(service: Service) -> None:
    for length in ("2048", "1024", "512"):
        assert service.reload("--max-model-len", length).wait(PATIENCE) == 0, journal(service)
        assert context(service) == int(length)


def test_the_same_command_replaces_the_keys_alone(service: Service) -> None:
    pids = service.serving()
    assert service.reload(keys=(digest(NEW),)).wait(PATIENCE) == 0
    assert [service.status("/v1/models", key) for key in (USER, NEW, PROBE)] == [401, 200, 200]
    assert service.serving() == pids


def test_another_variable_is_another_engine(service: Service) -> None:
    old = service.vllm()
    service.environment["UNIT_DIGEST"] = "2"
    assert service.reload().wait(PATIENCE) == 0
    assert service.vllm() != old


def test_new_keys_are_in_force_with_the_next_engine(service: Service) -> None:
    assert service.reload(*WIDER, keys=(digest(NEW),)).wait(PATIENCE) == 0
    assert [service.status("/v1/models", key) for key in (USER, NEW, PROBE)] == [401, 200, 200]


@pytest.mark.parametrize(
    ("fault", "why"),
    [("import=die", "the next engine ended with status 1"), ("import=hang", "could not be prepared in time")],
)
def test_what_fails_while_it_is_prepared_changes_nothing(service: Service, fault: str, why: str) -> None:
    pids = service.serving()
    service.environment |= {"VLLM_STANDIN": fault} | ({"START_PATIENCE_SEC": "1"} if "hang" in fault else {})
    with Load(service.port):
        assert service.reload(*WIDER, keys=(digest(NEW),)).wait(PATIENCE) == 1
    assert why in journal(service)
    assert why in service.hear("STATUS=refused")
    assert service.serving() == pids
    assert service.status("/v1/models", NEW) == 401


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("refuse-context=4096", "it failed while compiling: ValueError: To serve"),
        ("die-at-start=3", "it failed while loading weights: RuntimeError: Engine core initialization failed"),
        ("stall=compile", "the start made no progress for 1 s"),
    ],
)
def test_what_fails_after_the_switch_brings_the_old_one_back(service: Service, fault: str, why: str) -> None:
    main = service.process
    assert main is not None
    impatient = {"START_PATIENCE_SEC": "1"} if "stall" in fault else {}
    service.environment |= {"VLLM_STANDIN": fault, **impatient}
    with Load(service.port):
        reload = service.reload(*WIDER, keys=(digest(USER), f"ops={digest(NEW)}"))
        assert reload.wait(PATIENCE) == 1
        service.hear("READY=1")
    assert why in journal(service), journal(service)
    assert main.poll() is None
    assert context(service) == 4096
    assert service.status("/v1/models", NEW) == 401
    assert not any("trigger" in line for line in service.heard), "the unit would be ended"
    for name in ("VLLM_STANDIN", *impatient):
        del service.environment[name]
    assert service.reload(*WIDER).wait(PATIENCE) == 0
    assert context(service) == 8192


def test_an_engine_that_dies_of_its_first_request_does_not_take_over(service: Service) -> None:
    service.environment["VLLM_STANDIN"] = "die-on-completion"
    assert service.reload(*WIDER).wait(PATIENCE) == 1
    assert "the engine died of its first request" in journal(service)
    service.hear("READY=1")
    assert context(service) == 4096


def test_keys_that_changed_meanwhile_are_not_brought_back(service: Service) -> None:
    service.faults("stall=load")
    reload = service.reload(*WIDER)
    service.hear("STATUS=loading weights")
    changed = (service.run / "keys").read_text().replace(digest(USER)[7:], digest(NEW)[7:])
    (service.run / "keys").write_text(changed)
    os.kill(service.vllm(), signal.SIGKILL)  # before it could answer
    service.faults("")
    assert reload.wait(PATIENCE) == 1
    service.hear("READY=1")
    assert [service.status("/v1/models", key) for key in (USER, NEW)] == [401, 200]


def stalled(service: Service, fault: str, keys: tuple[str, ...] = (digest(USER),)) -> subprocess.Popen[str]:
    service.faults(fault)
    reload = service.reload(*WIDER, keys=keys)
    if fault.startswith("import"):
        wait_until(lambda: len(service.pids("vllm_listen.py")) == 2)
    else:
        service.hear("STATUS=loading weights")
    return reload


def test_nor_are_those_that_changed_while_it_was_prepared(service: Service) -> None:
    """The next engine's own are of the unit as it was when its preparation began."""
    reload = stalled(service, "import=hang")
    changed = (service.run / "keys").read_text().replace(digest(USER)[7:], digest(NEW)[7:])
    (service.run / "keys").write_text(changed)
    service.faults("")
    assert reload.wait(PATIENCE) == 0
    assert [service.status("/v1/models", key) for key in (USER, NEW)] == [401, 200]


@pytest.mark.parametrize("fault", ["import=hang", "stall=load"])
def test_two_changes_do_not_mix(service: Service, fault: str) -> None:
    reload = stalled(service, fault)
    other = service.reload("--max-model-len", "512")
    assert other.wait(PATIENCE) == 1
    assert "another change is being taken over" in journal(service)
    service.faults("")
    assert reload.wait(PATIENCE) == 0
    assert context(service) == 8192


@pytest.mark.parametrize("fault", ["import=hang", "stall=load"])
def test_a_next_supervisor_that_was_stopped_is_not_waited_for(service: Service, fault: str) -> None:
    """It says nothing any more, and only its end would be noticed."""
    main, keys = service.process, (digest(USER), f"ops={digest(NEW)}")
    assert main is not None
    service.environment["SILENCE_SEC"] = "3"
    reload = stalled(service, fault, keys)
    stopped = next(pid for pid in service.pids("vllm_supervisor.py") if pid != main.pid)
    os.kill(stopped, signal.SIGSTOP)
    assert reload.wait(PATIENCE) == 1
    assert "the supervisor of the next engine says nothing" in journal(service)
    service.faults("")
    wait_until(lambda: not Path(f"/proc/{stopped}").exists())
    if fault.startswith("stall"):
        service.hear("READY=1")
    assert (main.poll(), context(service), service.status("/v1/models", NEW)) == (None, 4096, 401)


def test_nobody_waits_for_the_next_engine_any_more(service: Service) -> None:
    """As when systemd has given up on the reload: what the tool then finds must be what ran before."""
    old = service.vllm()
    reload = stalled(service, "import=hang")
    reload.kill()
    reload.wait()
    service.faults("")
    wait_until(lambda: service.pids("vllm_listen.py") == [old])
    assert context(service) == 4096


@pytest.mark.parametrize("more", [("--port", "70000"), ("--api-key", "sk-x"), ("--uds", "/run/x")])
def test_a_command_that_is_refused_changes_nothing(service: Service, more: tuple[str, ...]) -> None:
    pids = service.serving()
    assert service.reload(*more).wait(PATIENCE) == 78
    assert service.serving() == pids


def test_another_port_is_listened_on_before_the_old_one_is_let_go(service: Service) -> None:
    old = service.port
    place, service.port = held_port()
    with place:
        assert service.reload().wait(PATIENCE) == 0, journal(service)
    assert status(call(service.port)) == 200
    with pytest.raises(ConnectionRefusedError):
        call(old)
    assert len(service.store["http"]) == 1


def test_a_port_that_somebody_has_is_named(service: Service) -> None:
    old = service.port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service.port = taken.getsockname()[1]
        assert service.reload().wait(PATIENCE) == 75
        assert f"port {service.port} is held by pid {os.getpid()} (" in journal(service)
    service.port = old
    assert status(call(old)) == 200


def test_an_address_that_this_host_has_not_is_refused_beforehand(service: Service) -> None:
    pids = service.serving()
    assert service.reload("--host", "192.0.2.1").wait(PATIENCE) == 75
    assert f"cannot listen on 192.0.2.1 port {service.port}: Cannot assign requested address" in journal(service)
    assert service.serving() == pids


def test_an_address_that_somebody_else_has_a_part_of_is_given_back(service: Service) -> None:
    with socket.create_server(("127.0.0.3", service.port)):
        assert service.reload("--host", "0.0.0.0").wait(PATIENCE) == 1
    assert f"cannot listen on 0.0.0.0 port {service.port}: Address already in use" in journal(service)
    service.hear("READY=1")
    assert status(call(service.port)) == 200


def test_an_address_that_covers_the_old_one_is_taken_at_the_switch(service: Service) -> None:
    assert service.reload("--host", "0.0.0.0").wait(PATIENCE) == 0, journal(service)
    assert status(call(service.port)) == 200
    with socket.create_connection(("127.0.0.2", service.port)):
        pass


def test_an_address_that_fails_after_the_switch_is_given_back(service: Service) -> None:
    service.environment["VLLM_STANDIN"] = "die-at-start=3"
    reload = service.reload("--host", "0.0.0.0")
    assert reload.wait(PATIENCE) == 1
    service.hear("READY=1")
    assert status(call(service.port)) == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", service.port))


def test_a_stop_in_the_middle_ends_both(service: Service) -> None:
    main = service.process
    assert main is not None
    reload = stalled(service, "stall=load")
    service.substate("stop-sigterm", job="7 x.service stop running")
    main.terminate()
    assert main.wait(PATIENCE) == 0
    assert reload.wait(PATIENCE) == 1
    wait_until(lambda: service.ours() == [])
    with pytest.raises(ConnectionRefusedError):
        call(service.port)


def test_a_next_engine_for_which_there_is_no_room_is_started_at_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_launcher.has_room()
    monkeypatch.setattr(vllm_launcher, "STANDBY_MEMORY", 1 << 60)
    assert not vllm_launcher.has_room()


def test_a_stranger_who_says_nothing_or_nonsense_changes_nothing(service: Service) -> None:
    for words in (b"", b"{", b"[]", b'{"is": "what"}', b'{"is": "switch"}', b'{"is": "done"}'):
        connection = vllm_handover.connect(str(service.run))
        assert connection is not None
        connection.send(words) if words else connection.close()
        if words:
            assert vllm_handover.receive(connection) == ({}, [])
    assert status(call(service.port)) == 200
    assert service.reload(*WIDER).wait(PATIENCE) == 0
