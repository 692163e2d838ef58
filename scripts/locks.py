"""Write the locks that ship with this tool: every package of the default vLLM and SGLang by version and checksum, and
what it needs itself (packages/requirements.txt).

Asks the package index; takes some minutes. Look at the difference, run the tests of tests/forms/test_locks.py, and
deploy one engine of each kind before you commit it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from installer.base.assets import DATA
from installer.base.host import Host
from installer.families.family import Family
from installer.families.sglang.family import SGLANG
from installer.families.vllm.family import VLLM
from installer.forms.venv.pipconf import read_sources
from installer.forms.venv.uv import run_uv
from installer.spec.settings import Settings
from scripts.packages import PYTHONS, REPO, REQUIREMENTS
from tests.kit.wheels import make_wheel

# The CPU build of torch is on PyTorch's own index alone. Its checksums as that index lists them, each found the same in
# two or more public lock files; the file for 3.11 on x86_64 was at hand, and is the one listed.
TORCH = "torch==2.13.0+cpu"
TORCH_NEEDS = (
    "filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2",
    "fsspec>=0.8.5",
)  # fmt: skip
TORCH_WHEELS = {
    "cp311-x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "cp312-x86_64": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "cp313-x86_64": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
    "cp314-x86_64": "d20fa53ee744502fa4c69818a720b05ca0d37abd055d4f6e66cae155114bc691",
    "cp311-aarch64": "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
    "cp312-aarch64": "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
    "cp313-aarch64": "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
    "cp314-aarch64": "ca021f9eb2f8345c83fa03e3a04587308afb8df71bd472670b3ece00df58621c",
}
PACKAGE = re.compile(r'\[\[packages\]\]\nname = "([^"]+)"\nversion = "([^"]+)"\n((?:.+\n?)*)')
WHEEL = re.compile(r'url = "[^"]*/([^/"]+\.whl)".*?sha256 = "([0-9a-f]{64})"')

PLATFORM = "x86_64-manylinux_2_28"  # of the packages of this tool
NEWEST_GLIBC = (2, 40)  # that uv knows the wheels of

Target = tuple[int, str]  # Python 3.N, architecture
Lock = dict[str, list[str]]  # NAME==VERSION -> sha256 of its wheels


@dataclass(frozen=True)
class Build:
    """An engine that has a lock, in the version that is deployed where nobody asks for another."""

    family: Family
    kind: str

    @property
    def version(self) -> str:
        return self.family.version(Settings())

    @property
    def name(self) -> str:
        return f"{self.family.name}-{self.kind}-{self.version}"

    @property
    def targets(self) -> list[Target]:
        packages = self.family.packages
        return [(minor, arch) for arch in packages.glibc[self.kind] for minor in packages.pythons[self.kind]]


# ROCm's wheels are on an index of vLLM's own: nobody has seen a lock of them install yet, so there is none.
# Of SGLang no index has a build for processors.
BUILDS = (Build(VLLM, "cuda"), Build(VLLM, "cpu"), Build(SGLANG, "cuda"))


def main() -> None:
    folder = DATA / "locks"
    folder.mkdir(exist_ok=True)
    for build in BUILDS:
        with tempfile.TemporaryDirectory() as cache:
            locks = {name_of(target): _lock(build, target, Path(cache)) for target in build.targets}
        (folder / f"{build.name}.json").write_text(_text(locks))
        print(f"{build.name}: {', '.join(f'{name} {len(lock)}' for name, lock in locks.items())}")
    with tempfile.TemporaryDirectory() as cache:
        REQUIREMENTS.write_text(tool_requirements(Path(cache)))


def tool_requirements(cache: Path) -> str:
    """What the tool itself needs, in versions that the oldest Python takes: a package of ours has one of each."""
    return run_uv(
        Host(), cache, "pip", "compile", "--python-version", f"3.{PYTHONS[0]}", "--python-platform", PLATFORM,
        "--no-build", "--generate-hashes", "--no-header", "--no-annotate", REPO / "pyproject.toml",
        sources=replace(read_sources(Host(), Settings(), os.environ), find_links=(), extra_index_urls=()),
    )  # fmt: skip


def name_of(target: Target) -> str:
    return "cp3{}-{}".format(*target)


def _text(locks: dict[str, Lock]) -> str:
    """Each wheel once, on a line of its own; one that fits every target names none of them."""
    places: dict[tuple[str, str], list[str]] = {}
    for name, lock in locks.items():
        for package, checksums in lock.items():
            for sha256 in checksums:
                places.setdefault((package, sha256), []).append(name)
    lines = []
    for (package, sha256), names in sorted(places.items(), key=lambda item: (item[0][0].split("=="), item[1])):
        some = {} if len(names) == len(locks) else {"targets": names}
        lines.append(json.dumps({"package": package, "sha256": sha256, **some}))
    return f'{{"targets": {json.dumps(list(locks))},\n"wheels": [\n' + ",\n".join(lines) + "\n]}\n"


def _lock(build: Build, target: Target, cache: Path) -> Lock:
    """Every package with the checksums of the wheels that an installer may take there; which, its glibc decides."""
    held = offered(build, target, cache, build.family.packages.glibc[build.kind][target[1]])
    lock = {}
    for package, wheels in offered(build, target, cache, NEWEST_GLIBC, held).items():
        lock[package] = [sha256 for file, sha256 in wheels.items() if _tags(target) & parse_wheel_filename(file)[3]]
        if package == TORCH:
            lock[package] = [TORCH_WHEELS[name_of(target)]]
    return lock


def offered(
    build: Build, target: Target, cache: Path, glibc: tuple[int, int], held: Iterable[str] = ()
) -> dict[str, dict[str, str]]:
    """NAME==VERSION -> its wheels by name with their checksums, as resolving on such a machine would give them; of
    packages that are `held` (NAME==VERSION) no other version."""
    minor, arch = target
    rules = build.family.packages.rules(build.kind, build.version)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_wheel(
            folder, *TORCH.split("=="), requires=TORCH_NEEDS
        )  # its metadata alone: all of its files have the same
        (folder / "constraints.txt").write_text("\n".join([*rules.constraints, *held]))
        (folder / "excludes.txt").write_text("\n".join(rules.exclusions))
        sources = replace(read_sources(Host(), Settings(), os.environ), find_links=(), extra_index_urls=())
        if build.kind == "cpu":
            sources = replace(sources, find_links=(scratch,))
        said = run_uv(  # as PEP 751 has it
            Host(), cache, "pip", "compile", "--python-version", f"3.{minor}",
            "--python-platform", "{}-manylinux_{}_{}".format(arch, *glibc), "--no-build",
            "--constraints", folder / "constraints.txt", "--excludes", folder / "excludes.txt",
            "--format", "pylock.toml", "-",
            stdin="\n".join(rules.requirements), sources=sources,
        )  # fmt: skip
    return {f"{name}=={version}": dict(WHEEL.findall(rest)) for name, version, rest in PACKAGE.findall(said)}


@functools.cache
def _tags(target: Target) -> frozenset[Tag]:
    minor, arch = target
    platforms = [f"manylinux_2_{version}_{arch}" for version in range(5, NEWEST_GLIBC[1] + 1)]
    platforms += [f"{name}_{arch}" for name in ("manylinux1", "manylinux2010", "manylinux2014", "linux")]
    python = (3, minor)
    return frozenset([*cpython_tags(python, platforms=platforms), *compatible_tags(python, f"cp3{minor}", platforms)])


if __name__ == "__main__":
    main()
