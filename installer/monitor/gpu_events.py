"""How often the driver reported which error (Xid) of which GPU since the host started, from the kernel's journal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import LOCKS
from installer.checks.gpus.figures import Figures
from installer.diagnosis.gpu_faults import XID, address
from installer.units import journal

NOTES = LOCKS / "gpu-events.json"  # below /run: it ends with what it counts
PATTERN = "NVRM: .*Xid"
AT_ONCE = 4000  # lines of the kernel's that are looked at each time; more wait for the next time
WITHIN = 2.0
MOST = 64  # GPUs that are counted


@dataclass
class Events:
    cursor: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # PCI address -> Xid -> how often
    known: dict[str, tuple[int, str]] = field(default_factory=dict)  # PCI address -> index and uuid, also of a lost one


def count(host: Host, gpus: Iterable[Figures]) -> Events:
    """All so far; what the journal cannot tell now is counted the next time."""
    before = host.read(NOTES) or ""
    events = _of_text(before)
    events.known |= {gpu.pci: (gpu.index, gpu.uuid) for gpu in gpus if gpu.pci and gpu.uuid}
    try:
        passage = journal.of_kernel_since(host, events.cursor, AT_ONCE, PATTERN, WITHIN)
    except InstallError:
        return events
    for line in passage.lines:
        if match := XID.search(line):
            _add(events, address(match[1]), str(int(match[2])))
    events.cursor = passage.cursor
    if (after := json.dumps(vars(events))) != before:
        host.write(NOTES, after, 0o600)
    return events


def _add(events: Events, pci: str, xid: str) -> None:
    if pci in events.counts or len(events.counts) < MOST:
        of_gpu = events.counts.setdefault(pci, {})
        of_gpu[xid] = of_gpu.get(xid, 0) + 1


def _of_text(text: str) -> Events:
    """What is damaged begins anew: a counter may."""
    try:
        said = json.loads(text)
        return Events(
            str(said["cursor"]),
            {str(pci): {str(x): int(n) for x, n in of_gpu.items()} for pci, of_gpu in said["counts"].items()},
            {str(pci): (int(index), str(uuid)) for pci, (index, uuid) in said["known"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Events()
