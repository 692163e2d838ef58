"""A service's journal as journalctl shows it, with our explanation under the lines that we recognise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from installer.diagnosis.finding import Finding
from installer.diagnosis.signatures import recognise
from installer.host import Host
from installer.layout import Layout

HUMAN = ("short", "cat", "with-unit")
LAST = 200  # lines, where nothing else was asked for
# A traceback says the same thing many times; it is explained again after this many other lines.
QUIET_FOR = 100

Show = Callable[[str], None]
Explain = Callable[[Finding], None]


def stream(service: str, words: Sequence[str], host: Host, *, colour: bool, show: Show, explain: Explain) -> int:
    """Hand over line after line; keeps none of them. Gives journalctl's exit status."""
    argv = ["journalctl", "--unit", Layout(service).unit_name, "--no-pager", *(words or [f"--lines={LAST}"])]
    human = _is_human(words)
    said: dict[str, int] = {}
    with host.streaming(*argv, env={"SYSTEMD_COLORS": "1" if colour else "0", **_terminal()}) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            show(line)
            finding = recognise(_message(line), service) if human else None
            if finding and number - said.get(finding.id, -QUIET_FOR) >= QUIET_FOR:
                explain(finding)
            if finding:
                said[finding.id] = number
        return process.wait()


def _message(line: str) -> str:
    """Without what journalctl puts before a message; the message itself where that cannot be told apart."""
    head, found, message = line.partition("]: ")
    return message if found and len(head) < 120 else line


def _is_human(words: Sequence[str]) -> bool:
    """Data for programs stays as it is."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("-o", "--output"):
            return following.startswith(HUMAN)
        if word.startswith("--output="):
            return word.removeprefix("--output=").startswith(HUMAN)
        if word.startswith("-o"):
            return word[2:].startswith(HUMAN)
    return True


def _terminal() -> dict[str, str]:
    return {name: os.environ[name] for name in ("TERM", "COLUMNS", "TZ") if name in os.environ}
