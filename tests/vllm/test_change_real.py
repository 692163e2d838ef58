"""Changes that the real vLLM refuses or takes: a context beyond its memory, an upgrade that fails, one that serves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.forms.venv.pipconf import read_sources
from installer.model import builtin
from installer.spec.settings import Settings
from tests.kit.boot import compiled
from tests.kit.boot.machine import STORE, Machine
from tests.kit.boot.surroundings import free_port
from tests.kit.life import SERVICE, cli, main_pid, processes, serves
from tests.kit.memory import ENOUGH, share

MODEL = Path("/srv/wide")
WHEELS = "/srv/wheels"
PACKAGE = "partial_json_parser"  # a small package that the API server imports
# A release that imports well and fails the service: what only the proof can find.
BROKEN = "\nimport sys\nif 'serve' in sys.argv:\n    raise ImportError('half a release')\n"


@pytest.fixture(scope="module")
def machine(cpu_engine: str) -> Iterator[Machine]:
    with Machine(network=True, store=True) as machine:
        compiled.give(machine)
        furnish(machine)
        yield machine


def furnish(machine: Machine) -> None:
    """A model whose own limit lies beyond what the share of memory can hold, and a folder for releases."""
    files = dict(builtin.files())
    config = json.loads(files["config.json"])
    config["max_position_embeddings"] = int(ENOUGH * 2**30) // 1024 * 2  # a token takes 1 KiB
    files["config.json"] = json.dumps(config).encode()
    machine.at(MODEL).mkdir(parents=True)
    machine.at(WHEELS).mkdir()
    for name, content in files.items():
        (machine.at(MODEL) / name).write_bytes(content)


def test_a_context_or_an_engine_that_fails_is_undone_and_one_that_serves_can_be_left_again(machine: Machine) -> None:
    port = free_port()
    options = ("--engine", "cpu", "--gpu-memory-utilization", share(), "--port", str(port))
    key = cli(
        machine, "deploy", "--model", str(MODEL), "--served-model-name", "builtin:tiny", *options, timeout=600
    ).key
    serves(machine, key, port)
    first = engine(machine)
    refused_context(machine)
    serves(machine, key, port)

    release(machine, "9999.1", BROKEN)
    before = main_pid(machine)
    done = upgrade(machine)
    assert done.returncode == 6, done
    assert "half a release" in done.stderr
    assert "qwen3vl.service is back as it was" in done.stderr
    assert main_pid(machine) == before, "it served on, or was started again by the same supervisor"
    assert engine(machine) == first
    serves(machine, key, port)

    machine.shell(f"rm {WHEELS}/*")
    release(machine, "9999.2", "")
    done = upgrade(machine, "--bench", "--concurrency", "2", "--margin", "95")
    assert done.returncode == 0, done
    assert re.search(r"[\d.]+ tokens/s at best before, [\d.]+ now", done.stderr), done.stderr
    was, now = (each["served"]["engine_id"] for each in cli(machine, "bench", "history", "--json").json)
    assert (was, now) == (first, engine(machine))
    assert engine(machine) != first
    serves(machine, key, port)
    kept = engines(machine)
    assert first in kept

    cli(machine, "rollback")
    assert engine(machine) == first
    assert engines(machine) == kept
    serves(machine, key, port)


def upgrade(machine: Machine, *more: str) -> subprocess.CompletedProcess[str]:
    """To today's packages, of which the newest of one lies in the folder, beside all places that this host knows."""
    folders = " ".join((WHEELS, *read_sources(Host(), Settings(), os.environ).find_links))
    words = ("upgrade", "--resolve", *more)
    return machine.run(
        sys.executable, "-m", "installer", *words, check=False, env={"PIP_FIND_LINKS": folders}, timeout=600
    )


def refused_context(machine: Machine, context: int = 1024) -> None:
    """More than vLLM itself said that it can hold, by less than our estimate may be wrong."""
    table = cli(machine, "set-context", "1024", "--dry-run", "--json").json
    asked = table["kv_tokens"] + table["margin_bytes"] * 3 // 4 // table["kv_bytes_per_token"]
    done = cli(machine, "set-context", str(asked), code=6)
    found = re.search(rf"asked {asked}; this GPU fits (\d+); the service is back at {context}", done.err)
    assert found, done.err
    assert context < int(found[1]) < asked
    assert f"set-context {found[1]}" in done.err


def engine(machine: Machine, unit: str = SERVICE) -> str:
    """The one that serves."""
    found = re.search(r"/engines/(\w+)/", processes(machine, unit)[main_pid(machine, unit)])
    assert found
    return found[1]


def engines(machine: Machine) -> set[str]:
    return {path.name for path in machine.at("/opt/vllm-install/engines").iterdir()}


def release(machine: Machine, version: str, more: str) -> None:
    """A newer release of the package that the engine holds, with some lines more."""
    site = next(STORE.glob(f"engines/*/lib/python3*/site-packages/{PACKAGE}")).parent
    info = f"{PACKAGE}-{version}.dist-info"
    files = {str(path.relative_to(site)): path.read_bytes() for path in (site / PACKAGE).rglob("*.py")}
    files[f"{PACKAGE}/__init__.py"] += more.encode()
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(machine.at(WHEELS) / f"{PACKAGE}-{version}-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
