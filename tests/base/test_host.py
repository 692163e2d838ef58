"""The host, seen from a temporary root: files change in one step, processes run in a small fixed environment."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from installer.base.errors import CommandFailed, InstallError
from installer.base.host import Busy, Host, Strange
from installer.base.trees import BATCH
from tests.kit.boot.surroundings import REPO

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
        "from pathlib import Path; from installer.base.host import Host; "
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
        "import os, signal; from pathlib import Path; from installer.base.host import Host; "
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


LOCK = Path("/run/app/app.change")


def test_the_lock_is_held_by_one_and_says_by_whom(host: Host) -> None:
    with host.lock(LOCK, "app deploy"), pytest.raises(Busy) as caught, host.lock(LOCK, "app other"):
        pass
    assert f"app deploy (pid {os.getpid()})" in caught.value.message
    assert host.lock_holder(LOCK) is None
    with host.lock(LOCK, "app again"):
        holder = host.lock_holder(LOCK)
        assert holder is not None
        assert holder.command == f"app again (pid {os.getpid()})"
    assert host.lock_holder(LOCK) is None


def hold(host: Host, end: str) -> subprocess.Popen[str]:
    """A process that holds the lock, and then does what `end` says."""
    script = (
        "import os, signal; from pathlib import Path; from installer.base.host import Host\n"
        f"with Host(Path({str(host.root)!r})).lock(Path({str(LOCK)!r}), 'x'): print(flush=True); {end}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPO, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_the_lock_ends_with_its_holder(host: Host) -> None:
    with hold(host, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.wait() == -signal.SIGKILL
    assert host.lock_holder(LOCK) is None, "a note that a killed process left is nobody's"
    with host.lock(LOCK, "next"):
        pass


def test_a_lock_that_is_waited_for_is_given_when_it_is_free(host: Host) -> None:
    holders = []
    with hold(host, "input()") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()

        def release(holder: str) -> None:
            holders.append(holder)
            process.communicate("\n")

        with host.lock(LOCK, "mine", release):
            assert host.lock_holder(LOCK) is not None
    assert holders == [f"x (pid {process.pid})"]


@pytest.mark.root
def test_nobody_but_root_can_hold_the_lock_and_all_can_see_who_does() -> None:
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
    before = os.umask(0)
    try:
        with tempfile.TemporaryDirectory() as root:
            os.chmod(root, 0o755)
            host = Host(Path(root))
            with host.lock(LOCK, "app deploy"):
                hold = [*nobody, "flock", "-n", host.at(LOCK), "true"]
                held = subprocess.run(hold, check=False, capture_output=True)
                look = [*nobody, "cat", host.at(LOCK.with_name("app.change.now"))]
                seen = subprocess.run(look, check=False, capture_output=True, text=True)
            modes = host.mode(LOCK), host.mode(LOCK.parent)
    finally:
        os.umask(before)
    assert b"ermission denied" in held.stderr
    assert seen.stdout == f"app deploy (pid {os.getpid()})\n"
    assert modes == (0o600, 0o755)


def test_a_link_in_the_place_of_a_lock_is_not_followed(host: Host) -> None:
    host.make_dir(LOCK.parent)
    host.at(LOCK).symlink_to(host.root / "elsewhere")
    with pytest.raises(OSError, match="Too many levels"), host.lock(LOCK, "x"):
        pass
    assert not (host.root / "elsewhere").exists()


# What others may write


def planted(kind: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.with_name("secret"))
        path.with_name("secret").write_text("root's\n")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(1 << 40)


KINDS = ("pipe", "socket", "directory", "link", "loop", "device", "endless")


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_put_in_a_files_place_is_neither_followed_nor_waited_for(host: Host, kind: str) -> None:
    planted(kind, host.at(FILE))
    with pytest.raises((Strange, IsADirectoryError)):
        host.read_of(FILE, (os.getuid(),), 1000)
    if kind == "link":
        assert host.read(FILE) == "root's\n"  # where only root writes, a link is somebody's wish
    else:
        with pytest.raises((Strange, IsADirectoryError)):
            host.read(FILE)


def test_a_file_of_another_owner_is_none(host: Host) -> None:
    host.write(FILE, "x")
    assert host.read_of(FILE, (os.getuid(),), 1) == "x"
    for owners, longest in (((os.getuid() + 1,), 10), ((), 10), ((os.getuid(),), 0)):
        with pytest.raises(Strange):
            host.read_of(FILE, owners, longest)
    assert host.read_of(FILE.with_name("absent"), (), 1) is None


def test_a_masked_unit_reads_as_empty(host: Host) -> None:
    host.make_dir(FILE.parent)
    host.at(FILE).symlink_to("/dev/null")
    assert host.read(FILE) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_lies_there_is_replaced(host: Host, kind: str) -> None:
    planted(kind, host.at(FILE))
    secret = host.at(FILE).with_name("secret")
    host.write_into(FILE.parent, FILE.name, "mine\n")
    assert host.read_of(FILE, (os.getuid(),), 10) == "mine\n"
    assert host.mode(FILE) == 0o600
    assert not secret.exists() or secret.read_text() == "root's\n"
    assert {path.name for path in host.children(FILE.parent)} <= {FILE.name, "secret"}


def test_a_tree_of_any_depth_goes_and_nothing_beside_it(host: Host) -> None:
    """Deeper than a path can be long, than Python can recurse and than a process may have open files."""
    theirs = host.root / "theirs"
    theirs.mkdir()
    (theirs / "kept").touch()
    (host.root / "tree").mkdir()
    here = os.open(host.root / "tree", os.O_RDONLY)
    for depth in range(3000):
        os.mkdir("d" * 200, dir_fd=here)
        os.symlink(theirs, "link", dir_fd=here)
        os.close(os.open(f"file{depth}", os.O_CREAT, dir_fd=here))
        os.mkdir(f".{depth}", dir_fd=here)  # names that a removal might choose itself
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    host.remove(Path("/tree"))
    assert {path.name for path in host.children(Path("/"))} == {"theirs"}
    assert (theirs / "kept").exists()


def test_a_directory_of_many_entries_goes(host: Host) -> None:
    (host.root / "tree/sub").mkdir(parents=True)
    for number in range(BATCH + 10):
        (host.root / f"tree/sub/{number}").touch()
    host.remove(Path("/tree"))
    assert not host.exists(Path("/tree"))
