"""Whether this host can carry the service: every reason why not, at once, each with what to do about it.

Pure: settings and facts in, problems out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from installer.base.errors import Refused
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import size
from installer.base.sizes import GIB
from installer.checks.gateway import check_gateway
from installer.checks.group import check_group
from installer.checks.packages import APT, install_command, packages_of
from installer.checks.placement import WHOLE, find, usable_gpus
from installer.checks.preflight_gpus import check_gpus
from installer.checks.preflight_podman import check_podman
from installer.checks.preflight_toolkit import check_toolkit
from installer.families.known import family_of
from installer.spec.facts import Disk, Facts, Interpreter
from installer.spec.problem import Problem
from installer.spec.settings import PODMAN, Settings
from installer.spec.values import AUTO
from installer.spec.vendors import NVIDIA, VENDORS

MINIMUM_SYSTEMD = 247  # LoadCredential; older ones would start the service without its keys
MINIMUM_MEMORY = 8 * 10**9
PREFERRED_PYTHONS = (12, 13, 11, 14, 10)


def problems(settings: Settings, facts: Facts, layout: Layout) -> list[Problem]:
    """Every problem that can be told before anything is downloaded; an empty list is a healthy host."""
    kind, is_boxed = choose_engine(settings, facts), settings.runtime == PODMAN
    return [
        *_check_privilege(facts),
        *_check_systemd(facts),
        *(check_podman(settings, facts, kind) if is_boxed else _check_builds(settings, facts, kind)),
        *_check_processor(facts, kind),
        *_check_replicas(settings, facts, kind),
        *check_gpus(settings, facts, kind, layout),
        *(() if is_boxed else check_toolkit(settings, facts, kind)),
        *(() if is_boxed else _check_python(settings, facts, kind)),
        *_check_port(settings, facts, layout),
        *_check_disks(facts, layout),
        *check_gateway(settings, facts),
        *check_group(settings, facts),
    ]


def refuse(problems: Sequence[Problem]) -> Refused:
    """One error that names every fatal problem and its remedy."""
    fatal = [problem for problem in problems if problem.fatal]
    if len(fatal) == 1:
        return Refused(tr("{what}: {why}", what=fatal[0].what, why=fatal[0].why), fatal[0].remedy)
    lines = [tr("{number} things on this host stand in the way; nothing was changed", number=len(fatal))]
    for number, problem in enumerate(fatal, 1):
        said = tr("{what}: {why}", what=problem.what, why=problem.why)
        lines += [f"{number}. {said}", f"   -> {problem.remedy}"]
    return Refused("\n".join(lines), tr("do what each -> line says, then run the same command again"))


def choose_engine(settings: Settings, facts: Facts) -> str:
    """The build of vLLM for this host: cuda, rocm or cpu."""
    if settings.engine != "auto":
        return settings.engine
    if settings.gpus != AUTO:  # a GPU that went away makes no service for the processor
        named = [gpu for word in settings.gpus if (gpu := find(word, facts.gpus))]
        makers = {gpu.vendor for gpu in named}
        return next((vendor.kind for vendor in reversed(VENDORS) if vendor.name in makers), NVIDIA.kind)
    # A broken driver must not end in a silent and slow deploy on the processor.
    without = NVIDIA.kind if facts.nvidia_error else "cpu"
    return next((vendor.kind for vendor in VENDORS if usable_gpus(facts, vendor.kind)), without)


def choose_interpreter(settings: Settings, facts: Facts, kind: str) -> Interpreter | None:
    """The Python for the engine: the one asked for, or the best that has wheels and can be reached."""
    if settings.runtime == PODMAN:  # it starts the container, and the engine has the image's own
        return next(iter(_candidates(settings, facts)), None)
    usable = [found for found in _candidates(settings, facts) if not _why_rejected(found, settings, kind)]
    return min(usable, key=lambda i: (not i.headers, PREFERRED_PYTHONS.index(i.version[1])), default=None)


def check_space(needs: Mapping[Path, int], facts: Facts) -> list[Problem]:
    """Whether the bytes to be written below each directory fit, counting directories of one disk together."""
    wanted: dict[int, list[Path]] = {}
    disks: dict[int, Disk] = {}
    for path, count in needs.items():
        disk = next((facts.disks[p] for p in (path, *path.parents) if p in facts.disks), None)
        if disk is not None and count > 0:
            wanted.setdefault(disk.device, []).append(path)
            disks[disk.device] = disk
    problems = []
    for device, paths in wanted.items():
        bytes_needed = sum(needs[path] for path in paths)
        head_room = max(bytes_needed // 20, GIB)
        missing = bytes_needed + head_room - disks[device].free
        if missing > 0:
            parts = tr(" and ").join(tr("{size} in {path}", size=size(needs[path]), path=path) for path in paths)
            disk, more = disks[device], size(missing)
            why = tr(
                "{free} are free; {parts} and {head_room} of head-room are needed, "
                "{bytes} bytes ({missing}) more than there are",
                free=size(disk.free), parts=parts, head_room=size(head_room), bytes=missing, missing=more,
            )  # fmt: skip
            remedy = tr(
                "free {missing} (sudo du -xh --max-depth=2 {path} shows what is large)"
                " or mount a larger disk at {mount_point}",
                missing=more, path=disk.path, mount_point=paths[-1],
            )  # fmt: skip
            problems.append(Problem(tr("the disk that holds {path} is too small", path=disk.path), why, remedy))
    return problems


# the host


def _check_privilege(facts: Facts) -> Iterator[Problem]:
    if not facts.is_root:
        yield Problem(
            tr("not run as root"),
            tr("a system service can only be set up by root"),
            tr("run the command with sudo"),
            id="not-root",
        )


def _check_systemd(facts: Facts) -> Iterator[Problem]:
    if not facts.systemd_is_pid1:
        yield Problem(
            tr("systemd does not run this host"),
            tr("PID 1 is another program, as in most containers, and nothing could start the service"),
            tr("use a host booted by systemd; on WSL write systemd=true under [boot] in /etc/wsl.conf and restart it"),
            id="no-systemd",
        )
    if facts.systemd is None:
        yield Problem(
            tr("no systemctl was found"),
            tr("the service is a systemd unit"),
            install_command(facts, "systemd"),
            id="no-systemd",
        )
    elif facts.systemd < MINIMUM_SYSTEMD:
        yield Problem(
            tr("systemd {version} is too old", version=facts.systemd),
            tr("credentials and the sandbox need version {needed}", needed=MINIMUM_SYSTEMD),
            tr("upgrade the distribution (Debian 11, Ubuntu 22.04 and RHEL 9 are new enough)"),
        )
    if facts.systemd is not None and not facts.sysusers:
        yield Problem(
            tr("systemd-sysusers was not found"), tr("it makes the service's user"), install_command(facts, "systemd")
        )


def _check_builds(settings: Settings, facts: Facts, kind: str) -> Iterator[Problem]:
    family = family_of(settings)
    builds = family.packages.glibc.get(kind, {})
    if facts.arch not in builds:
        yield Problem(
            tr("no {kind} build of {engine} for {arch}", kind=kind, engine=family.title, arch=facts.arch),
            _where_there_are_wheels(builds),
            tr("use a host of that architecture")
            if builds
            else tr("choose another engine: ENGINE_FAMILY, or --engine"),
        )
    minimum = builds.get(facts.arch, (0, 0))
    if facts.glibc < minimum:
        found = ".".join(map(str, facts.glibc)) if facts.glibc > (0, 0) else tr("another C library")
        needed = ".".join(map(str, minimum))
        yield Problem(
            tr("glibc {needed} or newer is needed", needed=needed),
            tr("this host has {found}, and the wheels of the {kind} engine would not load", found=found, kind=kind),
            tr("upgrade the distribution (Debian 12, Ubuntu 22.04 and RHEL 9 are new enough)"),
        )


def _check_processor(facts: Facts, kind: str) -> Iterator[Problem]:
    if kind == "cpu" and facts.arch == "x86_64" and "avx2" not in facts.cpu_flags:
        yield Problem(
            tr("the processor has no AVX2"),
            tr(
                "vLLM's cpu engine dies on {processor} with an illegal instruction",
                processor=facts.cpu or tr("this processor"),
            ),
            tr("use a newer processor, or on a virtual machine pass the host's processor through (cpu model: host)"),
            id="illegal-instruction",
        )
    if facts.memory_total < MINIMUM_MEMORY:
        yield Problem(
            tr("this host has only {memory} of memory", memory=size(facts.memory_total)),
            tr("loading a model takes {needed} or more", needed=size(MINIMUM_MEMORY)),
            tr("expect the service to be ended for lack of memory unless the model is very small"),
            fatal=False,
            id="little-memory",
        )


def _where_there_are_wheels(builds: Collection[str]) -> str:
    if not builds:
        return tr("it has none for such GPUs")
    return tr("wheels exist for x86_64") if len(builds) == 1 else tr("wheels exist for x86_64 and aarch64")


def _check_replicas(settings: Settings, facts: Facts, kind: str) -> Iterator[Problem]:
    """On the processor each of them takes its share of one memory."""
    share, count = family_of(settings).memory_share(settings, kind), settings.replicas
    if kind == "cpu" and count > 1 and count * share > WHOLE:
        yield Problem(
            tr("{count} replicas do not fit into the memory of this host", count=count),
            tr("each takes {share:g} of the {memory} for itself", share=share, memory=size(facts.node_memory)),
            tr("choose --gpu-memory-utilization {most:g} or less, or fewer --replicas", most=int(80 / count) / 100),
            id="little-memory",
        )


def _check_port(settings: Settings, facts: Facts, layout: Layout) -> Iterator[Problem]:
    if 0 < settings.port < facts.unprivileged_port:
        yield Problem(
            tr("port {port} needs a privilege that the service does not have", port=settings.port),
            tr("its user may open ports from {port} on", port=facts.unprivileged_port),
            tr("choose another with --port, for example --port 8000, and let a reverse proxy take the low one"),
            id="port-privileged",
        )
    holder = facts.port_holder
    if holder is None or layout.has_unit(holder.unit):
        if facts.port_kept_for:
            yield _kept_port(settings.port, facts.port_kept_for)
        return
    find = tr("find it (sudo ss -ltnp 'sport = :{port}') and stop it", port=settings.port)
    yield Problem(
        tr("port {port} is taken", port=settings.port),
        tr("{process} listens there", process=holder),
        tr("{stop}, or choose another port with --port", stop=holder.how_to_stop if holder.pid else find),
        id="port-in-use",
    )


def _kept_port(port: int, service: str) -> Problem:
    return Problem(
        tr("port {port} is taken", port=port),
        tr("it is the port of the service {service}, which could not start any more", service=service),
        tr(
            "choose another port with --port, or give that service one: {command}",
            command=f"vllm-install set PORT={port + 1 if port < 65535 else 8000} --service {service}",
        ),
        id="port-in-use",
    )


def _check_disks(facts: Facts, layout: Layout) -> Iterator[Problem]:
    for target, disk in facts.disks.items():
        if disk.read_only:
            yield Problem(
                tr("{path} cannot be written", path=target),
                tr("{path} is on a read-only file system", path=disk.path),
                tr('remount it (sudo mount -o remount,rw "$(findmnt -no TARGET -T {path})")', path=disk.path),
                id="read-only",
            )
        # The engine's libraries lie below one, those that vLLM compiles while it runs below the other.
        if disk.noexec and target in (layout.opt, layout.hub.parent):
            yield Problem(
                tr("nothing below {target} can be executed", target=target),
                tr("{path} is mounted with noexec, and vLLM loads libraries from there", path=disk.path),
                tr('remount it (sudo mount -o remount,exec "$(findmnt -no TARGET -T {path})")', path=disk.path),
                id="noexec",
            )


# Python and the compilers


def _candidates(settings: Settings, facts: Facts) -> list[Interpreter]:
    wanted = Path(settings.python) if settings.python else None
    return [found for found in facts.interpreters if wanted in (None, found.path)]


def _why_rejected(interpreter: Interpreter, settings: Settings, kind: str) -> str:
    supported = family_of(settings).packages.pythons.get(kind, range(0))
    if interpreter.version[0] != 3 or interpreter.version[1] not in supported:
        return tr("it is Python {version}", version=".".join(map(str, interpreter.version)))
    return interpreter.why_unreachable


def _check_python(settings: Settings, facts: Facts, kind: str) -> Iterator[Problem]:
    chosen = choose_interpreter(settings, facts, kind)
    if chosen is not None:
        yield from _check_compilers(facts, chosen)
        if kind == "cpu" and not facts.libnuma:
            package = (packages_of(facts) or APT).libnuma
            yield Problem(
                tr("no libnuma.so.1"),
                tr("vLLM's CPU build cannot start without it"),
                install_command(facts, package),
                id="library-missing",
            )
        return
    versions = family_of(settings).packages.said_pythons(kind)
    if not versions:
        return  # nor is there a build
    candidates = _candidates(settings, facts)
    rejected = [tr("{what}: {why}", what=i.path, why=_why_rejected(i, settings, kind)) for i in candidates]
    if not rejected and settings.python:
        rejected = [tr("{path}: it does not exist or does not run", path=settings.python)]
    packages = packages_of(facts)
    python = packages.python.format("3.12", "312") if packages else ""
    yield Problem(
        tr("no Python for the {kind} engine", kind=kind),
        tr(
            "it needs Python {versions}, which every user can reach; found {found}",
            versions=versions,
            found=tr("; ").join(rejected) or tr("none in /usr/bin and /usr/local/bin"),
        ),
        tr(
            "install one ({command}) or name one that lies outside /root and /home with --python",
            command=install_command(facts, python),
        )
        if python
        else tr("install one or name one that lies outside /root and /home with --python"),
        id="no-python",
    )


def _check_compilers(facts: Facts, chosen: Interpreter) -> Iterator[Problem]:
    packages = packages_of(facts) or APT
    version = f"{chosen.version[0]}.{chosen.version[1]}"
    missing = {
        tr("no C compiler"): ("gcc", facts.c_compiler is None),
        tr("no C++ compiler"): (packages.cxx, facts.cxx_compiler is None),
        tr("no Python.h for {python}", python=chosen.path): (
            packages.headers.format(version, version.replace(".", "")),
            not chosen.headers,
        ),
    }
    absent = {name: package for name, (package, is_missing) in missing.items() if is_missing}
    if absent:
        yield Problem(
            ", ".join(absent),
            tr("vLLM compiles kernels for this host when it starts and cannot without"),
            install_command(facts, *dict.fromkeys(absent.values())),
            id="compiler-missing",
        )
