"""The packages: what is in them, and a service's life with them on a Debian that has nothing else of ours."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from installer import __version__
from installer.airgap.wheelhouse import own_requirements
from scripts import packages
from tests.kit.boot.debian import copy, debian, run_in
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.life import cli, main_pid, serves, standin

DEB = f"vllm-install_{__version__}_amd64.deb"
RPM = f"vllm-install-{__version__}-1.x86_64.rpm"
WHEEL = f"vllm_install-{__version__}-py3-none-any.whl"
SDIST = f"vllm_install-{__version__}.tar.gz"
SBOM = f"vllm-install_{__version__}.cdx.json"
NEXT = "0.9.0"
HOME = "usr/lib/vllm-install"
SITE = f"{HOME}/lib/python3/site-packages"
STANDIN = "/srv/standin"
# Its stages as systemd runs them at a boot, and what it is to leave alone here: the host's network, and disks.
CLOUD_INIT = (
    "cloud-init init --local; cloud-init init; for part in config final; do cloud-init modules --mode $part; done"
)
HERE = "datasource_list: [NoCloud]\nnetwork: {config: disabled}\ngrowpart: {mode: 'off'}\nresize_rootfs: false\n"
# What apt remembers, the tool of `make install` with its sources, and what somebody was told of.
BESIDE = (
    "var/lib/apt", "var/lib/dpkg", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "opt/vllm-install/tool",
    "srv", "var/lib/vllm-install/qwen3vl/told.json",
)  # fmt: skip


def build(source: Path, dist: Path, umask: int = 0o022, **environment: str) -> Path:
    command = [sys.executable, "-m", "scripts.packages", dist]
    subprocess.run(command, cwd=source, check=True, umask=umask, env={**os.environ, **environment})
    return dist


def said(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPO, tmp_path_factory.mktemp("packages") / "dist")


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb's files."""
    root = tmp_path_factory.mktemp("deb")
    said("dpkg-deb", "--extract", dist / DEB, root)
    return root


# what is in them


def test_a_build_elsewhere_out_of_the_sdist_gives_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(dist / SDIST) as archive:
        archive.extractall(tmp_path)
    source = tmp_path / SDIST.removesuffix(".tar.gz")
    shutil.copytree(packages.WHEELS, source / "build/packages/wheels")
    again = build(source, tmp_path / "dist", 0o077, TZ="Asia/Shanghai")
    files = {path.name: path.read_bytes() for path in dist.iterdir()}
    assert files.keys() == {DEB, RPM, WHEEL, SDIST, SBOM, "SHA256SUMS"}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == files
    summed = said("sh", "-c", 'cd "$0" && sha256sum --check --strict SHA256SUMS', dist)
    assert summed.count(": OK\n") == len(files) - 1


@pytest.mark.root  # who has installed it
def test_lintian_finds_nothing_that_is_not_explained(dist: Path) -> None:
    assert said("lintian", "--allow-root", "--fail-on", "error,warning,info,pedantic", dist / DEB) == ""


@pytest.mark.root
def test_the_rpm_holds_what_the_deb_holds(dist: Path, unpacked: Path) -> None:
    line = "[%{FILENAMES} %{FILEMODES:octal} %{FILEDIGESTS}%{FILELINKTOS}\n]"
    files = {name: rest for name, *rest in map(str.split, said("rpm", "-qp", "--qf", line, dist / RPM).splitlines())}
    for name, (mode, *content) in files.items():
        path = unpacked / name.replace("site-functions", "vendor-completions").lstrip("/")
        assert oct(path.lstat().st_mode)[2:] == mode or path.is_symlink(), name
        expected = str(path.readlink()) if path.is_symlink() else packages.sha256(path) if path.is_file() else None
        assert content == ([expected] if expected else []), name
    inside = {f"/{path.relative_to(unpacked)}" for path in (unpacked / HOME).rglob("*")}
    assert inside <= files.keys()
    assert "python3 >= 3.10" in said("rpm", "-qp", "--requires", dist / RPM)


