"""The far end of a connection: it answers, holds a lock for whoever asks, and ends what it does when he is gone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Interrupted
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.locks import Busy
from installer.base.report import Report
from installer.group import carry, session
from installer.group.member import Ran, Run
from installer.group.reach import Connection, Lost
from installer.group.session import Session
from installer.runtime.vllm_text import LONGEST
from installer.verbs import hosts as verbs

LAYOUT = Layout("qwen3vl")


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A signal is an exception, as in the command line."""

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


class Pipe:
    """What one end writes and the other reads."""

    def __init__(self) -> None:
        came, goes = os.pipe()
        self.reads, self.writes = os.fdopen(came), os.fdopen(goes, "w", buffering=1)

    def say(self, **request: Any) -> None:
        self.writes.write(json.dumps({"service": "qwen3vl", **request}) + "\n")


def serve(host: Host, run: Run, talk: Callable[[Pipe, Callable[[], Any]], None]) -> None:
    """A session in this thread, as a process has it; whoever asks is in another."""
    to, back = Pipe(), Pipe()
    failed: list[BaseException] = []

    def asking() -> None:
        try:
            talk(to, lambda: json.loads(back.reads.readline()))
        except BaseException as error:
            failed.append(error)
        finally:
            to.writes.close()

    thread = threading.Thread(target=asking)
    thread.start()
    Session(to.reads, back.writes, host, lambda note: run).serve()
    back.writes.close()
    thread.join()
    if failed:
        raise failed[0]


def idle(words: Sequence[str], text: str, environment: Mapping[str, str]) -> Ran:
    return Ran(0, f"{list(words)} {text} {dict(environment)}")


def test_it_answers_what_it_is_asked_and_refuses_what_it_does_not_know(host: Host) -> None:
    def talk(to: Pipe, heard: Callable[[], Any]) -> None:
        assert heard() == {"ready": session.READY}
        to.say(do="run", words=["set", "--", "PORT=1; reboot"], text="a key", environment={"PORT": "1"})
        assert heard()["answer"]["out"] == "['set', '--', 'PORT=1; reboot'] a key {'PORT': '1'}"
        to.say(do="reboot")
        assert "does not know what it is asked: reboot" in heard()["error"]["message"]
        to.say(do="look", service="../etc")
        assert "cannot be a service name" in heard()["error"]["message"]

    serve(host, idle, talk)


def test_the_lock_of_the_group_is_held_for_as_long_as_somebody_is_there(host: Host) -> None:
    def talk(to: Pipe, heard: Callable[[], Any]) -> None:
        heard()
        to.say(do="lock", what="vllm-install set --service qwen3vl")
        assert heard() == {"answer": None}
        with pytest.raises(Busy, match="vllm-install set"), host.lock(LAYOUT.group_lock, "another"):
            pass

    serve(host, idle, talk)
    with host.lock(LAYOUT.group_lock, "another"):
        pass


