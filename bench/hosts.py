"""Hosts: what clients lose by changes of two hosts that answer for one another, with a real vLLM (CPU) on each.

A change that the second host refuses and both undo, and an upgrade that goes over both, under 10 new connections a
second and clients that keep theirs. Needs root; some ten minutes on two cores, and the engine is built on first use
(the network, some 5 GB below build/opt).
"""

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

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from installer.base.host import Host  # noqa: E402
from installer.forms.venv.pipconf import read_sources  # noqa: E402
from installer.spec.settings import Settings  # noqa: E402
from tests.kit.boot import compiled  # noqa: E402
from tests.kit.boot.hosts import hosts  # noqa: E402
from tests.kit.boot.machine import Machine  # noqa: E402
from tests.kit.life import SERVICE, cli, serves  # noqa: E402
from tests.kit.load import Load, Plan, load  # noqa: E402
from tests.vllm.test_change_real import WHEELS, engine, release  # noqa: E402
from tests.vllm.test_group_real import START, UNBOUND  # noqa: E402

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


@contextlib.contextmanager
def told_to_pip() -> Iterator[str]:
    """What pip is told here, and that it looks into a folder besides: as a file, which every host reads by itself."""
    sources = read_sources(Host(), Settings(), os.environ)
    sources = dataclasses.replace(sources, find_links=(WHEELS, *sources.find_links))
    said = {name.removeprefix("PIP_").lower(): text for name, text in sources.pip_environment().items()}
    here = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("PIP_")}
    try:
        yield "[install]\n" + "".join(f"{name} = {text}\n" for name, text in said.items() if name != "config_file")
    finally:
        os.environ |= here


def prepare(machine: Machine, pip: str) -> None:
    machine.at(WHEELS).mkdir()
    machine.write("/root/.config/pip/pip.conf", pip)


def install(machine: Machine, *more: str) -> None:
    words = ("deploy", "--stage", "all", *more, *OPTIONS)
    machine.run(sys.executable, "-m", "installer", *words, timeout=900)


@contextlib.contextmanager
def engines(pip: str) -> Iterator[Path]:
    """The engine that was tested, and one of newer packages: hosts in a network of their own could not fetch them."""
    with tempfile.TemporaryDirectory(dir=REPO / "build") as folder:
        with Machine(network=True, store=True) as machine:
            prepare(machine, pip)
            install(machine)
            machine.save_store()
            release(machine, "9999.3", "")
            install(machine, "--resolve")
            subprocess.run(["cp", "--archive", "--link", machine.at("/opt/vllm-install"), folder], check=True)
        yield Path(folder, "vllm-install")


@contextlib.contextmanager
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


def undone(pair: Pair) -> None:
    with refused(pair.other):
        said = cli(pair.one, "set-context", "256", code=6, timeout=2 * START).err
    if "all hosts are as they were" not in said or REFUSES not in pair.other.journal("--unit", MEMBER):
        raise SystemExit(f"it failed in another way: {said}")


def main() -> None:
    failed = 0
    with told_to_pip() as pip, engines(pip) as store, pair(store, pip) as both:
        newer = both.engines
        with both.asked("a change that fails on the second host and is undone on both") as asking:
            undone(both)
        failed += asking.result.failed
        with both.asked("an upgrade of both") as asking:
            cli(both.one, "upgrade", timeout=2 * START)
        failed += asking.result.failed
        if set(newer) & set(both.engines):
            raise SystemExit("the upgrade changed nothing")
        serves(both.other, both.key)
    if failed:
        raise SystemExit("a change must not cost a request")


if __name__ == "__main__":
    main()