def test_the_list_of_what_is_in_them_is_valid_and_whole(dist: Path, unpacked: Path) -> None:
    text = (dist / SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert (unpacked / "usr/share/doc/vllm-install/sbom.cdx.json").read_text() == text
    listed = {f"{part['name'].replace('-', '_')}-{part['version']}" for part in json.loads(text)["components"]}
    there = {path.name.removesuffix(".dist-info").lower() for path in (unpacked / SITE).glob("*.dist-info")}
    assert there - {f"vllm_install-{__version__}"} == listed
    needed = {ref.split("/")[1].split("@")[0] for ref in json.loads(text)["dependencies"][0]["dependsOn"]}
    assert needed == {canonicalize_name(Requirement(line).name) for line in own_requirements()}


def test_man_page_and_completions_lie_where_their_readers_look(unpacked: Path) -> None:
    share = unpacked / "usr/share"
    page = gzip.decompress((share / "man/man8/vllm-install.8.gz").read_bytes())
    assert page.startswith(b".TH VLLM-INSTALL 8 ")
    assert "_VLLM_INSTALL_COMPLETE=bash_complete" in (share / "bash-completion/completions/vllm-install").read_text()
    assert (share / "zsh/vendor-completions/_vllm-install").read_text().startswith("#compdef vllm-install\n")
    assert "complete " in (share / "fish/vendor_completions.d/vllm-install.fish").read_text()


def test_uv_installs_the_wheel_as_a_tool(dist: Path, tmp_path: Path) -> None:
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    uv = (find_uv_bin(), "tool", "install", "--quiet", "--offline", "--no-config", "--python", sys.executable)
    said(*uv, "--no-index", "--find-links", packages.WHEELS, dist / WHEEL, **places)
    assert said(tmp_path / "bin/vllm-install", "--version") == f"vllm-install, version {__version__}\n"


# on a host


@pytest.mark.root
def test_debian_12_installs_upgrades_and_purges_it_with_nothing_left(dist: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    copy(debian("bookworm"), root)
    shutil.copy(dist / DEB, root / "srv")
    packages.pack("deb", root / "srv", NEXT)
    apt = "apt-get --quiet --yes --no-install-recommends"
    run_in(root, f"{apt} update; {apt} install python3 libgcc-s1")
    before = snapshot(root, BESIDE)
    for name in (DEB, f"vllm-install_{NEXT}_amd64.deb"):
        run_in(root, f"{apt} install /srv/{name}")
        told = run_in(root, f"vllm-install --version; /{HOME}/bin/python3 -I -m pip --version; vllm-install list")
        assert f"version {__version__}\npip " in told
        assert "no services yet" in told
        assert list((root / SITE / "installer/__pycache__").glob("cli.cpython-311.pyc"))
    run_in(root, f"{apt} purge vllm-install")
    assert difference(before, snapshot(root, BESIDE)) == []
    assert not (root / HOME).exists()


@pytest.fixture(scope="module")
def machine(dist: Path, standin_wheels: Path) -> Iterator[Machine]:
    """A Debian 13 that boots, and no more; the packages, and what a stand-in engine is made of, lie in /srv."""
    with Machine(network=True, system=debian("trixie")) as machine:
        shutil.copytree(standin_wheels, machine.at(STANDIN))
        for name in (DEB, SDIST):
            shutil.copy(dist / name, machine.at("/srv"))
        packages.pack("deb", machine.at("/srv"), NEXT)
        apt(machine, "update")
        yield machine


def apt(machine: Machine, *words: str) -> str:
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes", "--no-install-recommends")
    done = machine.run(*quiet, *words, timeout=600)
    return done.stdout + done.stderr


def install(machine: Machine, version: str = __version__) -> str:
    return apt(machine, "install", f"/srv/vllm-install_{version}_amd64.deb")


@dataclass(frozen=True)
class Deployed:
    """A service, and what must not change while the tool comes and goes."""

    machine: Machine
    port: int
    key: str
    pid: int
    disk: dict[str, str]

    def goes_on(self) -> None:
        serves(self.machine, self.key, self.port)
        assert main_pid(self.machine) == self.pid
        assert difference(self.disk, snapshot(self.machine.root, BESIDE)) == []


def complete(machine: Machine) -> None:
    """What a bare host lacks for an engine it says itself, and how to get it."""
    told = machine.cli("plan", *standin(Path(STANDIN)), check=False).stderr
    for wanted in re.findall(r"-> sudo apt-get install -y (.+)", told):
        apt(machine, "install", *wanted.split())


def deploy(machine: Machine, *options: str) -> Deployed:
    port = free_port()
    key = cli(machine, "deploy", "--port", str(port), *options, *standin(Path(STANDIN))).key
    serves(machine, key, port)
    return Deployed(machine, port, key, main_pid(machine), snapshot(machine.root, BESIDE))


def test_a_service_serves_on_through_upgrade_removal_and_purge_of_the_package(machine: Machine) -> None:
    install(machine)
    complete(machine)
    before = snapshot(machine.root, BESIDE)
    service = deploy(machine, "--notify-command", "/bin/true")
    install(machine, NEXT)
    assert machine.run("dpkg-query", "--show", "--showformat=${Version}", "vllm-install").stdout == NEXT
    assert cli(machine, "plan").out == "nothing to change\n"
    service.goes_on()
    for verb in ("remove", "purge"):
        assert "note: qwen3vl runs on without the tool" in apt(machine, verb, "vllm-install")
        service.goes_on()
        machine.run("systemctl", "start", "vllm-alarm@qwen3vl.service")  # as its timer does: nothing to run
        install(machine)
        assert cli(machine, "plan").out == "nothing to change\n"
    cli(machine, "uninstall", "--yes", "--purge")
    assert difference(before, snapshot(machine.root, BESIDE)) == []
    apt(machine, "purge", "vllm-install")


def test_it_takes_over_from_make_install_and_gives_way_to_it_again(machine: Machine) -> None:
    source = f"/srv/{SDIST.removesuffix('.tar.gz')}"
    apt(machine, "install", "make", "python3-venv")
    machine.shell(f"tar xzf /srv/{SDIST} -C /srv; make -C {source} install", timeout=600)
    complete(machine)
    service = deploy(machine)
    tool = ("/opt/vllm-install/tool", "/usr/local/bin/vllm-install", "/usr/local/share/man/man8/vllm-install.8")

    told = install(machine)
    assert "/usr/local/bin/vllm-install, of `make install`, still comes first" in told
    assert machine.run("/usr/bin/vllm-install", "plan").stdout == "nothing to change\n"
    machine.shell(next(line for line in told.splitlines() if line.startswith("  rm -r ")))
    assert not [path for path in tool if os.path.lexists(machine.at(path))]
    assert machine.shell("command -v vllm-install").stdout == "/usr/bin/vllm-install\n"
    assert cli(machine, "plan").out == "nothing to change\n"

    apt(machine, "remove", "vllm-install")
    machine.shell(f"make -C {source} install", timeout=600)
    assert cli(machine, "plan").out == "nothing to change\n"
    service.goes_on()
    cli(machine, "uninstall", "--yes", "--purge")


def test_cloud_init_makes_a_host_that_serves_from_its_first_boot_on(machine: Machine, dist: Path) -> None:
    """By its own stages, in their order; of the user data the settings alone are others, and where the .deb lies."""
    port = free_port()
    data = (REPO / "packages/cloud-init/user-data").read_text()
    settings = (
        f"MODEL_NAME=builtin:tiny\n      ENGINE=cpu\n      FIND_LINKS={STANDIN}\n      OFFLINE=yes\n      PORT={port}"
    )
    for ours, here in {
        f"https://example.org/{DEB}": f"file:///srv/{DEB}", "SHA256": packages.sha256(dist / DEB),
        "[ca-certificates, curl]": "[ca-certificates, curl, g++, libnuma1, python3-dev]",
        "MODEL_NAME=Qwen/Qwen3-VL-8B-Instruct": settings,
    }.items():  # fmt: skip
        assert data.count(ours) == 1
        data = data.replace(ours, here)
    apt(machine, "install", "cloud-init")
    machine.write("/etc/cloud/cloud.cfg.d/99-here.cfg", HERE)
    machine.write("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: first\n")
    machine.write("/var/lib/cloud/seed/nocloud/user-data", data)
    machine.run("cloud-init", "schema", "--config-file", "/var/lib/cloud/seed/nocloud/user-data")
    machine.shell(CLOUD_INIT, timeout=600)
    result = json.loads(machine.at("/var/lib/cloud/data/result.json").read_text())["v1"]
    logs = machine.shell("cat /var/log/cloud-init*.log").stdout
    assert result["errors"] == [], logs
    kept = machine.at("/root/vllm-install.json")
    key = json.loads(kept.read_text())["api_key"]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert key not in logs
    serves(machine, key, port)
    pid = main_pid(machine)
    machine.shell(CLOUD_INIT, timeout=600)  # as at the next boot
    assert main_pid(machine) == pid
    cli(machine, "uninstall", "--yes", "--purge")
