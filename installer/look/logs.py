"""A service's journal as journalctl shows it, with our explanation under the lines that we recognise."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.diagnosis.finding import Finding
from installer.diagnosis.scene import Scene
from installer.diagnosis.signatures import recognise
from installer.runtime.vllm_text import harmless
from installer.spec.records import readable_state
from installer.units.holding import Holding
from installer.units.keyring import replicas

HUMAN = ("short", "cat", "with-unit")  # in which each line is a message
FOR_PROGRAMS = ("json", "export")
LAST = 200  # lines, where nothing else was asked for
# A traceback says the same thing many times; it is explained again after this many other lines.
QUIET_FOR = 100
COLOUR = re.compile(r"(\x1b\[[\d;]*m)")
TIMES = ("--since", "--until", "-S", "-U")
LINES = ("--lines", "-n")
# With these journalctl hands on what a message holds; without them it shows no message that holds a terminal code.
AS_IT_IS = re.compile(r"-[A-Za-z]*a|--a(l|ll)?|(-o|--output=)?cat")

Show = Callable[[str], None]
Explain = Callable[[Finding], None]


def stream(service: str, words: Sequence[str], host: Host, *, terminal: bool, show: Show, explain: Explain) -> int:
    """Hand over line after line; keeps none of them. Gives journalctl's exit status.

    On a terminal a line may hold colours, where they are journalctl's own, and nothing else that steers it.
    """
    _check(words, host)
    argv = ["journalctl", *_units(service, host), "--no-pager", *(words or [f"--lines={LAST}"])]
    human = _format(words).startswith(HUMAN)
    colour = terminal and human and not os.environ.get("NO_COLOR") and not any(map(AS_IT_IS.fullmatch, words))
    is_data = _format(words).startswith(FOR_PROGRAMS) and not terminal
    fit = _coloured if colour else str if is_data else harmless
    said: dict[str, int] = {}
    with host.streaming(*argv, env={"SYSTEMD_COLORS": "1" if colour else "0", **_terminal()}) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            show(fit(line))
            finding = recognise(_message(line), service) if human else None
            if finding and number - said.get(finding.id, -QUIET_FOR) >= QUIET_FOR:
                explain(finding)
            if finding:
                said[finding.id] = number
        return process.wait()


def _check(words: Sequence[str], host: Host) -> None:
    """Asked of systemd itself, by whose rule journalctl reads them."""
    judge = host.which("systemd-analyze")
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        # Behind -n a match, a path or another option may stand instead of a number.
        if option in LINES and (equals or re.fullmatch(r"\w[\w-]*", following)):
            _check_lines(value if equals else following, host)
        if option in TIMES and judge:
            _check_time(value if equals else following, host.at(judge), host)


def _check_lines(number: str, host: Host) -> None:
    if host.run("journalctl", f"--lines={number}", "--version", check=False, env=_terminal()).returncode != 0:
        raise UsageError(
            tr("{text!r} is no number of lines", text=number), tr("for example: -n 50, --lines=50, --lines=all")
        )


def _check_time(time: str, judge: Path, host: Host) -> None:
    if host.run(judge, "timestamp", "--", time, check=False, env=_terminal()).returncode != 0:
        raise UsageError(
            tr("{text!r} is no time", text=time),
            tr("for example: --since today, --since -2h, --since '2026-11-30 08:00'"),
        )


def _units(service: str, host: Host) -> list[str]:
    """Its own journal, and those of its replicas."""
    layout = Layout(service)
    names = [layout.unit_name, *(replica.name for replica in replicas(host, layout))]
    return [word for name in names for word in ("--unit", name)]


def waiting(service: str, host: Host) -> Holding | None:
    layout = Layout(service)
    return Scene(host, layout, readable_state(host, layout), None).holding


def _coloured(line: str) -> str:
    """Each second piece is a colour."""
    return "".join(piece if number % 2 else harmless(piece) for number, piece in enumerate(COLOUR.split(line)))


def _message(line: str) -> str:
    """Without what journalctl puts before a message; the message itself where that cannot be told apart."""
    head, found, message = line.partition("]: ")
    return message if found and len(head) < 120 else line


def _format(words: Sequence[str]) -> str:
    """What journalctl is told to print."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("-o", "--output"):
            return following
        if word.startswith(("--output=", "-o")):
            return word.removeprefix("--output=").removeprefix("-o")
    return HUMAN[0]


def _terminal() -> dict[str, str]:
    named = {name: os.environ[name] for name in ("TERM", "COLUMNS", "TZ") if name in os.environ}
    return {**named, "SYSTEMD_URLIFY": "0"}
