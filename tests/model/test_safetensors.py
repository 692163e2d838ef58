"""Headers of weight files: read within bounds, and believed only where they describe the file exactly."""

from __future__ import annotations

import contextlib
import json
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.model.safetensors import LONGEST_HEADER, Damaged, read_header


def tensor(begin: int, end: int, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def written(path: Path, header: object, body: int, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(body))
    return path


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"}, "b": tensor(8, 12, "F32", []), "a": tensor(0, 8, "BF16", [2, 2]),
        "none": tensor(12, 12, "F16", [0, 5]), "half": tensor(12, 14, "F4", [4]),
    }  # fmt: skip
    found = read_header(written(tmp_path / "x", header, 14))
    assert {name: (t.dtype, t.numbers) for name, t in found.items()} == {
        "b": ("F32", 1), "a": ("BF16", 4), "none": ("F16", 0), "half": ("F4", 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "'b' overlaps another"),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, 8, "overlaps another"),
        ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12, "'b' leaves a gap"),
        ({"a": tensor(0, 8)}, 9, "should hold 8 bytes of tensors, but holds 9"),
        ({"a": tensor(0, 8)}, 7, "should hold 8 bytes of tensors, but holds 7"),
        ({"a": tensor(0, 8, "F32", [3])}, 8, "another size than its shape"),
        ({"a": tensor(0, 8, "X9")}, 8, "unknown type 'X9'"),
        ({"a": tensor(0, 8, shape=[-8])}, 8, "has no shape"),
        ({"a": tensor(0, 8, shape=[True] * 8)}, 8, "has no shape"),
        ({"a": tensor(0, 8, shape="8")}, 8, "has no shape"),
        ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [8, 0]}}, 8, "no place"),
        ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 9]}}, 8, "no place"),
        ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0.0, 8]}}, 8, "no place"),
        ({"a": [1]}, 0, "no place"),
        ({"a": tensor(0, 10**30, shape=[10**30])}, 8, "should hold"),
        (b'{"a": {}, "a": {}}', 0, "names something twice"),
        (b"[" * 100_000, 0, "no JSON"),
        (b'{"a":' * 50_000, 0, "no JSON"),
        (b"\xff{}", 0, "no JSON"),
        (b"[]", 0, "no JSON object"),
    ],
)
def test_what_contradicts_itself_is_damaged(tmp_path: Path, header: object, body: int, words: str) -> None:
    with pytest.raises(Damaged, match=words):
        read_header(written(tmp_path / "x", header, body))


@pytest.mark.parametrize("length", [0, 1, 3, 1 << 31, (1 << 64) - 1])
def test_a_length_that_cannot_be_is_damage(tmp_path: Path, length: int) -> None:
    with pytest.raises(Damaged, match="impossible length"):
        read_header(written(tmp_path / "x", b"{}", 0, length))


def test_a_header_made_to_fill_the_memory_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        file.write((LONGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(8 + LONGEST_HEADER + 100)
    tracemalloc.start()
    with pytest.raises(Damaged, match="too long"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@given(st.binary(max_size=300))
def test_no_bytes_whatever_end_in_another_error(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(Damaged):
        file.write(content)
        file.flush()
        read_header(Path(file.name))
