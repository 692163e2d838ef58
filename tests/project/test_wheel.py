"""The wheel: installed elsewhere it renders what the checkout renders; an editable install finds the same files."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import packages_distributions
from importlib.metadata import requires as requirements
from pathlib import Path

import pytest
from uv import find_uv_bin

from installer import __version__
from tests.kit.boot.surroundings import REPO

RENDER = f"""
import json, sys
from pathlib import Path
import installer
from installer.families.vllm import abilities
from installer.model import profiles
from installer.base.assets import asset_dir
from installer.units.render import render
from installer.spec.settings import Settings
from installer.spec.settings_file import wanted
sys.path.append({str(REPO)!r})  # for the made-up target alone: installer is imported already
from tests.kit.targets import wanted as target
want = target()
texts = {{str(path): file.text for path, file in render(want.target, want.layout).items()}}
texts["data"] = f"{{profiles.load_profiles()}} {{abilities.load_abilities().tool_parsers}}"
texts["settings"] = wanted(None, Settings(), Path("/etc/x.env"))
json.dump([installer.__file__, str(asset_dir("templates")), texts], sys.stdout)
"""


def run(*command: str | Path, cwd: Path = REPO) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # By pip, because pip's configuration is what says where the build backend comes from.
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPO)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder: Path) -> Path:
    """The bin folder of a fresh environment, which shares what the project depends on with this one, for speed."""
    run(find_uv_bin(), "venv", "--python", sys.executable, folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bin = environment(tmp_path_factory.mktemp("wheel"))
    run(find_uv_bin(), "pip", "install", "--offline", "--no-deps", "--python", bin / "python", wheel)
    return bin


def rendered(python: Path, cwd: Path) -> tuple[Path, Path, dict[str, str]]:
    where, assets, texts = json.loads(run(python, "-c", RENDER, cwd=cwd))
    return Path(where), Path(assets), texts


def test_an_installed_wheel_renders_what_the_checkout_renders(installed: Path, tmp_path: Path) -> None:
    where, assets, texts = rendered(installed / "python", tmp_path)
    here, own_assets, expected = rendered(Path(sys.executable), REPO)
    assert (here.parent.parent, own_assets) == (REPO, REPO / "templates")
    assert installed.parent in where.parents
    assert assets == where.parent / "assets/templates"
    assert texts == expected


def test_an_editable_install_finds_the_files_of_the_checkout(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv") / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--ignore-installed", "--editable", REPO)
    where, assets, texts = rendered(python, tmp_path)
    assert (where.parent.parent, assets) == (REPO, REPO / "templates")
    assert texts == rendered(Path(sys.executable), REPO)[2]


def test_the_command_and_the_module_start(installed: Path, tmp_path: Path) -> None:
    shown = f"vllm-install, version {__version__}\n"
    assert run(installed / "vllm-install", "--version", cwd=tmp_path) == shown
    assert run(installed / "python", "-m", "installer", "--version", cwd=tmp_path) == shown
    assert "Traceback" not in run(installed / "vllm-install", "list", "--json", cwd=tmp_path)


def test_the_wheel_holds_the_package_its_files_its_man_page_and_its_licence_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    own = f"vllm_install-{__version__}"
    assert {name.split("/")[0] for name in names} == {"installer", f"{own}.dist-info", f"{own}.data"}
    assert [name for name in names if ".data/" in name] == [f"{own}.data/data/share/man/man8/vllm-install.8"]
    assets = [path for folder in ("templates", "units") for path in (REPO / folder).rglob("*") if path.is_file()]
    shipped = {f"installer/assets/{path.relative_to(REPO)}" for path in assets}
    assert {name for name in names if name.startswith("installer/assets/")} == shipped
    modules = {str(path.relative_to(REPO)) for path in (REPO / "installer").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_brings_the_man_page(installed: Path) -> None:
    page = installed.parent / "share/man/man8/vllm-install.8"
    assert page.read_text().startswith(".TH VLLM-INSTALL 8 ")


def test_what_is_imported_is_declared() -> None:
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements("vllm-install") or []
                if "extra ==" not in line}  # fmt: skip
    providers = packages_distributions()
    imported = set()
    for path in (REPO / "installer").rglob("*.py"):
        if "runtime" in path.parts:
            continue  # runs on the engine's Python, beside vLLM
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"installer", "_typeshed"}  # which exists for mypy alone
    undeclared = [name for name in foreign if not {p.lower().replace("_", "-") for p in providers[name]} & declared]
    assert undeclared == []


def test_what_runs_with_vllm_needs_nothing_of_ours(tmp_path: Path) -> None:
    """On the engine's Python there is vLLM and no installer: -I hides everything but the standard library."""
    folder = REPO / "installer/runtime"
    modules = sorted(path.stem for path in folder.glob("vllm_*.py"))
    script = f"import sys; sys.path.append({str(folder)!r}); import {', '.join(modules)}; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run(sys.executable, "-IBSc", script, cwd=tmp_path).split()}
    main = {"__main__", "__mp_main__"}  # the second by multiprocessing
    assert loaded <= sys.stdlib_module_names | set(modules) | main


def test_an_installed_wheel_speaks_chinese(installed: Path, tmp_path: Path) -> None:
    assert "用法" in run(installed / "vllm-install", "--lang", "zh_CN", "--help", cwd=tmp_path)
