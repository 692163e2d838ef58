"""The host, seen from a temporary root: files change in one step, processes run in a small fixed environment."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from installer.errors import CommandFailed, InstallError, Refused
from installer.host import Host

REPO = Path(__file__).resolve().parent.parent
FILE = Path("/etc/app/app.conf")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def command(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "command"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return path


# Files


def test_a_file_is_written_below_the_root_with_its_mode_whatever_the_umask(host: Host) -> None:
    before = os.umask(0o077)
    try:
        host.write(FILE, "text\n")
        host.write(Path("/etc/app/secret"), "s", 0o600)
    finally:
        os.umask(before)
    assert (host.root / "etc/app/app.conf").read_text() == "text\n"
    assert (host.read(FILE), host.mode(FILE), host.mode(Path("/etc/app/secret"))) == ("text\n", 0o644, 0o600)
    assert [stat.S_IMODE((host.root / d).stat().st_mode) for d in ("etc", "etc/app")] == [0o755, 0o755]


def test_what_is_absent_reads_as_none(host: Host) -> None:
    host.write(FILE, "")
    for path in (Path("/nowhere"), FILE / "below-a-file"):
        assert (host.read(path), host.mode(path), host.exists(path), host.children(path)) == (None, None, False, [])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_any_file_is_read_and_written_back_byte_for_byte(host: Host, data: bytes) -> None:
    host.make_dir(FILE.parent)
    host.at(FILE).write_bytes(data)
    text = host.read(FILE)
    assert text is not None
    host.write(FILE, text)
    assert host.at(FILE).read_bytes() == data


def test_files_are_utf8_whatever_the_locale(host: Host) -> None:
    host.make_dir(FILE.parent)
    host.at(FILE).write_text("名=é\n", encoding="utf-8")
    script = (
        "from pathlib import Path; from installer.host import Host; "
        f"host = Host(Path({str(host.root)!r})); text = host.read(Path({str(FILE)!r})); "
        "host.write(Path('/copy'), text); assert text == '\\u540d=\\xe9\\n', ascii(text)"
    )
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=REPO, check=True)
    assert (host.root / "copy").read_bytes() == "名=é\n".encode()


def test_a_link_is_replaced_and_what_it_pointed_to_stays(host: Host) -> None:
    elsewhere = host.root / "elsewhere"
    elsewhere.write_text("theirs")
    host.make_dir(FILE.parent)
    host.at(FILE).symlink_to(elsewhere)
    host.write(FILE, "ours")
    assert (elsewhere.read_text(), host.read(FILE), host.at(FILE).is_symlink()) == ("theirs", "ours", False)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(host: Host) -> None:
    host.write(FILE, "old")
    with pytest.raises(UnicodeEncodeError):
        host.write(FILE, "new \ud800")
    host.make_dir(Path("/etc/app/busy"))
    with pytest.raises(OSError, match="busy"):
        host.write(Path("/etc/app/busy"), "new")
    assert host.read(FILE) == "old"
    assert host.children(FILE.parent) == [FILE, Path("/etc/app/busy")]


def test_a_writer_killed_half_way_leaves_nothing_that_a_rerun_does_not_clear(host: Host) -> None:
    host.write(FILE, "old")
    script = (
        "import os, signal; from pathlib import Path; from installer.host import Host; "
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL); "
        f"Host(Path({str(host.root)!r})).write(Path({str(FILE)!r}), 'new')"
    )
    died = subprocess.run([sys.executable, "-c", script], cwd=REPO, check=False)
    assert died.returncode == -signal.SIGKILL
    assert host.read(FILE) == "old"
    host.write(FILE, "new")
    assert (host.read(FILE), host.children(FILE.parent)) == ("new", [FILE])


def test_readers_see_the_old_text_or_the_new(host: Host) -> None:
    texts = ["a" * 100_000, "b" * 100_000]
    host.write(FILE, texts[0])
    done = threading.Event()

    def rewrite() -> None:
        for turn in range(60):
            host.write(FILE, texts[turn % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(host.read(FILE))
    writer.join()
    assert seen <= set(texts)


def test_removing(host: Host) -> None:
    theirs = host.root / "theirs"
    theirs.mkdir()
    (theirs / "kept").touch()
    host.write(Path("/opt/tree/deep/file"), "")
    (host.root / "opt/tree/link").symlink_to(theirs)
    (host.root / "opt/link").symlink_to(theirs)
    host.remove_empty_dir(Path("/opt/tree"))
    assert host.exists(Path("/opt/tree/deep/file"))
    for path in (Path("/opt/tree"), Path("/opt/link"), Path("/opt/absent")):
        host.remove(path)
        assert not host.exists(path)
    host.remove_empty_dir(Path("/opt"))
    host.remove_empty_dir(Path("/absent"))
    assert not host.exists(Path("/opt"))
    assert (theirs / "kept").exists()


# Processes


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


# The lock


def test_the_lock_is_held_by_one_and_says_by_whom(host: Host) -> None:
    lock = Path("/run/app.lock")
    with host.lock(lock, "app deploy"), pytest.raises(Refused) as caught, host.lock(lock, "app other"):
        pass
    assert f"app deploy (pid {os.getpid()})" in caught.value.message
    with host.lock(lock, "app again"):
        assert host.read(lock) == f"app again (pid {os.getpid()})\n"


def test_the_lock_ends_with_its_holder(host: Host) -> None:
    script = (
        "import os, signal; from pathlib import Path; from installer.host import Host\n"
        f"with Host(Path({str(host.root)!r})).lock(Path('/run/app.lock'), 'x'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=REPO, check=False).returncode == -signal.SIGKILL
    with host.lock(Path("/run/app.lock"), "next"):
        pass
