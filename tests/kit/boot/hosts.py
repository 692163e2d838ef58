"""Machines that are hosts of a group: a network, sshd as the distribution has it, and who may reach whom.

Root of each may reach root of the others, but for the last one: there it is a user who may run sudo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kit.boot.machine import Machine
from tests.kit.boot.network import Network

USER = "deployer"
SSHD = """
[Unit]
After=network.target
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/test.conf
[Install]
WantedBy=multi-user.target
"""
CONFIG = """
HostKey /etc/ssh/host-key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PidFile none
"""
SUDOERS = f"root ALL=(ALL) ALL\n{USER} ALL=(ALL) NOPASSWD: ALL\n"
SUDO = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\nsession required pam_permit.so\n"


@contextmanager
def hosts(count: int = 2, *, store: bool | Path = False) -> Iterator[tuple[Network, list[Machine]]]:
    """gpu1, gpu2, ... in one network; place `count + 1` is free for a stranger."""
    with ExitStack() as held:
        network = held.enter_context(Network(count + 1))
        machines = [held.enter_context(network.machine(number, store=store)) for number in range(1, count + 1)]
        for number, machine in enumerate(machines, 1):
            _prepare(machine, number, network, count)
        known = "".join(
            f"gpu{number} {machine.run('cat', '/etc/ssh/host-key.pub').stdout}"
            for number, machine in enumerate(machines, 1)
        )
        keys = "".join(machine.run("cat", "/root/.ssh/id_ed25519.pub").stdout for machine in machines)
        for machine in machines:
            machine.write("/root/.ssh/known_hosts", known)
            machine.write("/root/.ssh/authorized_keys", keys)
        machines[-1].write(f"/home/{USER}/.ssh/authorized_keys", keys)
        yield network, machines


def _prepare(machine: Machine, number: int, network: Network, count: int) -> None:
    names = "".join(f"{network.address(each)} gpu{each}\n" for each in range(1, count + 1))
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
    machine.write("/etc/hostname", f"gpu{number}\n")
    machine.write(
        "/etc/sysusers.d/test.conf", f'u sshd - "sshd" /run/sshd\nu {USER} - "deployer" /home/{USER} /bin/sh\n'
    )
    machine.write("/etc/ssh/test.conf", CONFIG)
    machine.write("/etc/systemd/system/test-sshd.service", SSHD)
    machine.write("/etc/pam.d/sudo", SUDO)
    machine.write("/etc/sudoers", SUDOERS, 0o440)
    machine.write("/root/.ssh/config", f"Host gpu{count}\n  User {USER}\n")
    machine.shell(
        "systemd-sysusers; hostname -F /etc/hostname; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host-key;"
        "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519; systemctl daemon-reload;"
        f"mkdir -p /home/{USER}; usermod -p '*' {USER}; usermod -p '*' root; systemctl enable --now test-sshd"
    )
