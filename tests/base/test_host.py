"""The host, seen from a temporary root: processes run in a small fixed environment, and end with us."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from installer.base.errors import CommandFailed, InstallError
from installer.base.host import Host
from installer.base.locks import Busy


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def command(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "command"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return path


def test_arguments_arrive_as_they_are(host: Host, tmp_path: Path) -> None:
    words = ["a b", "$HOME", "`id`", '"', "'", "", ";", "*", "é", "line\nbreak"]
    ran = host.run(command(tmp_path, "import sys; print(sys.argv[1:])"), *words)
    assert (ran.stdout, ran.returncode) == (f"{words}\n", 0)


def test_a_child_gets_a_small_environment_and_a_closed_stdin(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    script = "import os, sys; print(sys.stdin.read() == '', sorted(os.environ.items()))"
    shown = host.run(command(tmp_path, script), env={"EXTRA": "1"}).stdout
    assert shown.startswith("True")
    for expected in ("('EXTRA', '1')", "('LC_ALL', 'C.UTF-8')", "('https_proxy', 'http://proxy:3128')"):
        assert expected in shown
    assert not any(name in shown for name in ("HF_TOKEN", "secret", "LD_PRELOAD", "PYTHONPATH", "zh_CN"))


def test_stdin_is_what_is_given(host: Host) -> None:
    assert host.run("cat", stdin="text").stdout == "text"


def test_a_failure_says_what_the_command_said_last(host: Host, tmp_path: Path) -> None:
    failing = command(
        tmp_path, "import sys; print('out'); [print(n, file=sys.stderr) for n in range(100)]; sys.exit(3)"
    )
    with pytest.raises(CommandFailed) as caught:
        host.run(failing)
    assert caught.value.returncode == 3
    assert caught.value.message.startswith(f"{failing} failed with exit status 3:\n88\n")
    assert caught.value.message.endswith("\n99")
    assert host.run(failing, check=False).returncode == 3


def test_a_command_that_is_not_there_is_named(host: Host) -> None:
    with pytest.raises(InstallError, match="no-such-thing: no such command"):
        host.run("no-such-thing")


def test_output_that_is_no_text_is_survived(host: Host, tmp_path: Path) -> None:
    assert host.run(command(tmp_path, r"import os; os.write(1, b'a\xff\n')")).stdout == "a�\n"


def test_a_command_past_its_time_is_ended(host: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InstallError, match="no answer from"):
        host.run("cat", fifo, timeout=0.2)


def test_lines_are_followed_while_the_other_stream_overflows_its_pipe(host: Host, tmp_path: Path) -> None:
    script = "import sys; sys.stdout.write('x' * 1_000_000); [print('line', n, file=sys.stderr) for n in range(3)]"
    seen: list[str] = []
    ran = host.run(command(tmp_path, script), on_line=seen.append)
    assert (seen, len(ran.stdout), ran.stderr) == (
        ["line 0", "line 1", "line 2"],
        1_000_000,
        "line 0\nline 1\nline 2\n",
    )


def test_an_interruption_ends_the_command(host: Host, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        raise Stop(line)

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"import os, sys; print(os.getpid(), file=sys.stderr, flush=True); open({str(fifo)!r}).read()"
    with pytest.raises(Stop) as caught:
        host.run(command(tmp_path, script), on_line=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(caught.value)), 0)


def test_systemctl_works_on_the_root_alone(host: Host) -> None:
    host.write(
        Path("/etc/systemd/system/a.service"), "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    )
    host.systemctl("enable", "a.service")
    link = Path("/etc/systemd/system/multi-user.target.wants/a.service")
    assert host.exists(link)
    host.systemctl("disable", "a.service")
    assert not host.exists(link)


# Asking what may never answer

# Killed, it stays until whoever traces it lets go: as below a wedged driver, nobody can wait for its end.
UNKILLABLE = """
import ctypes, os, signal, sys
libc, ready = ctypes.CDLL(None, use_errno=True), os.pipe()
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # anybody may trace it
traced = os.getpid()
if not os.fork():
    os.closerange(0, 3)
    os.setsid()
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    seized = libc.ptrace(0x4206, traced, None, None)
    os.write(ready[1], b"1" if seized == 0 else b"0")
    with open(sys.argv[1]) as fifo:
        fifo.read()
    os._exit(0)
assert os.read(ready[0], 1) == b"1"
print("first", flush=True)
signal.pause()
"""


def test_a_process_that_cannot_die_is_left_behind_and_no_second_one_joins_it(host: Host, tmp_path: Path) -> None:
    let_go, lock = tmp_path / "let-go", Path("/run/lock")
    os.mkfifo(let_go)
    program = command(tmp_path, UNKILLABLE)
    try:
        assert host.ask(program, let_go, within=10.0, lock=lock) == ("first\n", False)
        with pytest.raises(Busy):
            host.ask("/bin/echo", "second", within=0.2, lock=lock)
    finally:
        with let_go.open("w") as fifo:
            fifo.write("x")
    assert host.ask("/bin/echo", "third", within=180.0, lock=lock) == ("third\n", True)


def test_who_asked_in_vain_gets_back_what_it_waited_for(host: Host) -> None:
    assert host.ask("/bin/sh", "-c", "echo first; exec sleep 60", within=5.0) == ("first\n", False)
    assert host.ask("/bin/echo", "all", within=180.0) == ("all\n", True)