@pytest.mark.parametrize("how", ["ends", "says nothing", "stops it"])
def test_what_runs_undoes_itself_when_whoever_asked(how: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LEASE", 2 if how == "says nothing" else 60)
    runs, undone, over = threading.Event(), threading.Event(), threading.Event()

    def run(words: Sequence[str], text: str, environment: Mapping[str, str]) -> Ran:
        try:
            runs.set()
            while not over.wait(0.1):  # a signal that came just before a longer wait would be seen after it
                pass
        except Interrupted:
            undone.set()
            raise
        return Ran(0)

    def talk(to: Pipe, heard: Callable[[], Any]) -> None:
        heard()
        to.say(do="run", words=["set"])
        while not runs.wait(0.1):
            to.writes.write("\n")  # a word of life, until it is to be missed
        if how == "ends":
            return
        if how == "says nothing":
            assert undone.wait(180)
        if how == "stops it":
            to.say(do="stop")
        assert "interrupted by SIGTERM" in heard()["error"]["message"]
        over.set()

    serve(host, run, talk)
    assert undone.is_set()


def test_a_note_is_one_line_and_harmless() -> None:
    said: list[dict[str, Any]] = []
    session.Notes(said.append).warn("a\nb\x1b[2J" + "x" * 1000)
    assert said[0]["note"].startswith("warning: a b\\x1b[2J")
    assert len(said[0]["note"]) == LONGEST


def test_a_verb_reads_its_own_input_and_settings_and_leaves_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    @click.command()
    @click.argument("words", nargs=-1)
    def root(words: tuple[str, ...]) -> None:
        click.echo(f"{sys.stdin.read()} {os.environ.get('PORT')} {os.environ.get('LD_PRELOAD')}")
        click.echo("progress", err=True)
        if words:
            sys.exit(int(words[0]))

    notes: list[str] = []
    ran = verbs._run(root, [], "a key", {"PORT": "8001", "LD_PRELOAD": "x"}, notes.append)
    assert ran == Ran(0, "a key 8001 None\n")
    assert notes == ["progress"]
    assert "PORT" not in os.environ
    assert verbs._run(root, ["7"], "", {}, notes.append).code == 7
    assert verbs._run(root, ["--what"], "", {}, notes.append).code == 2


# What whoever asks hears of it


def asked(says: str) -> str:
    """The message about a host that, at the other end, does this."""
    script = f"import os, sys, time\n{says}"
    with Host().conversing(sys.executable, "-c", script) as process:
        connection = Connection("gpu1", "qwen3vl", process, Report())
        try:
            connection.open("en", here=True)
            return f"answered {connection.ask('look')}"
        except Lost as gone:
            return gone.message
        finally:
            process.kill()


@pytest.mark.parametrize("line", ["'{'", "'{]'", "'{\"a\": ' * 100_000"])
def test_a_host_that_says_nonsense_is_lost_and_ends_nothing_here(line: str) -> None:
    says, puzzling = f"print({line}, flush=True)", "gpu1: it says what nobody understands"
    assert asked(says) == puzzling
    stays = "sys.stdin.read()"  # or what is asked may meet an end that is closed
    assert asked(f'print(\'{{"ready": "{session.READY}"}}\', flush=True)\n{says}\n{stays}') == puzzling


def test_a_complaint_without_an_end_is_not_waited_for() -> None:
    said = asked("sys.stderr.write('x' * 100_000)\nsys.stderr.flush()\nos.close(1)\ntime.sleep(60)")
    assert said.startswith("gpu1: xxx")


# What is carried


def test_what_is_carried_is_a_tool_that_runs(tmp_path: Path) -> None:
    """As the script lays it out, with another Python's idea of where packages lie."""
    with tarfile.open(fileobj=io.BytesIO(carry.parcel().split(b"\n", 1)[1])) as packed:
        packed.extractall(tmp_path, filter="data")
    (tmp_path / "bin/python3").symlink_to(sys.executable)
    with (tmp_path / "pyvenv.cfg").open("a") as config:
        config.write(f"home = {Path(sys.executable).resolve().parent}\n")
    (tmp_path / f"lib/python3.{sys.version_info[1]}").symlink_to("python3")
    command = [tmp_path / "bin/python3", "-I", "-c", "from installer.group import carry; print(carry.digest())"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == carry.digest(), said.stderr
    told = subprocess.run(
        [tmp_path / "bin/python3", "-I", "-m", "installer", "--version"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr


def test_every_shell_gets_one_line_that_names_nothing_that_was_typed() -> None:
    line = carry.remote_command()
    assert "\n" not in line
    assert "!" not in line, "csh would look for it in its history"
    assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0


HOLDS = """
import fcntl, os, sys
lock = os.path.join(os.path.realpath(sys.prefix), "lock")
with open(lock) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("held", oct(os.fstat(file.fileno()).st_mode & 0o777))
"""


def test_the_lock_that_the_far_side_waits_for_can_be_opened_by_root_alone(tmp_path: Path) -> None:
    """The script itself, in another place and with a tool that only tells of the lock."""
    script = " ".join(carry.SCRIPT.split()).replace(str(carry.TOP), str(tmp_path))
    script = script.replace(str(carry.COMMAND), str(tmp_path / "command"))
    tool = io.BytesIO()
    with tarfile.open(fileobj=tool, mode="w:gz") as packed:
        carry._add(packed, f"{carry.MODULES}/installer/__main__.py", HOLDS.encode(), executable=False)
        carry._add(packed, "bin/uv", b"", executable=True)
        carry._add(packed, "pyvenv.cfg", b"include-system-site-packages = false\n", executable=False)
    parcel = f"{hashlib.sha256(tool.getvalue()).hexdigest()} {len(tool.getvalue())}\n".encode() + tool.getvalue()
    for digest, sent in (("1", parcel), ("1", b""), ("2", parcel)):
        done = subprocess.run(["sh", "-c", script], input=f"en {digest}\n".encode() + sent, capture_output=True)
        assert done.stdout.splitlines()[-1:] == [b"held 0o600"], done
    assert [path.name for path in tmp_path.glob("carried-*")] == ["carried-2"]
