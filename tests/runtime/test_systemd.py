"""What launcher, supervisor and watcher share of systemd's word to them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from installer.runtime import vllm_keeper
from installer.runtime.vllm_systemd import descendants, notify, say, seconds, stat


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7", 7.0), ("0", 0.0), ("0.5", 0.5),
        *((text, 30.0) for text in ("", "-1", "long", "1e9", "nan", "inf", " 7", "7s", "٧", "9" * 12)),
    ],
)  # fmt: skip
def test_a_time_that_makes_no_sense_is_the_usual_one(monkeypatch: pytest.MonkeyPatch, text: str, found: float) -> None:
    """A drop-in can say anything, and a supervisor that stumbled over it would end the service in a handover."""
    monkeypatch.setenv("DRAIN", text)
    assert seconds("DRAIN") == found


def test_unsaid_it_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("START_PATIENCE_SEC", raising=False)
    assert seconds("START_PATIENCE_SEC") == 300.0


HOSTILE = "two\n<2>forged\nREADY=1\x1b[2J\u202e"


def test_a_line_of_the_journal_is_one_whoever_had_a_word_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    say(HOSTILE)
    said = capsys.readouterr().err
    assert said == "vllm-launcher: two <2>forged READY=1\\x1b[2J\\u202e\n"


def test_a_word_to_systemd_is_one_line_whoever_had_a_word_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        notify(f"STATUS={HOSTILE}")
        assert systemd.recv(4096).decode() == "STATUS=two <2>forged READY=1\\x1b[2J\\u202e"


def test_a_process_may_call_itself_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen bytes of its own choice, in which the kernel may have cut a letter in two."""
    words = "open('/proc/self/comm', 'wb').write(b'\\xff) \\xfe'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert stat(child.pid)[1] == str(os.getpid())
        assert child.pid in descendants(os.getpid())
        assert child.pid in vllm_keeper.descendants()
        child.kill()
