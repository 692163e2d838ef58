"""The tool carries itself to a host: all that it consists of in one archive, unpacked where root alone can write.

What lies there is a virtual environment whose Python is the host's own, as in the packages: what of it was compiled for
another Python has a form without, and only the processor's architecture has to be the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from installer.airgap.wheelhouse import NAME, own_files
from installer.base.assets import PACKAGE
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import LANGUAGES, OPTION, tr
from installer.base.layout import Layout
from installer.runtime.vllm_text import one_line

TOP = Layout("any").opt
CARRIED = TOP / "carried"  # a link to the version in use, which timers may name
MODULES = "lib/python3/site-packages"
COMMAND = Path("/usr/local/bin/vllm-install")
BY_HAND = f"sudo sh -c 'rm -rf {CARRIED}*; find {COMMAND} -xtype l -delete'"  # `take_away`, where nobody leads
SESSION, GIVE, TAKE = ENDS = "session", "give", "take"  # what the far end of a connection is
ENTRY = f"#!{CARRIED}/bin/python3 -I\nfrom installer.__main__ import main\n\nmain()\n"
REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*")
HAVE, WANT, NO_PYTHON = "have", "want", "no-python"
# On the host, as root. Its words come by standard input; in it is nothing that anybody typed.
SCRIPT = f"""
set -eu; umask 022; PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin;
read -r language digest end;
top={TOP}; at=$top/carried-$digest; python=;
for each in /usr/bin/python3 python3; do
  if "$each" -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null; then
    python=$(command -v "$each"); break;
  fi;
done;
if [ -z "$python" ]; then echo "{NO_PYTHON} $(uname -m)"; exit 0; fi;
if [ -d "$at" ]; then echo "{HAVE} $(uname -m)"; else
  echo "{WANT} $(uname -m)"; mkdir -p "$top"; rm -rf "$top"/.carried.*;
  part=$(mktemp -d "$top/.carried.XXXXXX"); mkdir "$part/tree";
  read -r sum size; head -c "$size" > "$part/archive";
  echo "$sum  $part/archive" | sha256sum --check --status;
  tar --extract --gzip --no-same-owner --file "$part/archive" --directory "$part/tree";
  echo "home = $(dirname "$python")" >> "$part/tree/pyvenv.cfg"; ln -s "$python" "$part/tree/bin/python3";
  ln -s python3 "$part/tree/lib/python3.$("$python" -c "import sys; print(sys.version_info[1])")";
  chmod 755 "$part/tree"; (umask 077; : > "$part/tree/lock"); mv -T "$part/tree" "$at"; rm -rf "$part";
fi;
ln -sfn "carried-$digest" "$top/.carried.new"; mv -T "$top/.carried.new" {CARRIED};
for old in "$top"/carried-*; do [ "$old" = "$at" ] || flock -n "$old/lock" rm -rf "$old" || true; done;
command -v vllm-install >/dev/null || ln -sfn {CARRIED}/bin/vllm-install {COMMAND} || true;
exec flock -s "$at/lock" {CARRIED}/bin/python3 -I -m installer {OPTION} "$language" hosts --"$end"
"""


def remote_command() -> str:
    """What the login shell of the host is given, whichever it is: root runs the script, anybody else by sudo."""
    script = shlex.quote(" ".join(SCRIPT.split()))
    as_root = f"if [ $(id -u) = 0 ]; then exec sh -c {script}; else exec sudo -n sh -c {script}; fi"
    return f"sh -c {shlex.quote(as_root)}"


def local_command(end: str) -> tuple[str, ...]:
    """The same end on this host, by this tool itself."""
    return (sys.executable, *(("-I",) if sys.flags.isolated else ()), "-m", "installer", "hosts", f"--{end}")


@cache
def digest() -> str:
    """Of all that would be carried: equal digests are equal tools."""
    found = hashlib.sha256()
    for name, path in sorted(_files().items()):
        found.update(f"{name}\0{_checksum(path)}\0".encode())
    return found.hexdigest()[:16]


@cache
def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as packed:
        for name, path in sorted(_files().items()):
            _add(packed, name, path.read_bytes(), executable=name.startswith("bin/"))
        _add(packed, "bin/vllm-install", ENTRY.encode(), executable=True)
        _add(packed, "pyvenv.cfg", b"include-system-site-packages = false\n", executable=False)
    return buffer.getvalue()


def greeting(language: str, end: str) -> bytes:
    """What the script reads first."""
    assert language in LANGUAGES, "it becomes a word of a command"
    assert end in ENDS, "it does as well"
    return f"{language} {digest()} {end}\n".encode()


def parcel() -> bytes:
    """What it reads where this version of the tool is not there yet."""
    packed = _archive()
    return f"{hashlib.sha256(packed).hexdigest()} {len(packed)}\n".encode() + packed


def check_arch(name: str, arch: str) -> None:
    if arch.strip() != os.uname().machine:
        raise Refused(
            tr(
                "{name}: its processor is another ({arch}) than this host's ({ours}), so this tool does not run there",
                name=name, arch=one_line(arch), ours=os.uname().machine,
            ),
            tr("a group has one architecture: run the command on a host of that kind"),
        )  # fmt: skip


def take_away(host: Host) -> None:
    """All that was carried here, once nothing on this host needs it."""
    for path in (path for path in host.children(TOP) if path.name.startswith(("carried", ".carried"))):
        host.remove(path)
    if host.at(COMMAND).is_symlink() and host.at(COMMAND).readlink() == CARRIED / "bin/vllm-install":
        host.remove(COMMAND)
    host.remove_empty_dir(TOP)


def _add(packed: tarfile.TarFile, name: str, content: bytes, *, executable: bool) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755 if executable else 0o644
    packed.addfile(entry, io.BytesIO(content))


@cache
def _files() -> dict[str, Path]:
    """Where each file goes, and where it lies here: our own, and those of every package that we depend on."""
    files = {f"{MODULES}/installer/{name}": path for name, path in own_files()}
    packages = _packages(NAME, {})
    if any(package.files is None for package in packages.values()):  # a package of the distribution: all there is ours
        return dict(_whole(PACKAGE.parent)) | files
    for name, package in packages.items():
        files |= dict(_of_package(package, is_own=name == NAME))
    return files


def _whole(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{MODULES}/{path.relative_to(folder)}", path
    yield "bin/uv", folder.parents[2] / "bin/uv"


def _packages(name: str, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    package = metadata.distribution(name)
    found[name] = package
    for line in package.requires or ():
        needed = REQUIREMENT.match(line)
        if needed is None or "extra ==" in line or _key(needed[0]) in map(_key, found):
            continue
        try:
            _packages(needed[0], found)
        except metadata.PackageNotFoundError:  # for another Python or another system
            continue
    return found


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _of_package(package: metadata.Distribution, *, is_own: bool) -> Iterator[tuple[str, Path]]:
    for file in package.files or ():
        path = Path(os.path.normpath(str(package.locate_file(file))))
        if "__pycache__" in file.parts or not path.is_file():
            continue
        if ".." not in file.parts:
            if not is_own or ".dist-info" in file.parts[0]:  # our modules are there; what leads to a checkout stays
                yield f"{MODULES}/{file}", path
        elif path.parent.name == "bin" and path.name == "uv":
            yield "bin/uv", path


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
