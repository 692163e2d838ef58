"""Figures in the text form that node-exporter reads from a file: whole or not at all, whatever the names hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.base.host import Host
from installer.base.layout import FIGURES
from installer.runtime.vllm_text import one_line

TEXTFILES, NAME = FIGURES.parent, FIGURES.name
LONGEST = 200  # characters of a label's value


@dataclass(frozen=True)
class Family:
    """A metric: what its name means, in English as everything that programs read."""

    name: str
    help: str
    kind: str = "gauge"


@dataclass(frozen=True)
class Row:
    name: str  # of its family
    labels: Mapping[str, str]
    value: float
    note: str = ""  # a remark in the file, for whoever reads it there


def text(families: Iterable[Family], rows: Iterable[Row]) -> str:
    """Grouped by family. Of two rows with the same labels the first counts: twice, and the whole file is refused."""
    found: dict[str, dict[str, Row]] = {family.name: {} for family in families}
    heads = {family.name: family for family in families}
    for row in rows:
        found[row.name].setdefault(_labels(row.labels), row)
    lines = (line for name, each in found.items() if each for line in _family(heads[name], each))
    return "".join(f"{line}\n" for line in lines)


def _family(family: Family, rows: Mapping[str, Row]) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, row in rows.items():
        if row.note:
            yield f"# why: {one_line(row.note)}"
        yield f"{family.name}{labels} {_number(row.value)}"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_value(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _value(value: str) -> str:
    # What is no character, as in a file name that is no UTF-8, cannot be written as one either.
    plain = one_line(value.encode(errors="backslashreplace").decode(), LONGEST)
    return re.sub(r'([\\"])', r"\\\1", plain)


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def place(written: str, host: Host, directory: Path = TEXTFILES) -> bool:
    """Put it where node-exporter looks; False where that is not installed. No link of somebody else's is followed."""
    if host.owner(directory) is None:
        return False
    host.write_into(directory, NAME, written, 0o644)
    clear(host, directory)
    return True


def clear(host: Host, directory: Path = TEXTFILES) -> None:
    """What a collector left that was killed half way; nobody reads it, but it would lie there for ever."""
    for path in host.children(directory):
        if path.name.startswith(f".{NAME}."):
            host.remove(path)


def take_away(host: Host, directory: Path = TEXTFILES) -> None:
    if host.owner(directory) is not None:
        clear(host, directory)
        host.remove(directory / NAME)
