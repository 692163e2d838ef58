"""What the unit keeps a service from reaching, tried from its control group: without the directive it is reached."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.layout import Layout
from installer.monitor import logs
from installer.spec.settings import Settings
from installer.units import alarm
from installer.units.gateway import gateway_files
from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, cli, is_up, standin, until
from tests.kit.targets import replicated

METADATA, ELSEWHERE, HERE = "169.254.169.254", "192.0.2.7", "127.0.0.1"  # addresses of this machine, all three
DROP_IN = f"/etc/systemd/system/{SERVICE}.service.d/open.conf"
PORT = 4000
LISTEN = f"import socket, time; s = socket.create_server(('', {PORT})); time.sleep(3600)"
CONNECT = f"import socket, sys; socket.create_connection((sys.argv[1], {PORT}), timeout=2)"


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        machine.shell(f"for a in {METADATA} {ELSEWHERE}; do ip address add $a/32 dev lo; done; ip link set lo up")
        machine.run("systemd-run", "--quiet", "--unit=planted", sys.executable, "-c", LISTEN)
        until("somebody listens", lambda: f":{PORT}" in machine.run("ss", "-Hltn").stdout, machine)
        cli(machine, "deploy", *standin(standin_wheels))
        yield machine


def reached(machine: Machine) -> set[str]:
    """The addresses that a process of the service gets a connection to."""
    into = f'echo $$ >/sys/fs/cgroup"$(systemctl show --property=ControlGroup --value {SERVICE})"/cgroup.procs'
    script = f'{into}; exec {sys.executable} -c "$1" "$2"'
    tries = {
        address: machine.run("sh", "-euc", script, "sh", CONNECT, address, check=False)
        for address in (METADATA, ELSEWHERE, HERE)
    }
    return {address for address, tried in tries.items() if tried.returncode == 0}


def without_the_directives(machine: Machine) -> set[str]:
    machine.write(DROP_IN, "[Service]\nIPAddressDeny=\nIPAddressAllow=\n")
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")
    until("it serves", lambda: is_up(machine), machine)
    found = reached(machine)
    machine.shell(f"rm -r {Path(DROP_IN).parent}; systemctl daemon-reload; systemctl restart {SERVICE}")
    until("it serves", lambda: is_up(machine), machine)
    return found


def test_a_service_for_all_reaches_no_metadata(machine: Machine) -> None:
    cli(machine, "set", "LISTEN_HOST=0.0.0.0")
    assert reached(machine) == {ELSEWHERE, HERE}
    assert without_the_directives(machine) == {METADATA, ELSEWHERE, HERE}


def test_a_service_for_this_host_reaches_this_host_alone(machine: Machine) -> None:
    cli(machine, "set", "LISTEN_HOST=127.0.0.1")
    assert reached(machine) == {HERE}
    assert without_the_directives(machine) == {METADATA, ELSEWHERE, HERE}


def gateway_at(host: str) -> str:
    want = replicated((), (), service="q", host=host)
    return gateway_files(want.target, want.layout, Path("/opt/runtime"))[want.layout.unit]


def sender() -> str:
    want, layout = replicated((), notify_url="https://example.com/"), Layout(Settings.service)
    return next(text for path, text in alarm.texts(want.target, layout, Path("/r")).items() if "notify" in text)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (gateway_at("127.0.0.1"), {HERE}),
        (gateway_at("0.0.0.0"), {ELSEWHERE, HERE}),
        (sender(), {ELSEWHERE, HERE}),
        (logs.unit(), {ELSEWHERE, HERE}),
    ],
    ids=["gateway for this host", "gateway for all", "alarm", "logs"],
)
def test_what_stands_beside_a_service_reaches_no_metadata_either(
    machine: Machine, unit: str, expected: set[str]
) -> None:
    directives = [f"--property={line}" for line in unit.splitlines() if line.startswith("IPAddress")]
    assert directives

    def reaches(address: str, *properties: str) -> bool:
        command = ("systemd-run", "--quiet", "--wait", *properties, sys.executable, "-c", CONNECT, address)
        return machine.run(*command, check=False).returncode == 0

    assert {address for address in (METADATA, ELSEWHERE, HERE) if reaches(address, *directives)} == expected
    assert reaches(METADATA), "without them it is reached"
