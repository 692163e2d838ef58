"""Wheels for another host: those that a lock names, and this tool itself with what it needs."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from installer.base.assets import PACKAGE, asset_dir
from installer.base.errors import CommandFailed
from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import Advance, Report, size
from installer.forms.venv.pipconf import Sources
from installer.forms.venv.uv import EngineFailed, explain_uv
from installer.spec.engine import checksums, exact, versions
from installer.spec.settings import Settings

NAME = "vllm-install"
READ = 1 << 20
BATCH = 8  # packages that one process fetches; an interruption loses no more
GLIBC = re.compile(r"manylinux_(\d+)_(\d+)_")
OLD_GLIBC = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
OLDEST_GLIBC = (2, 5)
MOMENT = (2000, 1, 1, 0, 0, 0)


class Wheelhouse:
    """A directory that wheels are collected in; run again, it fetches those that are missing."""

    def __init__(self, directory: Path, python: Path, sources: Sources, settings: Settings, host: Host) -> None:
        self.directory = directory
        self.wheels = directory / "wheels"
        self.tool = directory / "tool"
        self._python, self._sources, self._settings, self._host = python, sources, settings, host

    def collect(self, lock: str, kind: str, report: Report) -> None:
        """One wheel for each package of a lock, and no other; each the one that the lock means, where it says which."""
        self.wheels.mkdir(parents=True, exist_ok=True)
        wanted = {_identity(*package.split("==")): package for package in versions(lock)}
        for wheel, identity in self._present():
            if identity not in wanted:
                wheel.unlink()
        missing = [wanted[identity] for identity in sorted(wanted.keys() - {found for _, found in self._present()})]
        for at in range(0, len(missing), BATCH):
            batch = exact("\n".join(missing[at : at + BATCH])).split()
            self._download(self.wheels, kind, "--no-deps", *batch)
            found = [wheel.stat().st_size for wheel, _ in self._present()]
            report.note(
                tr("{have} of {wanted} wheels, {size}", have=len(found), wanted=len(wanted), size=size(sum(found)))
            )
        if absent := wanted.keys() - {found for _, found in self._present()}:
            names = ", ".join(sorted(wanted[identity] for identity in absent))
            raise EngineFailed(tr("no wheel came for {packages}", packages=names))
        tested = checksums(lock)
        due = {wheel: tested[wanted[found]] for wheel, found in self._present() if wanted[found] in tested}
        self._refuse_others(due, report)

    @staticmethod
    def _refuse_others(due: Mapping[Path, Sequence[str]], report: Report) -> None:
        """What is not a wheel that was tested goes, so that the next run fetches it again."""
        with report.bytes(tr("checking the wheels"), sum(wheel.stat().st_size for wheel in due)) as advance:
            wrong = [wheel for wheel, checksums in due.items() if sha256(wheel, advance) not in checksums]
        for wheel in wrong:
            wheel.unlink()
        if wrong:
            names = ", ".join(wheel.name for wheel in wrong)
            raise EngineFailed(
                tr("not the wheels that were tested, by their checksums: {wheels}", wheels=names),
                tr(
                    "the index or folder holds files of its own under these versions, or they were tampered with: ask "
                    "who runs it; --resolve takes what is offered"
                ),
            )

    def collect_tool(self, kind: str, report: Report) -> None:
        """This tool as a wheel, and the wheels of what it depends on."""
        self.tool.mkdir(parents=True, exist_ok=True)
        for old in self.tool.iterdir():
            old.unlink()
        report.note(tr("fetching the packages of vllm-install itself"))
        self._download(self.tool, kind, *own_requirements())
        build_own_wheel(self.tool)

    def _present(self) -> list[tuple[Path, tuple[str, str]]]:
        wheels = sorted(self.wheels.glob("*.whl"))
        return [(wheel, _identity(*wheel.name.split("-")[:2])) for wheel in wheels]

    def _download(self, target: Path, kind: str, *arguments: str) -> None:
        sources = replace(self._sources, no_index=True) if self._settings.offline else self._sources
        try:
            # pip, because uv cannot keep the wheels that it fetches.
            self._host.run(
                sys.executable, "-I", "-m", "pip", "--python", self._python, "--no-input", "--no-cache-dir",
                "--disable-pip-version-check", "download", "--quiet", "--only-binary", ":all:", "--dest", target,
                *arguments, env=sources.pip_environment(),
            )  # fmt: skip
        except CommandFailed as error:
            raise explain_uv(error, kind, self._settings) from None


def oldest_glibc(wheels: Sequence[str]) -> tuple[int, int]:
    """The glibc below which one of the wheels would not install; of several tags the least demanding counts."""
    needs = [OLDEST_GLIBC]
    for name in wheels:
        platform = name.removesuffix(".whl").rpartition("-")[2]
        found = [(int(major), int(minor)) for major, minor in GLIBC.findall(platform)]
        found += [version for old, version in OLD_GLIBC.items() if f"{old}_" in platform]
        needs += [min(found)] if found else []
    return max(needs)


def sha256(path: Path, advance: Advance) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ):
            checksum.update(piece)
            advance(len(piece))
    return checksum.hexdigest()


def _identity(name: str, version: str) -> tuple[str, str]:
    """One spelling for what a lock and a file's name say differently."""
    return re.sub(r"[-_.]+", "-", name).lower(), version.replace("_", "-").lower()


# The tool itself


def own_requirements() -> list[str]:
    return [line for line in metadata.requires(NAME) or [] if "extra ==" not in line]


def build_own_wheel(folder: Path) -> Path:
    """Pack the running tool as the wheel that its build would make: no build, and no source, is needed."""
    own = metadata.distribution(NAME)
    info = f"{NAME.replace('-', '_')}-{own.version}.dist-info"
    files = {f"installer/{name}": path.read_bytes() for name, path in own_files()}
    for name in ("METADATA", "entry_points.txt"):
        files[f"{info}/{name}"] = (own.read_text(name) or "").encode()
    for path in own.files or ():
        if "licenses" in path.parts:
            files[f"{info}/licenses/{path.name}"] = path.read_binary()
        elif path.parent.name == "man8":
            files[f"{info.removesuffix('.dist-info')}.data/data/share/man/man8/{path.name}"] = path.read_binary()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: vllm-install\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    sums = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in files.items()}
    record = "".join(f"{name},sha256={sums[name].decode().rstrip('=')},{len(files[name])}\n" for name in files)
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{NAME.replace('-', '_')}-{own.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, MOMENT), data)
    return wheel


def own_files() -> Iterator[tuple[str, Path]]:
    assets = [(f"assets/{name}/", asset_dir(name)) for name in ("templates", "units")]
    for prefix, top in [("", PACKAGE), *assets]:
        for path in sorted(top.rglob("*")):
            inside = path.relative_to(top)
            is_cache = "__pycache__" in inside.parts
            is_asset = top == PACKAGE and inside.parts[0] == "assets"  # they come by themselves, wherever they lie
            if path.is_file() and not is_cache and not is_asset:
                yield f"{prefix}{inside}", path
