"""What the unit for logs runs: follows the journal of our units and sends it on, without keys and without prompts.

The journal is the queue: what was taken is remembered by its place there, and what was not is read again, also after
days without the other side. Nothing is kept in memory but one batch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import UNITS
from installer.diagnosis.redact import Redactor
from installer.monitor.sinks import BadEntry, Entry, deliver
from installer.runtime.vllm_notify import NotTaken
from installer.runtime.vllm_text import one_line
from installer.units.keyring import keys_in

# What is kept of an entry; least of all the command line of a process, in which digests of keys stand.
KEPT = (
    "__CURSOR", "__REALTIME_TIMESTAMP", "__MONOTONIC_TIMESTAMP", "_BOOT_ID", "_MACHINE_ID", "_HOSTNAME",
    "_SYSTEMD_UNIT", "UNIT", "OBJECT_SYSTEMD_UNIT", "_SYSTEMD_INVOCATION_ID", "INVOCATION_ID", "_PID",
    "SYSLOG_IDENTIFIER", "PRIORITY", "MESSAGE", "MESSAGE_ID", "UNIT_RESULT", "EXIT_CODE", "EXIT_STATUS", "JOB_TYPE",
    "JOB_RESULT",
)  # fmt: skip
NEEDED = ("__CURSOR", "__REALTIME_TIMESTAMP", "_BOOT_ID")
MOST, LARGEST = 500, 512 * 1024  # entries at once, and bytes of them: servers bound what they take
LONGEST = 1 << 20  # bytes of an entry as journalctl prints it; a longer one is left out
# What is longer takes too long to be searched for secrets: minutes for a line that somebody made for it.
LONGEST_TEXT = 16 * 1024  # characters of a field
LONG_WORD = re.compile(r"[\w-]{257,}")
GATHERS = 1.0  # seconds
LOOKS = 10.0  # seconds after which units are looked for anew where nothing is said
AGAIN = 1.0  # seconds before the journal is opened anew
PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds between two tries; the last one for as long as it takes
OURS = "\nSlice=vllm.slice\n"
# Without --no-tail, what waits would be cut to its last lines; without --all, a long text would be missing. Without
# --merge, following means this boot alone: what waited would be lost by a reboot, and in a container, whose sandboxes
# see the boot of the host beneath it, nothing would ever come.
JOURNAL = (
    "journalctl", "--follow", "--merge", "--no-tail", "--all", "--quiet", "--no-pager", "--output=json",
    f"--output-fields={','.join(KEPT)}",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Where logs go, from the unit's credential."""

    to: str
    url: str
    authorization: str = ""
    since: int = 0  # when it was asked for, in seconds since 1970


def run(task: Task, place: Path, host: Host) -> NoReturn:
    while True:
        follow(task, place, host)
        time.sleep(AGAIN)


def follow(task: Task, place: Path, host: Host) -> None:
    """For as long as the units are those of now, with the keys of now."""
    units = our_units(host)
    since = _from(place, task)
    if not units:
        return
    clean = cleaner(units)
    machine = host.word(Path("/etc/machine-id"))
    with host.streaming(*JOURNAL, since, f"_MACHINE_ID={machine}", *(f"--unit={name}" for name in units)) as process:
        assert process.stdout is not None
        for lines in batches(process.stdout.fileno()):
            if our_units(host) != units:
                return
            entries = [entry for line in lines if (entry := read(line, clean))]
            if entries:
                send(task, entries)
                remember(place, entries[-1]["__CURSOR"])


def our_units(host: Host) -> dict[str, str]:
    """By what every one of ours holds, and no other."""
    found = {}
    for path in sorted(host.children(UNITS)):
        # What an admin keeps from others is none of ours.
        with contextlib.suppress(OSError, InstallError):
            text = host.read(path) if path.suffix == ".service" else None
            if text and OURS in text:
                found[path.name] = text
    return found


