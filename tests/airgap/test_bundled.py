"""What a bundle asks of the host it is deployed on, and of the one that it is made on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from installer.airgap import bundled, pack, wheelhouse
from installer.airgap.bundle_file import Bundle, open_bundle
from installer.base.errors import Exit, InstallError, Interrupted, Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.forms.venv.engines import InstallEngine, is_complete
from installer.spec.facts import Facts, Interpreter
from installer.spec.settings import Settings
from tests.airgap.test_bundle_file import CONTENTS, write
from tests.checks.test_preflight import HEALTHY
from tests.kit.boot.surroundings import REPO
from tests.kit.wheels import make_wheel

PYTHON = Interpreter(Path("/usr/bin/python3.11"), (3, 11, 2))
NEWER = Interpreter(Path("/usr/bin/python3.12"), (3, 12, 1))
FITS = replace(HEALTHY, arch="x86_64", glibc=(2, 36), interpreters=(PYTHON,))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write(tmp_path / "b"))


def test_the_bundle_says_what_is_served_and_the_rest_is_the_hosts_choice(bundle: Bundle) -> None:
    flags = bundled.fixed(bundle, {"port": "8001", "engine": "cpu"})
    held = {"model": "Org/Tiny", "revision": "", "engine_family": "vllm", "engine": "cpu", "vllm_version": "0.32.0"}
    held["runtime"] = "venv"
    assert flags == {"port": "8001", "offline": "yes", **held}
    assert bundled.fixed(bundle, {"offline": "no"})["offline"] == "no"


def test_a_bundle_of_sglang_says_so_and_which(bundle: Bundle) -> None:
    held = replace(bundle.manifest.engine, family="sglang", vllm_version="0.5.23", lock="sglang==0.5.23+cpu\n")
    packed = replace(bundle, manifest=replace(bundle.manifest, engine=held))
    flags = bundled.fixed(packed, {"vllm_version": "0.31.0"})
    assert (flags["engine_family"], flags["sglang_version"]) == ("sglang", "0.5.23")
    assert flags["vllm_version"] == "0.31.0", "which is the host's choice, for the day it goes back"
    for name, value in (("engine_family", "vllm"), ("sglang_version", "0.5.24")):
        with pytest.raises(UsageError, match="contradicts the bundle"):
            bundled.fixed(packed, {name: value})
    settings = Settings(engine="cpu", engine_family="sglang", sglang_version="0.5.23")
    engine = bundled.engine(packed, settings, Interpreter(Path(sys.executable), (3, 11, 2)), Host())
    assert (engine.family, engine.vllm_version, engine.packages) == ("sglang", "0.5.23", ["sglang==0.5.23+cpu"])


def image_bundle(bundle: Bundle) -> Bundle:
    engine = replace(bundle.manifest.engine, lock="", image=f"sha256:{'a' * 64}")
    return replace(bundle, manifest=replace(bundle.manifest, engine=engine))


def test_an_image_is_named_by_its_id_and_fits_any_python_and_glibc(bundle: Bundle) -> None:
    packed = image_bundle(bundle)
    flags = bundled.fixed(packed, {})
    assert (flags["runtime"], flags["image"]) == ("podman", f"sha256:{'a' * 64}")
    with pytest.raises(UsageError, match="contradicts the bundle"):
        bundled.fixed(packed, {"runtime": "venv"})
    old = replace(FITS, glibc=(2, 27), interpreters=(NEWER,))
    settings = Settings(engine="cpu", runtime="podman", image=flags["image"])
    assert bundled.fitting(packed, settings, old) == (settings, old)
    assert bundled.engine(packed, settings, NEWER, Host()).image == flags["image"]
    with pytest.raises(Refused, match="the bundle is for x86_64"):
        bundled.fitting(packed, settings, replace(old, arch="aarch64"))


def with_adapter(tmp_path: Path, revision: str | None = None) -> Bundle:
    found = open_bundle(write(tmp_path / "c", CONTENTS | {"adapters/0/x": b"x"}, adapters=("sql",)))
    (one,) = found.manifest.adapters
    one = replace(one, model=replace(one.model, revision=revision))
    return replace(found, manifest=replace(found.manifest, adapters=(one,)))


def test_its_adapters_are_served_and_a_bundle_without_leaves_them_to_the_host(bundle: Bundle, tmp_path: Path) -> None:
    packed = with_adapter(tmp_path, "v2")
    assert bundled.fixed(packed, {})["lora"] == "sql=Org/sql@v2"
    with pytest.raises(UsageError, match="--lora a=/srv/a contradicts the bundle"):
        bundled.fixed(packed, {"lora": "a=/srv/a"})
    assert bundled.fixed(bundle, {"lora": "a=/srv/a"})["lora"] == "a=/srv/a"
    with pytest.raises(UsageError, match="which this vllm-install does not know"):
        bundled.fixed(with_adapter(tmp_path, "v2,evil=/etc"), {})


def test_a_directory_of_ones_own_does_not_travel_whether_it_is_there_or_not(host: Host) -> None:
    for settings in (Settings(model="/srv/m"), Settings().of_adapter("sql=/srv/m")):
        with pytest.raises(UsageError, match="/srv/m is a directory of your own, which a bundle does not carry"):
            pack._resolved(settings, host, Layout("llm"), Report())


OTHERS = [
    ("model", "Org/Other"),
    ("engine", "cuda"),
    ("vllm_version", "0.33.0"),
    ("revision", "v2"),
    ("runtime", "podman"),
]


@pytest.mark.parametrize("flag", OTHERS)
def test_asking_for_something_else_cannot_be_meant(bundle: Bundle, flag: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="contradicts the bundle"):
        bundled.fixed(bundle, dict([flag]))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(FITS, arch="aarch64"), "the bundle is for x86_64"),
        (replace(FITS, glibc=(2, 27)), "glibc 2.28"),
        (replace(FITS, glibc=(0, 0)), "glibc 2.28"),
        (replace(FITS, interpreters=(NEWER,)), "the bundle is for Python 3.11: this host has 3.12"),
        (replace(FITS, interpreters=()), "this host has none"),
    ],
)
def test_a_host_that_it_is_not_for_is_refused_with_the_reason(bundle: Bundle, facts: Facts, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        bundled.fitting(bundle, Settings(), facts)
    assert refused.value.exit_code == Exit.REFUSED
    assert refused.value.hint


def test_later_commands_are_told_the_python_only_where_they_would_choose_another(bundle: Bundle) -> None:
    settings, facts = bundled.fitting(bundle, Settings(engine="cpu"), FITS)
    assert settings.python is None
    settings, facts = bundled.fitting(bundle, Settings(engine="cpu"), replace(FITS, interpreters=(NEWER, PYTHON)))
    assert settings.python == str(PYTHON.path)
    assert facts.interpreters == (PYTHON,)


# Making one

SGLANG = {"sglang/__init__.py": "", "sglang/launch_server.py": ""}


def test_without_podman_no_image_is_looked_for_but_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack.facts, "gather", lambda *_: replace(FITS, podman=None))
    out = pack.Cargo(tmp_path / "x.bundle")
    settings = Settings(model="builtin:tiny", engine="cpu", runtime="podman")
    with pytest.raises(Refused, match="no podman was found") as refused:
        pack.create(settings, out, Host(tmp_path), Report())
    assert refused.value.hint == "sudo apt-get install -y podman"
    with pytest.raises(Refused, match="holds no image that can be read"):
        pack.create(replace(settings, image="/vllm.tar"), out, Host(tmp_path), Report())


def test_the_kind_of_engine_is_not_guessed_where_no_gpu_says_it() -> None:
    without = replace(FITS, gpus=(), nvidia_error="")
    with pytest.raises(UsageError, match="no GPU here"):
        pack._kind(Settings(), without)
    assert pack._kind(Settings(engine="cuda"), without) == "cuda"
    assert pack._kind(Settings(engine="cpu"), without) == "cpu"


def test_an_sglang_is_packed_and_installed_from_the_bundle_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = make_wheel(tmp_path / "wheels", "sglang", "0.5.23+cpu", files=SGLANG, requires=("leaf",)).parent
    make_wheel(wheels, "leaf", "1.0", files={"leaf.py": ""})
    python = Interpreter(Path(sys.executable).resolve(), sys.version_info[:3])
    monkeypatch.setattr(pack.facts, "gather", lambda *_: replace(FITS, interpreters=(python,)))
    here, there = Host(tmp_path / "here"), Host(tmp_path / "there")
    here.write(Path("/etc/pip.conf"), "[global]\nno-index = true\n")
    settings = Settings(model="builtin:tiny", engine="cpu", engine_family="sglang", find_links=str(wheels))
    pack.create(settings, pack.Cargo(tmp_path / "x.bundle", tool=False), here, Report())

    bundle = open_bundle(tmp_path / "x.bundle")
    assert [member.name for member in bundle.manifest.members] == [
        "wheels/leaf-1.0-py3-none-any.whl", "wheels/sglang-0.5.23+cpu-py3-none-any.whl",
    ]  # fmt: skip
    chosen = Settings(engine="cpu", engine_family="sglang", offline=True)
    change = InstallEngine(bundled.engine(bundle, chosen, python, there), chosen, Layout("qwen3vl"), bundle)
    assert change.describe().startswith("install SGLang 0.5.23 (cpu) in ")
    change.apply(there, Report())
    assert is_complete(there, Layout("qwen3vl"), change.engine.id)


def test_an_interrupted_bundle_leaves_no_half_file_and_keeps_its_wheels(tmp_path: Path) -> None:
    out = tmp_path / "x.bundle"

    def begin() -> None:
        with pack._output(out) as (file, scratch):
            file.write(b"half")
            (scratch / "wheel").write_bytes(b"w")
            raise Interrupted("SIGINT")

    with pytest.raises(Interrupted):
        begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.bundle.wheels"]
    with pack._output(out) as (file, scratch):
        assert (scratch / "wheel").read_bytes() == b"w"
        file.write(b"whole")
    assert out.read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]


def test_two_at_once_do_not_write_into_each_other(tmp_path: Path) -> None:
    out = tmp_path / "x.bundle"
    with pack._output(out) as (file, _):
        file.write(b"first")
        with pytest.raises(Refused), pack._output(out):
            pass
    assert out.read_bytes() == b"first"


@pytest.mark.root
def test_nothing_is_written_by_a_link_or_into_what_somebody_else_put_there(tmp_path: Path) -> None:
    """As in /tmp, where everybody knows what is going to be written."""
    out, theirs = tmp_path / "x.bundle", tmp_path / "theirs"
    theirs.write_text("theirs")
    for name in ("x.bundle.partial", ".x.bundle.wheels"):
        planted = tmp_path / name
        planted.symlink_to(theirs if name.endswith("partial") else tmp_path)
        with pytest.raises((OSError, Refused)), pack._output(out):
            pass
        planted.unlink()
        (tmp_path / "x.bundle.partial").unlink(missing_ok=True)
        planted.touch() if name.endswith("partial") else planted.mkdir()
        os.chown(planted, 1000, 1000)
        with pytest.raises(Refused, match="it belongs to the user 1000"), pack._output(out):
            pass
        planted.unlink() if name.endswith("partial") else planted.rmdir()
    assert theirs.read_text() == "theirs"


def test_nobody_else_can_hold_the_lock_of_a_bundle_while_it_is_made(tmp_path: Path) -> None:
    out = tmp_path / "x.bundle"
    with pack._output(out) as (_, _):
        assert (tmp_path / "x.bundle.partial").stat().st_mode & 0o777 == 0o600
    assert out.stat().st_mode & 0o777 == 0o666 & ~pack._umask()


@pytest.mark.parametrize("name", ["", "absent/x.bundle"])
def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"), pack._output(tmp_path / name):
        pass


def test_a_source_that_changed_meanwhile_spoils_no_bundle(tmp_path: Path) -> None:
    from tests.airgap.test_bundle_file import CONTENTS, manifest

    files = {name: tmp_path / str(number) for number, name in enumerate(CONTENTS)}
    for name, content in CONTENTS.items():
        files[name].write_bytes(content)
    files["model/deep/er/model.safetensors"].write_bytes(bytes(70_000))
    with pytest.raises(InstallError, match="is damaged") as refused, (tmp_path / "b").open("wb") as out:
        pack.write(manifest(), files, None, out, bundled.Host(), bundled.Report())
    assert refused.value.exit_code == Exit.MODEL


# Wheels


@pytest.mark.parametrize(
    ("wheels", "oldest"),
    [
        (["a-1-py3-none-any.whl"], (2, 5)),
        (["a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"], (2, 17)),
        (["a-1-cp311-cp311-manylinux2010_x86_64.manylinux_2_12_x86_64.manylinux_2_28_x86_64.whl"], (2, 12)),
        (["a-1-cp311-abi3-manylinux_2_34_aarch64.whl", "b-1-py3-none-manylinux1_x86_64.whl"], (2, 34)),
    ],
)
def test_the_glibc_that_wheels_need(wheels: Sequence[str], oldest: tuple[int, int]) -> None:
    assert wheelhouse.oldest_glibc(wheels) == oldest


def test_the_tools_own_wheel_is_the_one_that_its_build_makes(tmp_path: Path) -> None:
    repo = REPO
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "built", repo)
    subprocess.run(build, check=True)
    (built,) = (tmp_path / "built").glob("*.whl")
    packed = wheelhouse.build_own_wheel(tmp_path)
    assert packed.name == built.name

    def contents(wheel: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(wheel) as archive:
            found = {n: archive.read(n) for n in archive.namelist() if not n.endswith(("/RECORD", "/WHEEL"))}
        # A checkout has no manual page before it is built.
        found = {name: content for name, content in found.items() if ".data/" not in name}
        # Behind its headers the metadata holds the README as it was when this checkout was installed.
        return {n: c.partition(b"\n\n")[0] if n.endswith("/METADATA") else c for n, c in found.items()}

    assert contents(packed) == contents(built)
