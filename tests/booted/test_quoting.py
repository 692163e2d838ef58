"""systemd's own reading of what render.py quotes: thousands of argument lists, compared byte for byte."""

from __future__ import annotations

import random

import pytest

from installer.base.errors import UsageError
from installer.units.syntax import quote_exec
from tests.kit.boot.machine import Machine

LISTS = 2500
RECORDER = "/opt/record"
RECORD = "/var/record"

# Words that mean something to systemd or to a shell, alone or at the start of an argument.
SPECIAL = (
    "", " ", "  ", ";", ";;", "\\;", "%", "%%", "%n", "%h/x", "$", "$$", "$HOME", "${HOME}", "$$HOME", "a$HOME", '"',
    "'", '"a b"', "'a b'", "\\", "\\\\", "\\n", "\\x41", "\\u00e9", "\\s", "\\\"", "-", "--", "-v", "@", "@x", "+x",
    "!", "!!x", ":", ":x", "|", "#", "# no comment", "=", "a=b", "{}", "[a]", "*", "?", "~", "~root", "&", "&&", ">x",
    "<", "`id`", "$(id)", "é", "日本語", "\u00a0", "\u2028", "\u200b", "😀", '{"a": ["b", 1]}', "C:\\new\\table", "a;b",
    "; rm", "ends in \\", " lead", "trail ", "a'b\"c", "%%n$$", "$\\", "%\\", "\\%", "\\$",
)  # fmt: skip
LETTERS = "aZ09 \"'\\%$;#=-@+!:|{}[]()<>&*?~`,./é日😀ßn"


def argument_lists() -> list[list[str]]:
    """The same lists every time: each special word alone, then generated ones."""
    generator = random.Random(20260101)

    def word() -> str:
        kind = generator.random()
        if kind < 0.3:
            return generator.choice(SPECIAL)
        if kind < 0.5:
            return generator.choice(SPECIAL) + generator.choice(SPECIAL)
        return "".join(generator.choices(LETTERS, k=generator.randint(0, 12)))

    generated = ([word() for _ in range(generator.randint(0, 6))] for _ in range(LISTS - len(SPECIAL)))
    return [list(one) for one in (*([special] for special in SPECIAL), *generated) if all(w.isprintable() for w in one)]


def test_a_started_process_receives_exactly_what_was_meant(machine: Machine) -> None:
    # NUL ends an argument and is the one thing none can hold; the number of arguments tells the lists apart.
    machine.write(RECORDER, f"#!/bin/sh\nprintf '%s\\0' $# \"$@\" >>{RECORD}\n", 0o755)
    lists = argument_lists()
    lines = [f"ExecStart={quote_exec([RECORDER, *arguments])}" for arguments in lists]
    machine.write("/etc/systemd/system/quoting.service", "\n".join(["[Service]", "Type=oneshot", *lines, ""]))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "quoting.service", timeout=300)
    assert len(lists) > 2000
    assert recorded(machine.at(RECORD).read_bytes()) == [[w.encode() for w in arguments] for arguments in lists]
    assert "quoting.service:" not in machine.journal("--priority=warning", "_PID=1")


def recorded(record: bytes) -> list[list[bytes]]:
    words = iter(record.split(b"\0")[:-1])
    return [[next(words) for _ in range(int(count))] for count in words]


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\ud800"])
def test_what_a_unit_cannot_hold_is_refused(character: str) -> None:
    with pytest.raises(UsageError):
        quote_exec([RECORDER, f"a{character}b"])
