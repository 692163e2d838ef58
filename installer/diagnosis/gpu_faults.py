"""Faults of GPUs and what to do about each, from a restart to another card, as data in data/gpu_faults.json.

The numbers are NVIDIA's Xids; the decisions follow its catalogue and its rules for memory errors. The order of the
table is the order of causes: an entry further up explains those further down.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from installer.base import datafile
from installer.base.assets import DATA
from installer.base.datafile import DataError, Section
from installer.base.language import tr
from installer.checks.gpus.figures import Figures, Reading
from installer.diagnosis.finding import FAULT, NOTE
from installer.runtime import vllm_gpus
from installer.spec.facts import pci_address

TABLE = DATA / "gpu_faults.json"
XID = re.compile(r"NVRM: (?:GPU\d+ )?Xid \(PCI:([0-9a-fA-F:.]+)[^)]*\): (\d{1,4})\b")
PLACE = re.compile(r"\b([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)\b")
VERDICT = "154"  # the Xid by which the driver says that it thinks otherwise now: the last one counts
DECISIONS = ("restart", "keep", "drain", "reset", "reboot", "replace")
OTHER = "gpu-error"  # any Xid that the table does not name


@dataclass(frozen=True)
class Decision:
    name: str
    means: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    line: str
    source: str


@dataclass(frozen=True)
class Fault:
    id: str
    cause: str
    severity: str
    decision: Decision
    commands: tuple[str, ...]
    xids: tuple[int, ...]
    patterns: tuple[re.Pattern[str], ...]
    states: tuple[str, ...]
    examples: tuple[Example, ...]

    def is_meant_by(self, line: str, xid: int | None) -> bool:
        return (xid is not None and xid in self.xids) or any(pattern.search(line) for pattern in self.patterns)


@dataclass(frozen=True)
class Seen:
    """A fault of one GPU, and what shows it."""

    fault: Fault
    pci: str  # "" where the line does not say
    evidence: str
    xid: str = ""
    uuid: str = ""
    watts: int = 0  # what the GPU is made for

    @property
    def cause(self) -> str:
        """Which GPU, what it has, and what that comes to."""
        said = tr(self.fault.cause).format(xid=self.xid, gpu=self.pci or "-")
        where = "" if "{gpu}" in self.fault.cause else self.uuid or self.pci
        what = tr("{what}: {why}", what=where, why=said) if where else said
        return tr("{what}; {means}", what=what, means=tr(self.fault.decision.means))


def of_lines(lines: Iterable[str]) -> list[Seen]:
    """What lines of the kernel's log mean, each fault of a GPU once, root causes first."""
    found: dict[tuple[str, str], Seen] = {}
    for line in lines:
        if not (seen := of_line(line)):
            if (match := XID.search(line)) and match[2] == VERDICT:
                _forget_verdicts(found, address(match[1]))
            continue
        if seen.xid == VERDICT:
            _forget_verdicts(found, seen.pci)
        found.setdefault((seen.fault.id, seen.pci), seen)
    return in_order(found.values())


def of_line(line: str) -> Seen | None:
    match = XID.search(line)
    xid = match[2] if match else ""
    fault = next((each for each in faults() if each.is_meant_by(line, int(xid) if xid else None)), None)
    if fault is None and match and xid != VERDICT:
        fault = next(each for each in faults() if each.id == OTHER)
    if fault is None:
        return None
    place = match or PLACE.search(line)
    return Seen(fault, address(place[1]) if place else "", line, xid)


def _forget_verdicts(found: dict[tuple[str, str], Seen], pci: str) -> None:
    for key in [key for key, seen in found.items() if key[1] == pci and seen.xid == VERDICT]:
        del found[key]


def of_reading(reading: Reading) -> list[Seen]:
    """The same of what the GPUs say of themselves at this moment."""
    faulty = {state: fault for fault in faults() for state in fault.states}
    seen = [Seen(faulty["uvm"], "", f"/dev/nvidia-uvm: {reading.uvm}")] if reading.uvm else []
    for gpu in reading.gpus:
        usual = int(gpu.values.get("power_usual_limit", 0))
        seen += [Seen(faulty[state], gpu.pci, evidence, uuid=gpu.uuid, watts=usual) for state, evidence in _states(gpu)]
    return in_order(seen)


