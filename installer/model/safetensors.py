"""The header of a .safetensors file: read within bounds, and believed only where it describes the file exactly."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.base.language import tr
from installer.model.plain_file import open_regular

# The library accepts 100 MB. 32 MiB are 250,000 tensors in one file; more is made to fill the reader's memory.
LONGEST_HEADER = 32 * 1024 * 1024
# Multiplied with each other, numbers without a bound keep the processor busy for hours.
LARGEST_COUNT = 10**40
MOST_DIMENSIONS = 64
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class Damaged(ValueError):
    """The file cannot be what it says it is."""


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> Mapping[str, Tensor]:
    """The file's tensors by name. Reads the header alone, however large the file is."""
    with open_regular(path) as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        body = os.fstat(file.fileno()).st_size - 8 - length
        if length < 2 or body < 0:
            raise Damaged(tr("its header has an impossible length"))
        if length > LONGEST_HEADER:
            raise Damaged(tr("its header of {length} bytes is too long to be that of a model", length=length))
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except Damaged:
        raise
    except (ValueError, RecursionError):
        raise Damaged(tr("its header is no JSON")) from None
    if not isinstance(header, dict):
        raise Damaged(tr("its header is no JSON object"))
    tensors = {name: _tensor(name, entry) for name, entry in header.items() if name != "__metadata__"}
    _check_layout(tensors, body)
    return tensors


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Damaged(tr("its header names something twice"))
    return found


def _tensor(name: str, entry: object) -> Tensor:
    shown = name[:80]
    if not isinstance(entry, dict):
        raise Damaged(tr("the tensor {name!r} has no place in it", name=shown))
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Damaged(tr("the tensor {name!r} has no place in it", name=shown))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise Damaged(tr("the tensor {name!r} is of the unknown type {type!r}", name=shown, type=str(dtype)[:40]))
    if shape is None:
        raise Damaged(tr("the tensor {name!r} has no shape", name=shown))
    tensor = Tensor(dtype, shape, *offsets)
    if tensor.numbers * BITS[dtype] != 8 * (tensor.end - tensor.begin):
        raise Damaged(tr("the tensor {name!r} has another size than its shape", name=shown))
    return tensor


def _counts(value: object) -> tuple[int, ...] | None:
    """The list as numbers, unless something in it is none; True is none, although Python counts with it."""
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        return None
    if not all(type(number) is int and 0 <= number < LARGEST_COUNT for number in value):
        return None
    return tuple(value)


def _check_layout(tensors: Mapping[str, Tensor], body: int) -> None:
    """Tensors fill the file without a gap and without sharing a byte, or one of them is not what was written."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            if tensor.begin < end:
                raise Damaged(tr("the tensor {name!r} overlaps another", name=name[:80]))
            raise Damaged(tr("the tensor {name!r} leaves a gap before it", name=name[:80]))
        end = tensor.end
    if end != body:
        raise Damaged(tr("it should hold {end} bytes of tensors, but holds {body}", end=end, body=body))
