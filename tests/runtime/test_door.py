"""The door of a replica: made by root, kept with the port, and the gateway that comes by it meets what all meet."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_door, vllm_hold, vllm_port
from tests.kit.launched import PATIENCE, USER, Service, wait_until
from tests.runtime.test_hold import REQUEST, answer, status

WRONG = REQUEST.replace(USER.encode(), b"sk-wrong").replace(b"Host", b"X-Forwarded-For: 10.1.2.3\r\nHost")
WIDER = ("--max-model-len", "8192")


@pytest.fixture
def door() -> Iterator[Path]:
    """A socket's path has at most 107 letters."""
    with tempfile.TemporaryDirectory() as home:
        yield Path(home) / "made/q@1.sock"


@pytest.fixture
def service(tmp_path: Path, door: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    service.environment |= {"HOLD": "120", "DOOR": str(door)}
    yield service
    service.end()


def begin(service: Service) -> None:
    """As systemd does, with what root does before."""
    assert service.once("check", serve=None).returncode == 0
    service.start()


def serve(service: Service) -> None:
    begin(service)
    service.hear("READY=1")


def knock(door: Path, request: bytes = REQUEST) -> socket.socket:
    """Whoever comes by it, and waits for an answer."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(door))
    connection.sendall(request)
    return connection


def place_of(door: Path) -> str:
    """The socket that listens there, as descriptors of it are shown."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return next(f"socket:[{row[6]}]" for row in rows if row[3] == "00010000" and row[-1] == str(door))


def opened(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(each))
    return found


# Made


def test_the_gateway_alone_may_come_and_nobody_may_put_another_in_its_place(service: Service, door: Path) -> None:
    """By the service's own group; the directory is root's."""
    os.chown(service.run, -1, 54321)
    assert service.once("check", serve=None).returncode == 0
    assert (stat.S_IMODE(door.stat().st_mode), door.stat().st_gid) == (0o660, 54321)
    assert stat.S_IMODE(door.parent.stat().st_mode) == 0o755
    assert list(service.store) == ["door"]
    with pytest.raises(ConnectionRefusedError):
        knock(door)


def test_what_lies_in_its_place_is_taken_away_and_no_link_is_followed(service: Service, door: Path) -> None:
    door.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{door}.other")
        other.listen()
        door.symlink_to(f"{door}.other")
        assert service.once("check", serve=None).returncode == 0
        assert stat.S_ISSOCK(door.lstat().st_mode)
        assert Path(f"{door}.other").exists()
        assert os.readlink(f"/proc/self/fd/{service.store['door'][0]}") != os.readlink(
            f"/proc/self/fd/{other.fileno()}"
        )


def test_one_that_systemd_has_is_left_even_if_its_queue_is_full(door: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(door))
        listener.listen(0)
        first.connect(str(door))
        made = door.stat().st_ino
        monkeypatch.setattr(vllm_port, "held_by_systemd", lambda: {place_of(door)})
        for _ in range(2):  # the second finds no room in the queue any more
            vllm_door.make(str(door))
            assert door.stat().st_ino == made


def test_one_where_somebody_else_listens_is_replaced(service: Service, door: Path) -> None:
    """To whom an engine gave its own: he would hear what the gateway says when that engine is gone."""
    door.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen(1)
        assert service.once("check", serve=None).returncode == 0
        assert list(service.store) == ["door"]
        with pytest.raises(ConnectionRefusedError):
            knock(door)


def test_what_others_call_their_sockets_is_no_matter(door: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody makes one with a name of bytes or of lines, and the kernel's table of text shows it as it is."""
    door.parent.mkdir()
    with ExitStack() as opened:
        listener, held, *others = (opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4))
        listener.bind(str(door))
        listener.listen(1)
        monkeypatch.setattr(vllm_port, "held_by_systemd", lambda: {f"socket:[{os.fstat(held.fileno()).st_ino}]"})
        held.bind(f"{door}.other")
        held.listen(1)
        forged = f"0: 00000002 00000000 00010000 0001 01 {os.fstat(held.fileno()).st_ino} {door}\n"
        for other, name in zip(others, (b"\0\xff\xfe", f"\0\n{forged}".encode()), strict=True):
            other.bind(name)
            other.listen(1)
        assert f" {os.fstat(held.fileno()).st_ino} {door}" in Path("/proc/net/unix").read_text(errors="replace")
        assert not vllm_door.is_kept(str(door)), "it is another one that systemd has"
        assert list(vllm_door.listening_at(str(door))) == [f"socket:[{os.fstat(listener.fileno()).st_ino}]"]


def test_one_that_somebody_has_beside_systemd_is_not_kept(door: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """He would answer in the next engine's place."""
    door.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen(1)
        monkeypatch.setattr(vllm_port, "held_by_systemd", lambda: {place_of(door)})
        assert vllm_door.is_kept(str(door))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]) as somebody:
            assert not vllm_door.is_kept(str(door))
            somebody.communicate()
        assert vllm_door.is_kept(str(door))


def test_a_start_without_one_is_none(service: Service) -> None:
    """The gateway would find nobody, and nothing would say why."""
    assert service.start().wait(PATIENCE) == 1
    service.hear("STATUS=refused: systemd has handed over no door for the gateway")


# Who comes by it


def test_who_comes_is_answered_and_only_with_a_key(service: Service, door: Path) -> None:
    serve(service)
    assert status(knock(door)) == 200
    assert status(knock(door, WRONG)) == 401
    service.hear("WATCHDOG=1")
    wait_until(lambda: "from 10.1.2.3: an unknown key" in service.log.read_text())


