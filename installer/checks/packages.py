"""What the distribution calls the packages we need, and the command that installs them."""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.language import tr
from installer.spec.facts import Facts


@dataclass(frozen=True)
class Packages:
    """How a family of distributions names what we need; {0} is Python's version, {1} the same without its dot."""

    install: str
    cxx: str
    python: str
    headers: str
    libnuma: str


APT = Packages("apt-get install -y", "g++", "python{0}", "python{0}-dev", "libnuma1")
DNF = Packages("dnf install -y", "gcc-c++", "python{0}", "python{0}-devel", "numactl-libs")
ZYPPER = Packages("zypper install -y", "gcc-c++", "python{1}", "python{1}-devel", "libnuma1")
PACMAN = Packages("pacman -S --needed", "gcc", "python", "python", "numactl")
DISTRIBUTIONS = {
    "debian": APT, "ubuntu": APT, "fedora": DNF, "rhel": DNF, "centos": DNF, "suse": ZYPPER, "opensuse": ZYPPER,
    "sles": ZYPPER, "arch": PACMAN,
}  # fmt: skip


def packages_of(facts: Facts) -> Packages | None:
    return next((DISTRIBUTIONS[name] for name in facts.distribution if name in DISTRIBUTIONS), None)


def install_command(facts: Facts, *names: str) -> str:
    packages = packages_of(facts)
    if packages is None:
        return tr("install {names} with this distribution's package manager", names=" ".join(names))
    return f"sudo {packages.install} {' '.join(names)}"
