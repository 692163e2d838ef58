"""The host's files, below a temporary root: changed in one step, read and removed whatever others put there."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from installer.base.errors import Refused
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.trees import BATCH, opened
from tests.kit.boot.surroundings import REPO

FILE = Path("/etc/app/app.conf")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


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


# Where a user says


def test_a_file_goes_where_a_user_says_and_over_no_other_unasked(host: Host) -> None:
    host.make_dir(FILE.parent)
    host.write_out(FILE, "a\n", force=False)
    with pytest.raises(Refused, match="is there already"):
        host.write_out(FILE, "b\n", force=False)
    assert (host.read(FILE), host.mode(FILE)) == ("a\n", 0o644)
    host.write_out(FILE, "c\n", force=True)
    assert (host.read(FILE), host.mode(FILE)) == ("c\n", 0o644)
    assert host.children(FILE.parent) == [FILE]
    for nowhere in (FILE / "below", Path("/none/x")):
        with pytest.raises(Refused, match="there is no directory"):
            host.write_out(nowhere, "x", force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "endless"])
def test_what_is_no_file_is_never_written_over_or_through(host: Host, kind: str, force: bool) -> None:
    planted(kind, host.at(FILE))
    before = host.at(FILE).lstat()
    with pytest.raises(Refused):
        host.write_out(FILE, "mine\n", force=force)
    assert host.at(FILE).lstat() == before
    assert kind != "link" or host.at(FILE).with_name("secret").read_text() == "root's\n"
    assert len(host.children(FILE.parent)) == 1 + (kind == "link")


def test_links_of_ones_own_lead_to_a_directory(host: Host) -> None:
    host.make_dir(FILE.parent)
    host.at(Path("/direct")).symlink_to(host.at(FILE.parent))
    host.at(Path("/etc/by")).symlink_to("../direct")
    host.at(Path("/loop")).symlink_to("loop")
    host.write_out(Path("/etc/by/../by/../../etc/by/new"), "x", force=False)
    assert host.read(FILE.with_name("new")) == "x"
    with pytest.raises(OSError, match="Too many levels"):
        host.write_out(Path("/loop/new"), "x", force=False)


@pytest.mark.root
@pytest.mark.parametrize("force", [False, True])
def test_a_link_of_somebody_else_leads_nowhere(host: Host, force: bool) -> None:
    host.make_dir(FILE.parent)
    link = host.at(Path("/shared"))
    link.symlink_to(host.at(FILE.parent))
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(OSError, match="Too many levels"):
        host.write_out(Path("/shared/new"), "x", force=force)
    assert host.children(FILE.parent) == []


def test_a_tree_of_any_depth_goes_and_nothing_beside_it(host: Host) -> None:
    """Deeper than a path can be long, than Python can recurse and than a process may have open files."""
    theirs = host.root / "theirs"
    theirs.mkdir()
    (theirs / "kept").touch()
    (host.root / "tree").mkdir()
    here = os.open(host.root / "tree", os.O_RDONLY)
    for depth in range(1200):
        os.mkdir("d" * 200, dir_fd=here)
        os.symlink(theirs, "link", dir_fd=here)
        os.close(os.open(f"file{depth}", os.O_CREAT, dir_fd=here))
        os.mkdir(f".{depth}", dir_fd=here)  # names that a removal might choose itself
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
        host.remove(Path("/tree"))
        assert {path.name for path in host.children(Path("/"))} == {"theirs"}
        assert (theirs / "kept").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        subprocess.run(["rm", "-rf", host.root / "tree"], check=True)  # pytest itself cannot


def test_a_link_that_takes_a_directory_s_place_is_not_entered(host: Host) -> None:
    (host.root / "theirs").mkdir()
    (host.root / "link").symlink_to("theirs")
    with opened(host.root) as parent, pytest.raises(NotADirectoryError), opened("link", parent):
        pass


def test_a_directory_of_many_entries_goes(host: Host) -> None:
    (host.root / "tree/sub").mkdir(parents=True)
    for number in range(BATCH + 10):
        (host.root / f"tree/sub/{number}").touch()
    host.remove(Path("/tree"))
    assert not host.exists(Path("/tree"))
