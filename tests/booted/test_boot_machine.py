"""The machines that other tests rely on: they boot, keep, report and vanish."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.kit.boot import machine as machines
from tests.kit.boot.machine import Machine, MachineFailed
from tests.kit.boot.network import PLACES, Network
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.boot.surroundings import REPO
from tests.kit.life import until


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    """A new one for each test."""
    return boot()


def test_systemd_is_pid_1_and_content(machine: Machine) -> None:
    assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"


def test_the_disk_survives_a_reboot_and_a_power_cut(machine: Machine) -> None:
    machine.shell("echo kept >/etc/kept; sync")
    machine.reboot()
    machine.cut_power()
    machine.boot()
    assert machine.run("cat", "/etc/kept").stdout == "kept\n"


def test_two_machines_at_once_do_not_see_each_other(boot: Callable[..., Machine]) -> None:
    one, two = boot(), boot()
    one.shell("systemd-run --quiet --unit=only-here sleep infinity")
    assert one.run("systemctl", "is-active", "only-here").stdout == "active\n"
    assert two.run("systemctl", "is-active", "only-here", check=False).stdout == "inactive\n"


def test_the_repository_is_read_only_inside(machine: Machine) -> None:
    assert machine.run("touch", REPO / "touched", check=False).returncode != 0


def test_a_failed_command_shows_output_and_journal(machine: Machine) -> None:
    with pytest.raises(MachineFailed) as failure:
        machine.shell("echo said this; logger --tag=witness saw that; exit 3")
    assert "ended with 3" in str(failure.value)
    assert "said this" in str(failure.value)
    assert "witness" in str(failure.value)


def test_a_command_without_end_is_ended(machine: Machine) -> None:
    with pytest.raises(MachineFailed, match="took more than"):
        machine.run("sleep", "infinity", timeout=0.5)
    until("it is gone", lambda: "infinity" not in machine.run("ps", "ax").stdout, machine)


def test_a_snapshot_notices_every_kind_of_change(machine: Machine) -> None:
    machine.shell("cd /var; mkdir d; echo a >f; echo a >g; ln -s f l; echo gone >h")
    before = snapshot(machine.root)
    machine.shell("cd /var; rmdir d; echo b >f; chmod 600 g; ln -sf g l; rm h; chown 1:1 g; touch /opt/new")
    kinds = [line.partition(":")[0] for line in difference(before, snapshot(machine.root))]
    assert kinds == [
        "added /opt/new", "changed /var/f", "changed /var/g", "changed /var/l", "removed /var/d", "removed /var/h",
    ]  # fmt: skip


def test_nothing_is_left_of_a_machine(boot: Callable[..., Machine]) -> None:
    with Machine() as machine:
        assert machine.name in machines.running()
    assert leftovers(machine.name) == []


@pytest.mark.root
def test_a_killed_test_run_leaves_no_machine(tmp_path: Path) -> None:
    script = "from tests.kit.boot.machine import Machine\nm = Machine().__enter__()\nprint(m.name, flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPO, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        tree = psutil.Process(process.pid).children(recursive=True)
        assert name in machines.running()
        os.kill(process.pid, signal.SIGKILL)
    assert psutil.wait_procs(tree, timeout=180)[1] == []
    machines.sweep()
    assert leftovers(name) == []


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 4000), timeout=2)"
LISTEN = "import socket, time; s = socket.create_server(('', 4000)); time.sleep(3600)"
FILTER = ("--property=IPAddressDeny=any", "--property=IPAddressAllow=10.77.0.2")


@pytest.mark.root
def test_machines_share_a_network_whose_cables_can_be_cut_and_nothing_else() -> None:
    with Network() as network, network.machine(1) as one, network.machine(2) as two:

        def listen(unit: str, *properties: str) -> None:
            one.run("systemd-run", "--quiet", f"--unit={unit}", *properties, "/usr/bin/python3", "-c", LISTEN)
            until("somebody listens", lambda: ":4000" in one.run("ss", "-Hltn").stdout, one)

        def two_gets_in() -> bool:
            return two.run("/usr/bin/python3", "-c", CONNECT, network.address(1), check=False).returncode == 0

        def stranger_gets_in() -> bool:
            return network.stranger(3, "/usr/bin/python3", "-c", CONNECT, network.address(1)).returncode == 0

        one.shell("touch /tmp/here /dev/shm/here")
        assert two.shell("ls /tmp /dev/shm").stdout.count("here") == 0
        listen("filtered", *FILTER)
        assert (two_gets_in(), stranger_gets_in()) == (True, False)
        one.run("systemctl", "stop", "filtered")
        listen("open")
        assert (two_gets_in(), stranger_gets_in()) == (True, True), "without the filter anybody gets in"
        network.cut(2)
        assert (two_gets_in(), stranger_gets_in()) == (False, True)
        network.mend(2)
        network.deafen(2, to=1)
        assert (two_gets_in(), stranger_gets_in()) == (False, True)
        network.undeafen(2, to=1)
        until("it is heard again", two_gets_in, one)
    assert not list(PLACES.glob(f"{network.name}*"))


def test_ending_kept_machines_leaves_those_in_use_alone(machine: Machine) -> None:
    kept = "from tests.kit.boot.machine import Machine\nwith Machine(keep=True) as m: print(m.name)"
    started = subprocess.run([sys.executable, "-c", kept], cwd=REPO, check=True, text=True, stdout=subprocess.PIPE)
    name = started.stdout.strip()
    assert name in machines.running()
    ended = [one for one in machines.running() if not machines.has_owner(one)]
    assert name in ended
    assert machine.name not in ended
    process = psutil.Process(machines.running()[name])
    tree = [process, *process.children(recursive=True)]
    process.kill()
    assert psutil.wait_procs(tree, timeout=180)[1] == []
    machines.sweep()
    assert leftovers(name) == []
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"


def leftovers(name: str) -> list[str]:
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    found += [str(path) for top in ("", "systemd", "unified") for path in Path("/sys/fs/cgroup", top).glob(name)]
    found += [str(path) for path in machines.MACHINES.glob(name)]
    return found + [line for line in machines.running() if line == name]
