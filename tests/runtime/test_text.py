"""Of what others wrote a terminal obeys nothing, no journal holds a line in our name, and no password is shown."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.host import Host
from installer.model.model_about import About, read_directory
from installer.runtime.vllm_text import KEPT, command, harmless, one_line, without_password
from installer.units import processes
from tests.kit.boot.surroundings import REPO

HOSTILE = "\x1b]0;mine\x07\x1b[2J\x9b31m\x00\r\n<2>forged\u202e\u2066\u200b\u2028\x7f\udcff"
ANY = st.text(st.one_of(st.sampled_from(HOSTILE), st.characters()))


@given(ANY)
def test_nothing_is_left_that_steers_a_terminal(text: str) -> None:
    assert all(c.isprintable() or c in KEPT for c in harmless(text))
    shown = one_line(text)
    assert "\n" not in shown
    assert "\t" not in shown
    assert len(shown) <= 400


@pytest.mark.parametrize("text", ["", "plain", "通义千问\u3000视觉", "two\nlines\n", "a\tb", "e\u0301", "🙂"])
def test_what_people_write_comes_through(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("/usr/bin/db\0--password\0hunter2\0", "/usr/bin/db"),
        ("db --password hunter2", "db"),  # a process that gave itself a title
        ("db\0password=hunter2\0serve\0", "db"),
        ("db\0mysql://u:hunter2@host/x\0", "db"),
        ("db\0sk-hunter2\0", "db"),
        ("python3\0-m\0vllm.entrypoints\0--api-key\0hunter2\0", "python3 -m vllm.entrypoints"),
        ("db\0-m\0hunter2\0", "db"),
        ("nginx: master process /usr/sbin/nginx -g daemon off;", "nginx: master process /usr/sbin/nginx"),
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("a\nb\0c", "a b c"),
        ("", ""),
    ],
)
def test_of_a_foreign_command_line_the_words_up_to_the_first_option(arguments: str, shown: str) -> None:
    assert command(arguments) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://user:pass@host/simple, http://token@h/", "at https://***@host/simple, http://***@h/"),
        ("https://me:p@ss@mirror/", "https://***@mirror/"),
        ("https://me:a/b@mirror", "https://***@mirror"),
        ("https://mirror/simple", "https://mirror/simple"),
    ],
)
def test_of_a_url_neither_user_nor_password_is_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


@contextmanager
def hostile_process(*words: str) -> Iterator[int]:
    """A process with these arguments; it has them once it says so."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_a_real_process_is_named_without_what_it_was_told() -> None:
    with hostile_process("--password", "hunter2") as pid:
        assert processes.describe(Host(), pid).command == sys.executable


def test_the_name_that_a_driver_gives_is_filtered_too(host: Host) -> None:
    shown = str(processes.describe(host, 4711, f"trainer{HOSTILE} --token hunter2"))
    assert "hunter2" not in shown
    assert one_line(shown) == shown


def test_the_architecture_of_a_model_is_one_word_on_one_line(tmp_path: Path) -> None:
    assert About({"architectures": [f"X{HOSTILE}"]}).architectures == (one_line(f"X{HOSTILE}"),)
    (tmp_path / "config.json").write_text('{"architectures": ["A\\n<2>forged\\u001b[2J"]}')
    assert read_directory(tmp_path).architectures == ("A <2>forged\\x1b[2J",)


# Where all text goes out


def out_of(script: str, *, terminal: bool = False) -> bytes:
    """What a script that writes as our command line does sends to a pipe, or to a terminal."""
    code = f"from installer.base import report; report.protect_terminal()\nTEXT = {HOSTILE!r}\n{script}"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO), "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    command = [sys.executable, "-c", code]
    if not terminal:
        done = subprocess.run(command, env=environment, capture_output=True, check=True, stdin=subprocess.DEVNULL)
        return done.stdout + done.stderr
    ours, its = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # nobody is at the other end any more
        pass
    os.close(ours)
    assert process.wait() == 0, said
    return said


WAYS = {
    "print": "print(TEXT)",
    "stderr": "import sys; print(TEXT, file=sys.stderr)",
    "click": "import click; click.echo(TEXT); click.echo(TEXT, err=True)",
    "note": "r = report.choose(quiet=False); r.note(TEXT); r.warn(TEXT)",
    "wait": "r = report.choose(quiet=False)\nwith r.waiting(TEXT) as say: say(TEXT); r.note(TEXT)",
    "bytes": "r = report.choose(quiet=False)\nwith r.bytes(TEXT, 9) as on: on(9); r.warn(TEXT); print(TEXT)",
    "table": "from rich.table import Table; t = Table(TEXT); t.add_row(TEXT); report.console().print(t)",
    "traceback": "import sys, traceback\ntry: raise ValueError(TEXT)\nexcept ValueError: traceback.print_exc()",
}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_the_terminal_leads_around_the_filter(way: str, terminal: bool) -> None:
    said = out_of(WAYS[way], terminal=terminal)
    assert b"forged" in said
    for code in (b"\x1b]0", b"\x1b[2J", b"\x07", b"\x7f", "\x9b".encode(), "\u202e".encode(), "\u2028".encode()):
        assert code not in said, said


def test_the_colours_of_a_live_screen_are_still_there() -> None:
    script = WAYS["table"] + "; report.console().print('[bold]x', style='red')"
    said = out_of(script, terminal=True)
    assert b"\x1b[31m" in said
    assert b"[bold]x" in re.sub(rb"\x1b\[[\d;]*m", b"", said)  # a text is no markup


def test_what_a_hand_written_script_holds_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    script = tmp_path / "serve.sh"
    script.write_text("vllm serve m --api-key sk-0123456789abcdef0123456789abcdef --seed '\x1b[2J\x1b]0;mine\x07'\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO), "LC_ALL": "C.UTF-8", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "installer", "adopt", str(script)], env=environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.returncode != 1, done
    assert "\x1b" not in done.stdout + done.stderr
