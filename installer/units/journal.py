"""The journal's tail, with bounded memory and time however large the journal is."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.runtime.vllm_text import one_line
from installer.units.systemd import unit_properties

PATIENCE = 30.0
FIELDS = "MESSAGE,_SYSTEMD_INVOCATION_ID,INVOCATION_ID"


@dataclass(frozen=True)
class Entry:
    text: str
    run: str  # the invocation of the unit that it belongs to; "" where there is none


def entries(host: Host, count: int, *matches: str) -> list[Entry]:
    """The last entries that match, oldest first. A field of more than 4 KiB comes empty: journalctl leaves it out."""
    words = ("--output=json", f"--output-fields={FIELDS}", f"--lines={count}", "--quiet", "--no-pager")
    command = host.which("journalctl")
    if command is None:
        raise InstallError(tr("there is no journalctl on this host"))
    done = host.run(host.at(command), *words, *matches, check=False, timeout=PATIENCE)
    if done.returncode != 0 and done.stderr.strip():
        raise InstallError(tr("the journal cannot be read: {error}", error=done.stderr.strip().splitlines()[-1]))
    found = [_entry(line) for line in done.stdout.splitlines()]
    if not found and os.geteuid() != 0:
        raise InstallError(tr("the journal shows nothing to this user: run the command with sudo"))
    return [entry for entry in found if entry.text]


@dataclass(frozen=True)
class Passage:
    """What the kernel said between two looks, and where the next one begins."""

    lines: tuple[str, ...]
    cursor: str


def of_kernel_since(host: Host, cursor: str, count: int, pattern: str, within: float) -> Passage:
    """At the first look what matches of the last lines since the boot; later all that came, up to so many lines."""
    of_kernel = ("_TRANSPORT=kernel", "--boot")
    if cursor:
        found = _raw(host, count, within, *of_kernel, f"--after-cursor={cursor}")
        return Passage(tuple(_text(each.get("MESSAGE")) for each in found), _cursor(found) or cursor)
    newest = _raw(host, 1, within, *of_kernel)
    found = _raw(host, count, within, *of_kernel, f"--grep={pattern}") if newest else []
    until = str(newest[-1].get("__REALTIME_TIMESTAMP", "")) if newest else ""
    known = [each for each in found if str(each.get("__REALTIME_TIMESTAMP", "")) <= until]
    return Passage(tuple(_text(each.get("MESSAGE")) for each in known), _cursor(newest))


def _cursor(found: list[dict[str, object]]) -> str:
    cursor = found[-1].get("__CURSOR") if found else None
    return cursor if isinstance(cursor, str) else ""


def _raw(host: Host, count: int, within: float, *matches: str) -> list[dict[str, object]]:
    words = ("--output=json", "--output-fields=MESSAGE", f"--lines={count}", "--quiet", "--no-pager")
    command = host.which("journalctl")
    if command is None:
        raise InstallError(tr("there is no journalctl on this host"))
    done = host.run(host.at(command), *words, *matches, check=False, timeout=within)
    return [fields for line in done.stdout.splitlines() if (fields := _json(line))]


def unit_entries(host: Host, unit: str, count: int) -> list[Entry]:
    return entries(host, count, f"--unit={unit}")


def _json(line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _entry(line: str) -> Entry:
    fields = _json(line)
    # The service's own lines carry the one field, systemd's lines about it the other.
    run = fields.get("_SYSTEMD_INVOCATION_ID") if "INVOCATION_ID" not in fields else fields["INVOCATION_ID"]
    return Entry(_text(fields.get("MESSAGE")), run if isinstance(run, str) else "")


def _text(message: object) -> str:
    """A message that is no proper text comes as a list of its bytes."""
    if isinstance(message, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in message):
        return bytes(message).decode(errors="replace")
    return message if isinstance(message, str) else ""


def invocation(host: Host, unit: str) -> str:
    """The unit's last run, over or not; "" where none is known."""
    return unit_properties(host, unit, "InvocationID").get("InvocationID", "")


def journal(host: Host, unit: str, count: int, run: str, since: str = "") -> list[str]:
    """What the unit's processes and systemd said of that run of it, or of it only what came after the entry `since`."""
    if not run:
        return []
    words = ["--unit", unit, "--lines", str(count), "--quiet"]
    words += ["--output=json", "--output-fields=MESSAGE"] if since else ["--output=cat"]
    # The service's own lines carry the one field, systemd's lines about it the other.
    words += [f"_SYSTEMD_INVOCATION_ID={run}", "+", f"INVOCATION_ID={run}"]
    lines = host.run("journalctl", *words, check=False).stdout.splitlines()
    return _after(since, lines) if since else lines


def _after(since: str, lines: list[str]) -> list[str]:
    """Cut here and not by journalctl, which with --after-cursor shows the first lines and not the last ones."""
    found = [_json(line) for line in lines]
    begin = next((at for at, fields in enumerate(found, 1) if fields.get("__CURSOR") == since), 0)
    return [text for fields in found[begin:] for text in _text(fields.get("MESSAGE")).splitlines()]


def last_entry(host: Host, unit: str) -> str:
    """The cursor of what the unit said last; a word that no entry has where it said nothing yet."""
    words = ("--unit", unit, "--lines=1", "--output=json", "--output-fields=MESSAGE", "--quiet")
    lines = host.run("journalctl", *words, check=False).stdout.splitlines()
    cursor = _json(lines[-1]).get("__CURSOR") if lines else None
    return cursor if isinstance(cursor, str) else "none"


def tell(text: str, host: Host, layout: Layout) -> None:
    """Into the journal of the service itself, where people look; where that cannot be, into our own."""
    if host.which("logger") is None:
        print(one_line(text), file=sys.stderr)
        return
    fields = {"MESSAGE": one_line(text), "PRIORITY": "5", "OBJECT_SYSTEMD_UNIT": layout.unit_name}
    entry = "".join(f"{name}={value}\n" for name, value in fields.items())
    host.run("logger", "--journald", stdin=entry, check=False)
