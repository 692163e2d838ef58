"""Two hosts that answer for one another, a real vLLM on each: no change of both costs a request, nor its undoing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from installer.base.host import Host
from installer.forms.venv.pipconf import read_sources
from installer.spec.settings import Settings
from tests.kit.boot import compiled
from tests.kit.boot.hosts import hosts
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO
from tests.kit.life import SERVICE, cli, serves
from tests.kit.load import Load, Plan, load
from tests.vllm.test_change_real import WHEELS, engine, release
from tests.vllm.test_group_real import START, UNBOUND

MEMBER = f"{SERVICE}@1"
DROP_INS = f"/etc/systemd/system/{MEMBER}.service.d"
# vLLM wants a list of processors, and says so when its engine has started and makes a worker.
REFUSED = "[Service]\nEnvironment=VLLM_CPU_OMP_THREADS_BIND=nobody\n"
REFUSES = "invalid literal for int() with base 10: 'nobody'"
OPTIONS = ("--model", "builtin:tiny", "--engine", "cpu", "--gpu-memory-utilization", "0.05", "--context", "512")
SLOW = ("--drain", "300")  # what a machine that has other things to do may take for an answer


class Pair(NamedTuple):
    one: Machine
    other: Machine
    key: str

    @property
    def engines(self) -> list[str]:
        return [engine(machine, MEMBER) for machine in (self.one, self.other)]

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[Load]:
        """Ten requests a second and clients that keep their connections, of the first host's gateway."""
        began = time.monotonic()
        with load(Plan(8000, self.key, tokens=8, patience=START), self.one.start) as asking:
            asking.wait_for(20, START)
            yield asking
            asking.wait_for(20, START)
        seen = asking.result
        print(f"{what}, {time.monotonic() - began:.0f} s: {seen.failed} of {seen.asked} failed {seen.failures}", end="")
        print(f", longest wait {seen.longest_wait:.1f} s")


@contextlib.contextmanager
def refused(machine: Machine) -> Iterator[None]:
    """No engine starts there."""
    machine.write(f"{DROP_INS}/wrong.conf", REFUSED)
    machine.run("systemctl", "daemon-reload")
    yield
    machine.at(f"{DROP_INS}/wrong.conf").unlink()
    machine.run("systemctl", "daemon-reload")


@pytest.fixture(scope="module")
def pip() -> Iterator[str]:
    """What pip is told here, and that it looks into a folder besides: as a file, which every host reads by itself."""
    sources = read_sources(Host(), Settings(), os.environ)
    sources = dataclasses.replace(sources, find_links=(WHEELS, *sources.find_links))
    said = {name.removeprefix("PIP_").lower(): text for name, text in sources.pip_environment().items()}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        yield "[install]\n" + "".join(f"{name} = {text}\n" for name, text in said.items() if name != "config_file")


def prepare(machine: Machine, pip: str) -> None:
    machine.at(WHEELS).mkdir()
    machine.write("/root/.config/pip/pip.conf", pip)


@pytest.fixture(scope="module")
def store(cpu_engine: str, pip: str) -> Iterator[Path]:
    """Beside the engine that was tested one of newer packages: hosts in a network of their own could not fetch them."""
    with tempfile.TemporaryDirectory(dir=REPO / "build") as folder:
        with Machine(network=True, store=True) as machine:
            prepare(machine, pip)
            release(machine, "9999.3", "")
            words = ("deploy", "--stage", "all", "--resolve", *OPTIONS)
            machine.run(sys.executable, "-m", "installer", *words, timeout=900)
            subprocess.run(["cp", "--archive", "--link", machine.at("/opt/vllm-install"), folder], check=True)
        yield Path(folder, "vllm-install")


@pytest.fixture(scope="module")
def pair(store: Path, pip: str) -> Iterator[Pair]:
    """With the engine of newer packages: so an upgrade is one to those that were tested."""
    with hosts(2, store=store) as (_, (one, other)):
        for machine in (one, other):
            prepare(machine, pip)
            compiled.give(machine, f"{MEMBER}.service")
            machine.write(f"{DROP_INS}/unbound.conf", UNBOUND)
            machine.run("systemctl", "daemon-reload")
        words = ("deploy", "--hosts", "gpu1,gpu2", "--gateway-hosts", "auto", *OPTIONS, *SLOW)
        yield Pair(one, other, cli(one, *words, timeout=2 * START).key)


def test_a_change_that_fails_on_the_second_host_is_undone_on_both_and_costs_no_request(
    pair: Pair, cpu_engine: str
) -> None:
    newer = pair.engines
    assert newer[0] == newer[1] != cpu_engine
    with pair.asked("a change that fails on the second host") as asking, refused(pair.other):
        said = cli(pair.one, "set-context", "256", code=6, timeout=2 * START).err
    assert "all hosts are as they were" in said
    assert REFUSES in pair.other.journal("--unit", MEMBER)
    assert [cli(machine, "status", "--json").json["context"] for machine in (pair.one, pair.other)] == [512, 512]
    assert asking.result.failures == {}


def test_nor_does_an_upgrade_of_both(pair: Pair, cpu_engine: str) -> None:
    with pair.asked("an upgrade of both") as asking:
        cli(pair.one, "upgrade", timeout=2 * START)
    assert asking.result.failures == {}
    assert pair.engines == [cpu_engine, cpu_engine]
    serves(pair.other, pair.key)