def test_who_comes_while_it_loads_or_after_a_crash_waits(service: Service, door: Path) -> None:
    service.faults("stall=load")
    begin(service)
    service.hear("STATUS=loading weights")
    early = knock(door)
    service.faults("")
    assert status(early) == 200
    service.hear("READY=1")
    os.kill(service.vllm(), signal.SIGKILL)
    service.kill()
    late = knock(door)
    service.start()
    assert status(late) == 200
    assert {name: len(kept) for name, kept in service.store.items()} == {"door": 1, "http": 1, "hold": 1}


def test_the_next_engine_takes_it_over(service: Service, door: Path) -> None:
    serve(service)
    old, waiting = service.vllm(), knock(door, b"")
    reload = service.reload(*WIDER)
    service.hear("MAINPID=")
    assert reload.wait(PATIENCE) == 0
    waiting.close()
    assert service.vllm() != old
    assert '"max_model_len": 8192' in answer(knock(door))
    assert {name: len(kept) for name, kept in service.store.items()} == {"door": 1, "http": 1, "hold": 1}


def test_who_waits_too_long_is_told(service: Service, door: Path) -> None:
    service.environment["HOLD"] = "1"
    service.faults("stall=load")
    begin(service)
    service.hear("STATUS=loading weights")
    assert status(knock(door)) == 503


def test_a_stop_closes_it(service: Service, door: Path) -> None:
    serve(service)
    service.substate("stop-sigterm", job="7 x.service stop running")
    still_held = os.dup(service.store["door"][0])
    assert service.process
    service.process.terminate()
    assert service.process.wait(PATIENCE) == 0
    with pytest.raises(ConnectionRefusedError):
        knock(door)
    os.close(still_held)
    assert service.store == {}


def test_a_start_that_is_the_last_tells_who_waits_and_closes_it(service: Service, door: Path) -> None:
    service.substate("running", limits="Restart=always\nStartLimitBurst=1\nStartLimitIntervalUSec=1h")
    service.faults("stall=load")
    begin(service)
    service.hear("STATUS=loading weights")
    waiting = knock(door)
    os.kill(service.vllm(), signal.SIGKILL)
    assert status(waiting) == 503
    assert service.process
    service.process.wait(PATIENCE)
    wait_until(lambda: "door" not in service.store)


def test_a_configuration_that_is_none_tells_who_waits(service: Service, door: Path) -> None:
    serve(service)
    service.kill()
    waiting = knock(door)
    assert service.start(serve=("serve", "/models/tiny", "--api-key", "x")).wait(PATIENCE) == 78
    assert status(waiting) == 503


def test_where_nobody_waits_it_ends_with_its_engine(service: Service, door: Path) -> None:
    service.environment["HOLD"] = "0"
    serve(service)
    assert "door" not in service.store
    assert status(knock(door)) == 200
    mark = place_of(door)
    assert {pid for pid in service.serving() if mark in opened(pid)} == {service.vllm()}
    service.kill()
    wait_until(lambda: not vllm_door.is_open(str(door)))


# The engine


def test_what_multiprocessing_starts_has_it_as_well() -> None:
    script = f"""
import multiprocessing, os, socket, sys
sys.path.insert(0, {str(RUNTIME)!r})
import vllm_door
def look(said):
    said.send(socket.socket(fileno=int(os.environ[vllm_door.DESCRIPTOR])).getsockname())
if __name__ == "__main__":
    vllm_door.hand_on()
    said, its = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=look, args=(its,))
    child.start()
    its.close()
    print(said.recv())
    child.join()
"""
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX) as door:
        program, place = Path(home) / "main.py", f"{home}/door"
        program.write_text(script)
        door.bind(place)
        done = subprocess.run(
            [sys.executable, str(program)], env={**os.environ, vllm_door.DESCRIPTOR: str(door.fileno())},
            pass_fds=[door.fileno()], capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"{place}\n", "")


def test_of_a_web_server_that_is_not_known_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def answered(state: object) -> object:
        return vllm_door.answer({"app": SimpleNamespace(state=state)})

    assert asyncio.run(answered(SimpleNamespace())) is None
    assert not caplog.messages, "there is none"
    monkeypatch.setenv(vllm_door.DESCRIPTOR, "0")
    with caplog.at_level(logging.WARNING, "vllm.guard"):
        for state in (SimpleNamespace(), SimpleNamespace(server=SimpleNamespace(started=True))):
            assert asyncio.run(answered(state)) is None
    assert [text.partition(":")[0] for text in caplog.messages] == ["the door for the gateway stays closed"] * 2


def test_nor_is_it_silent_about_one_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = SimpleNamespace(started=True, config=SimpleNamespace(backlog=1), server_state=None, lifespan=None)

    async def opened(door: socket.socket) -> None:
        monkeypatch.setenv(vllm_door.DESCRIPTOR, str(door.fileno()))
        opening = vllm_door.answer({"app": SimpleNamespace(state=SimpleNamespace(server=server))})
        assert opening
        await opening

    with socket.socket() as no_door, caplog.at_level(logging.ERROR, "vllm.guard"):
        asyncio.run(opened(no_door))
    assert [text.partition(":")[0] for text in caplog.messages] == ["the door for the gateway stays closed"]


def test_systemd_keeps_it_under_a_name_of_its_own() -> None:
    assert len({vllm_hold.SOCKET, vllm_hold.DOOR, vllm_hold.RECORD}) == 3