def cleaner(units: Mapping[str, str]) -> Callable[[str], str]:
    """Takes out the keys of these units, whatever their form, and what looks like a secret or a prompt."""
    digests = set()
    for text in units.values():
        with contextlib.suppress(InstallError):
            digests |= {key.digest for key in keys_in(text)}
    return Redactor((), digests=digests).hidden


def _from(place: Path, task: Task) -> str:
    """After what was taken last; before that from the moment that logs were asked for."""
    try:
        return f"--after-cursor={place.read_text()}"
    except FileNotFoundError:
        return f"--since=@{task.since}"


def remember(place: Path, cursor: str) -> None:
    """As it was or as it is to be, also after a power cut."""
    new = place.with_suffix(".new")
    with new.open("w") as file:
        file.write(cursor)
        file.flush()
        os.fsync(file.fileno())
    new.replace(place)


def batches(descriptor: int) -> Iterator[list[bytes]]:
    """Lines as they come, many at once where many come; none now and then, where nothing is said."""
    rest, lines, began = b"", list[bytes](), time.monotonic()
    while True:
        patience = max(0.0, began + GATHERS - time.monotonic()) if lines else LOOKS
        if select.select([descriptor], [], [], patience)[0]:
            data = os.read(descriptor, 1 << 16)
            if not data:
                yield lines
                return
            began = began if lines else time.monotonic()
            *whole, rest = (rest + data).split(b"\n")
            lines += whole
            rest = rest[-LONGEST:]  # what is cut off is no JSON, and so no entry
        while len(lines) >= MOST or sum(map(len, lines)) >= LARGEST:
            yield lines[:MOST]
            lines = lines[MOST:]
        if not lines or time.monotonic() >= began + GATHERS:
            yield lines
            lines = []


def read(line: bytes, clean: Callable[[str], str]) -> Entry | None:
    """An entry as it may leave; None for what is none."""
    try:
        fields = json.loads(line)
        found = {name: _text(fields[name]) for name in KEPT if fields.get(name) is not None}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    if not all(found.get(name) for name in NEEDED) or not found["__REALTIME_TIMESTAMP"].isdigit():
        return None
    return {name: value if name.startswith("_") else clean(_shortened(value)) for name, value in found.items()}


def _shortened(text: str) -> str:
    """Without the word that is cut through: half a key would be known for none."""
    kept = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rpartition(" ")[0]
    rest = len(text) - len(kept)
    return LONG_WORD.sub("[a long word]", kept) + (f" [{rest} more characters]" if rest else "")


def _text(value: object) -> str:
    """What is no proper text comes as a list of its bytes, and a field that is there twice as a list of texts."""
    if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value).decode(errors="replace")
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def send(task: Task, entries: list[Entry]) -> None:
    """Until it is taken; what never will be is left out, and that is said once for all of these."""
    refused = list(_left_out(task, entries))
    if refused:
        say(f"entries that are not taken, and left out: {len(refused)}; {refused[0]}")


def _left_out(task: Task, entries: list[Entry]) -> Iterator[str]:
    """Why, for each that is; found by halves, until it is alone."""
    try:
        _until_taken(task, entries)
    except BadEntry as error:
        if len(entries) == 1:
            yield str(error)
            return
        middle = len(entries) // 2
        yield from _left_out(task, entries[:middle])
        yield from _left_out(task, entries[middle:])


def _until_taken(task: Task, entries: list[Entry]) -> None:
    for number, pause in enumerate(_pauses()):
        try:
            deliver(task.to, task.url, task.authorization, entries)
        except BadEntry:
            raise
        except NotTaken as error:
            if number == 0:
                say(f"logs wait in the journal: {error}")
            time.sleep(pause)
        else:
            if number:
                say("logs are taken again")
            return


def _pauses() -> Iterator[float]:
    yield from PAUSES
    while True:
        yield PAUSES[-1]


def say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
