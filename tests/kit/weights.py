"""A small model, a hub that has it, and the means to fetch it: what the tests about weights share."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.changes import Change
from installer.base.errors import Exit
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Advance, Report
from installer.model import builtin
from installer.spec.model import Model, ModelError
from installer.spec.settings import Settings
from installer.weights.models import changes, resolve
from tests.kit.hub import Hub

REPO = "Org/Tiny"
LAYOUT = Layout("qwen3vl")
TOKEN = "hf_" + "secret" * 5


def checkpoint(seed: int = 1, size: int = 300_000) -> dict[str, bytes]:
    """The built-in model's files, its weights in two shards, and what a hub repository has besides."""
    made = dict(builtin.files())
    made.pop("model.safetensors")
    for shard in (1, 2):
        made[f"model-0000{shard}-of-00002.safetensors"] = weights(seed * 10 + shard, size)
    made["model.safetensors.index.json"] = (
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    return made | {"README.md": b"# read", ".gitattributes": b"x", "pytorch_model.bin": b"pickle", "a/b/c.json": b"{}"}


def weights(seed: int, size: int) -> bytes:
    header = (
        b'{"a": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]},'
        b' "b": {"dtype": "U8", "shape": [0], "data_offsets": [%d, %d]}}' % (size, size, size, size)
    )
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


SHARD = "model-00001-of-00002.safetensors"
WANTED = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "a/b/c.json",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
}  # fmt: skip


def settings(server: Hub | None = None, **what: object) -> Settings:
    chosen: dict[str, object] = {"model": REPO, "hf_endpoint": server.url if server else None} | what
    return replace(Settings(), **chosen)  # type: ignore[arg-type]


class Counting(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.totals: list[int] = []
        self.counts: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
        self.totals.append(total)
        yield lambda count, files=0: self.counts.append(count)


def pull(server: Hub, host: Host, report: Report | None = None, **what: object) -> Model:
    model = resolve(settings(server, **what), host, LAYOUT)
    for change in due(model, host):
        change.apply(host, report or Report())
    return model


def due(model: Model, host: Host, **what: object) -> list[Change]:
    chosen = {"model": model.repo or model.id, "hf_endpoint": model.endpoint} | what
    return list(changes(model, host, settings(**chosen)))


def served(host: Host, model: Model) -> dict[str, bytes]:
    path = host.at(model.path)
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def blobs(host: Host) -> Path:
    return host.at(LAYOUT.hub / "models--Org--Tiny" / "blobs")


def resolved_and_pulled(server: Hub, host: Host) -> Model:
    model = pull(server, host)
    files = {name: next(iter(server.repos[REPO].commits.values()))[name].content for name in WANTED}
    assert served(host, model) == files
    return model


def refusal(server: Hub, host: Host, **what: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        pull(server, host, **what)
    assert caught.value.exit_code == Exit.MODEL
    assert caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    return caught.value


CHILD = """
import sys
from pathlib import Path
from installer.base.host import Host
from installer.base.layout import Layout
from installer.weights.models import resolve, changes
from installer.base.report import Report
from installer.spec.settings import Settings
from contextlib import contextmanager
class Loud(Report):
    def note(self, text): print(text, flush=True)
    @contextmanager
    def bytes(self, label, total, files=0):
        yield lambda count, files=0: print(count, flush=True)
host = Host(root=Path(sys.argv[1]))
settings = Settings(model="Org/Tiny", hf_endpoint=sys.argv[2])
model = resolve(settings, host, Layout("qwen3vl"))
print("resolved", flush=True)
for change in changes(model, host, settings):
    change.apply(host, Loud())
"""


@contextmanager
def child(server: Hub, host: Host) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, str(host.root), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], count: int) -> int:
    """Read the child's progress until so many bytes have come."""
    assert process.stdout is not None
    total = 0
    while total < count:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        total += int(line) if line.strip().isdigit() else 0
    return total
