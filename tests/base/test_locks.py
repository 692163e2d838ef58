"""The host's locks: held by one, whom all can see, and by root alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.locks import Busy
from tests.kit.boot.surroundings import REPO

LOCK = Path("/run/app/app.change")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


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


def test_who_is_not_root_is_told_no_command_that_was_not_typed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Refused, match="only root can change") as caught, host.lock(LOCK, "vllm-install set PORT=1"):
        pass
    assert caught.value.hint == "run the command as root (sudo)"