def _states(gpu: Figures) -> Iterator[tuple[str, str]]:
    if gpu.lost:
        yield "lost", f"GPU {gpu.index}: {gpu.lost}"
        return
    verdict, values = gpu.values.get("recovery"), gpu.values
    for state, numbers in (
        ("reboot", (vllm_gpus.REBOOT, vllm_gpus.SYSTEM_REBOOT)),
        ("reset", (vllm_gpus.RESET, vllm_gpus.BUS_RESET)),
        ("drain", (vllm_gpus.DRAIN_PEERS, vllm_gpus.DRAIN)),
    ):
        if verdict in numbers:
            yield state, f"GPU Recovery Action: {verdict:g}"
    for state in ("remapped_failed", "remapped_pending"):
        if values.get(state):
            yield state, f"{state.replace('_', ' ')}: {values[state]:g}"
    throttled = gpu.throttled or frozenset()
    if hot := throttled & {"software_thermal", "hardware_thermal"}:
        yield "hot", f"{', '.join(sorted(hot))}: {values.get('temperature', 0):g} °C"
    limit, usual = values.get("power_limit", 0), values.get("power_usual_limit", 0)
    if "power_brake" in throttled or ("power_cap" in throttled and 0 < limit < usual):
        yield "capped", f"{', '.join(sorted(throttled))}: {limit:g} W of {usual:g} W"


def in_order(seen: Iterable[Seen]) -> list[Seen]:
    order = [fault.id for fault in faults()]
    return sorted(seen, key=lambda each: order.index(each.fault.id))


def address(text: str) -> str:
    return pci_address(text if "." in text else f"{text}.0")


# The table


@functools.cache
def faults() -> tuple[Fault, ...]:
    return parse(datafile.read(TABLE, "decisions faults"))


def parse(table: Section) -> tuple[Fault, ...]:
    """Or a DataError that names the entry that is wrong."""
    decisions = {name: _decision(table, name) for name in DECISIONS}
    fields = "id decision severity cause examples"
    found = tuple(_fault(each, decisions) for each in table.sections("faults", fields, "xids patterns states commands"))
    for what in ([each.id for each in found], [xid for each in found for xid in each.xids]):
        if twice := sorted({str(each) for each in what if what.count(each) > 1}):  # type: ignore[arg-type]
            raise DataError(table.where, tr("{name} names one thing twice", name=", ".join(twice)))
    return found


def _decision(table: Section, name: str) -> Decision:
    section = Section.of(f"{table.where}, {name}", table.mapping("decisions").get(name), "means commands")
    return Decision(name, section.text("means"), section.texts("commands"))


def _fault(entry: Section, decisions: dict[str, Decision]) -> Fault:
    name, severity = entry.text("id"), entry.text("severity")
    if entry.text("decision") not in decisions or severity not in (FAULT, NOTE):
        raise DataError(entry.where, tr("{name} is no field of it", name=entry.text("decision")))
    decision = decisions[entry.text("decision")]
    xids = entry.content.get("xids", [])
    if not isinstance(xids, list) or not all(isinstance(each, int) for each in xids):
        raise DataError(entry.where, tr("{name} should be {what}", name="xids", what=tr("a whole number")))
    try:
        patterns = tuple(re.compile(each) for each in entry.texts("patterns"))
    except re.error as error:
        raise DataError(entry.where, str(error)) from None
    return Fault(
        id=name,
        cause=entry.text("cause"),
        severity=severity,
        decision=decision,
        commands=entry.texts("commands") or decision.commands,
        xids=tuple(xids),
        patterns=patterns,
        states=entry.texts("states"),
        examples=tuple(Example(e.text("line"), e.text("source")) for e in entry.sections("examples", "line source")),
    )
