"""Make what a release consists of: .deb and .rpm, wheel and sdist, the list of what is in them, checksums.

    python -m scripts.packages [FOLDER]      dist/ otherwise

Equal sources give equal bytes, wherever and whenever: what comes from others is taken by its checksum, out of
packages/requirements.txt, and every date is that of the commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from click.shell_completion import get_completion_class

from installer import __version__
from installer.cli import cli
from scripts.sbom import sbom

REPO = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPO / "packages/requirements.txt"
WORK = REPO / "build/packages"
WHEELS = WORK / "wheels"
TREE = WORK / "tree"  # becomes /usr/lib/vllm-install
PYTHONS = range(10, 15)  # 3.N, as packages/nfpm.yaml has them
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64")
LOCKED = re.compile(r"^((\S+)==.*\n(?: .*\n)+)", re.MULTILINE)  # what pip is told of one package, and its name
# A virtual environment whose Python is whichever the host has: each looks for its packages under its own version.
ENVIRONMENT = "home = /usr/bin\ninclude-system-site-packages = false\n"
COMMAND = """\
#!/usr/lib/vllm-install/bin/python3 -I
from installer.__main__ import main

main()
"""


def main(dist: Path) -> None:
    os.environ["SOURCE_DATE_EPOCH"] = str(_moment())
    shutil.rmtree(dist, ignore_errors=True)
    _run("-m", "hatchling", "build", "--directory", dist)
    (own,) = dist.glob("*.whl")
    wheels = fetch()
    lay_out([own, *wheels])
    lay_beside(sbom(own, wheels, _moment()))
    shutil.copy(WORK / "sbom.cdx.json", dist / f"vllm-install_{__version__}.cdx.json")
    for kind in ("deb", "rpm"):
        pack(kind, dist)
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(dist.iterdir())]
    (dist / "SHA256SUMS").write_text("".join(lines))


def _moment() -> int:
    """Of the sources: of the commit, or of an sdist's files, which all have the one of theirs."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    asked = ["git", "-C", str(REPO), "log", "-1", "--format=%ct"]
    known = (REPO / ".git").exists()
    return int(subprocess.check_output(asked)) if known else int((REPO / "pyproject.toml").stat().st_mtime)


def fetch() -> list[Path]:
    """The wheels of all that the tool depends on, for every Python; those that are here already are not asked for."""
    asked = REQUIREMENTS.read_bytes()
    stamp = WHEELS / "stamp"
    if not stamp.exists() or stamp.read_bytes() != asked:
        shutil.rmtree(WHEELS, ignore_errors=True)
        WHEELS.mkdir(parents=True)
        first, *others = PYTHONS
        _download(first, REQUIREMENTS)
        # Most fit every Python; only of those that fit one alone there are more to come.
        special = {wheel.name.split("-")[0] for wheel in WHEELS.glob(f"*-cp3{first}-cp3{first}-*.whl")}
        some = WORK / "special.txt"
        some.write_text("".join(text for text, name in LOCKED.findall(asked.decode()) if name in special))
        for minor in others:
            _download(minor, some)
        stamp.write_bytes(asked)
    return sorted(WHEELS.glob("*.whl"))


def _download(minor: int, requirements: Path) -> None:
    places = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _run(
        "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", *places,
        "--python-version", f"3.{minor}", "--implementation", "cp", "--abi", f"cp3{minor}", "--abi", "abi3",
        "--abi", "none", "--dest", WHEELS, "--requirement", requirements,
    )  # fmt: skip


def lay_out(wheels: Sequence[Path]) -> None:
    """The environment: the same packages for every Python, each with the extension modules of all of them."""
    shutil.rmtree(TREE, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if place := _place(member.filename):
                    _write(TREE / place, archive.read(member), executable=place.startswith("bin/"))
    # Only of our own is it asked what belongs to it: `bundle create` packs it as a wheel again.
    (record,) = TREE.glob("lib/python3/site-packages/vllm_install-*.dist-info/RECORD")
    record.write_text(re.sub(r"^vllm_install-[^/]+\.data/data/", "../../../", record.read_text(), flags=re.MULTILINE))
    _write(TREE / "pyvenv.cfg", ENVIRONMENT.encode())
    _write(TREE / "bin/vllm-install", COMMAND.encode(), executable=True)
    for minor in PYTHONS:
        (TREE / f"lib/python3.{minor}").symlink_to("python3")
    for path in (TREE, *TREE.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (_moment(), _moment()), follow_symlinks=False)


def _place(member: str) -> str | None:
    """Where a wheel's file goes; None: nowhere."""
    if member.endswith("/") or (member.endswith(".dist-info/RECORD") and not member.startswith("vllm_install-")):
        return None
    if found := re.fullmatch(r"[^/]+\.data/(data|scripts)/(.+)", member):
        kind, rest = found.groups()
        return {"data": rest, "scripts": f"bin/{rest}"}[kind] if rest != "uvx" else None
    return f"lib/python3/site-packages/{member}"


def lay_beside(listing: str) -> None:
    """What lies in other places than the environment."""
    page = (TREE / "share/man/man8/vllm-install.8").read_bytes()
    _write(WORK / "vllm-install.8.gz", gzip.compress(page, 9, mtime=0))
    _write(WORK / "changelog.gz", gzip.compress("".join(_changelog()).encode(), 9, mtime=0))
    _write(WORK / "sbom.cdx.json", listing.encode())
    for name in ("copyright", "lintian-overrides"):
        _write(WORK / name, (REPO / "packages" / name).read_bytes())
    for shell in ("bash", "zsh", "fish"):
        found = get_completion_class(shell)
        assert found is not None
        script = found(cli, {}, "vllm-install", "_VLLM_INSTALL_COMPLETE").source()
        _write(WORK / f"completion.{shell}", script.strip().encode() + b"\n")


def _changelog() -> Iterator[str]:
    """As dpkg's tools read it; what changed is said once, where everybody reads it."""
    yield f"vllm-install ({__version__}) stable; urgency=medium\n\n  * What changed: CHANGELOG.md of the sources.\n\n"
    moment = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(_moment()))
    yield f" -- The vllm-install authors <vllm-install@example.org>  {moment}\n"


def pack(kind: str, target: Path, version: str = __version__) -> None:
    nfpm = str(Path(sys.executable).with_name("nfpm"))
    words = ("package", "--config", "packages/nfpm.yaml", "--packager", kind, "--target", str(target))
    said = {**os.environ, "VERSION": version}
    subprocess.run([nfpm, *words], cwd=REPO, env=said, check=True, stdout=subprocess.DEVNULL)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, content: bytes, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if executable else 0o644)
    os.utime(path, (_moment(), _moment()))


def _run(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *arguments], cwd=REPO, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve())
