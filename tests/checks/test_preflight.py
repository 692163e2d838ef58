"""Every reason to refuse a host: alone, together, and none on a healthy one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.errors import Exit
from installer.base.layout import Layout
from installer.checks import preflight
from installer.spec.facts import Disk, Facts, Gpu, Interpreter, NoDriver, Nvcc, Podman, Process
from installer.spec.problem import Problem
from installer.spec.settings import Settings

LAYOUT = Layout("qwen3vl")
GIB = 1024**3
OPT, CACHE, ETC, LIB = map(Path, ("/opt/vllm-install", "/var/cache/vllm-install", "/etc", "/var/lib"))
DISK = Disk(Path("/"), free=200 * GIB, total=500 * GIB, device=1)
PYTHON = Interpreter(Path("/usr/bin/python3.12"), (3, 12, 3))
H200 = Gpu("nvidia", "NVIDIA H200", "GPU-1", "580.159.04", "13.0", (9, 0), "", 140 * GIB, 0)
MI300 = Gpu("amd", "AMD gfx942", "GPU-2", "6.12", arch="gfx942", memory_total=192 * GIB)
HEALTHY = Facts(
    arch="x86_64",
    cpu="Big CPU",
    cpu_flags=frozenset({"avx2", "avx512f"}),
    memory_total=64 * GIB,
    memory_available=60 * GIB,
    node_memory=64 * GIB,
    gpus=(),
    nvidia_error="",
    interpreters=(PYTHON,),
    c_compiler=Path("/usr/bin/gcc"),
    cxx_compiler=Path("/usr/bin/g++"),
    glibc=(2, 39),
    distribution=("ubuntu", "debian"),
    systemd=255,
    systemd_is_pid1=True,
    sysusers=True,
    is_root=True,
    port_holder=None,
    disks={OPT: DISK, CACHE: DISK, ETC: DISK, LIB: DISK},
)
CUDA = replace(HEALTHY, gpus=(H200,))
ROCM = replace(HEALTHY, gpus=(MI300,))
SPARK = replace(H200, name="NVIDIA GB10", memory_total=127600748 << 10, memory_used=9034380 << 10, is_unified=True)
GB10 = replace(HEALTHY, arch="aarch64", gpus=(SPARK,), memory_total=SPARK.memory_total)
CUDA_13 = Nvcc(Path("/usr/local/cuda"), (13, 0))
OURS = Process(400, "VLLM::EngineCore", "qwen3vl.service", 133 * GIB)


def shown(problem: Problem) -> str:
    return f"{problem.what}: {problem.why} -> {problem.remedy}"


def python(path: str, *version: int, why: str = "", headers: bool = True) -> Interpreter:
    return Interpreter(Path(path), (version[0], version[1], version[2]), headers, why)


@pytest.mark.parametrize("facts", [HEALTHY, CUDA, ROCM, replace(HEALTHY, arch="aarch64", cpu_flags=frozenset())])
def test_a_healthy_host_has_no_problem(facts: Facts) -> None:
    assert preflight.problems(Settings(), facts, LAYOUT) == []


def test_unified_memory_that_leaves_the_host_enough_is_no_problem() -> None:
    assert preflight.problems(Settings(gpu_memory_utilization=0.7), GB10, LAYOUT) == []


@pytest.mark.parametrize("settings", [Settings(cuda_toolkit=which) for which in ("auto", "none", "wheels", "host")])
def test_a_toolkit_that_fits_is_no_problem(settings: Settings) -> None:
    newest = replace(CUDA, glibc=(2, 41), cxx_version=15, nvcc=CUDA_13)
    assert preflight.problems(settings, newest, LAYOUT) == []


def test_who_asks_for_no_compiler_is_not_asked_for_one() -> None:
    """Nor does it matter to an engine that has no use for it."""
    facts = replace(CUDA, glibc=(2, 42), cxx_version=16)
    assert preflight.problems(Settings(), facts, LAYOUT) == []
    assert preflight.problems(Settings(engine="cpu", cuda_toolkit="wheels"), facts, LAYOUT) == []


# facts, settings, and what the one problem must say, in this order: what, why, remedy
ALONE: dict[str, tuple[Facts, Settings, tuple[str, ...]]] = {
    "numa": (replace(HEALTHY, libnuma=False), Settings(), ("no libnuma.so.1", "CPU build", "libnuma1")),
    "root": (replace(HEALTHY, is_root=False), Settings(), ("not run as root", "sudo")),
    "pid 1": (replace(HEALTHY, systemd_is_pid1=False), Settings(), ("does not run this host", "PID 1", "wsl.conf")),
    "no systemd": (replace(HEALTHY, systemd=None), Settings(), ("no systemctl", "apt-get install -y systemd")),
    "old systemd": (replace(HEALTHY, systemd=245), Settings(), ("systemd 245 is too old", "247", "upgrade")),
    "sysusers": (replace(HEALTHY, sysusers=False), Settings(), ("systemd-sysusers", "user", "apt-get install -y")),
    "architecture": (replace(HEALTHY, arch="ppc64le"), Settings(), ("no cpu build of vLLM for ppc64le", "aarch64")),
    "rocm on arm": (replace(ROCM, arch="aarch64"), Settings(), ("no rocm build of vLLM for aarch64", "x86_64")),
    "glibc for cuda": (replace(CUDA, glibc=(2, 28)), Settings(), ("glibc 2.31", "2.28", "upgrade")),
    "glibc for cuda on aarch64": (replace(CUDA, arch="aarch64", glibc=(2, 31)), Settings(), ("glibc 2.34", "2.31")),
    "sleep on unified memory": (
        GB10,
        Settings(gpu_memory_utilization=0.7, vllm_args=("--enable-sleep-mode",)),
        ("--enable-sleep-mode frees nothing on NVIDIA GB10", "its memory is the host's", "leave it out"),
    ),
    "more of unified memory than the host can give": (
        GB10,
        Settings(),
        ("NVIDIA GB10 (GPU-1) has too little free memory", "0.95 of all", "--gpu-memory-utilization 0.92 or less"),
    ),
    "glibc too new for wheels": (
        replace(CUDA, glibc=(2, 42)),
        Settings(cuda_toolkit="wheels"),
        ("glibc 2.42 is too new for the CUDA compiler", "up to 2.41", "--cuda-toolkit none"),
    ),
    "g++ too new for wheels": (
        replace(CUDA, cxx_version=16),
        Settings(cuda_toolkit="wheels"),
        ("g++ 16 is too new for the CUDA compiler", "up to 15", "--cuda-toolkit none"),
    ),
    "g++ too new for the host's": (
        replace(CUDA, cxx_version=16, nvcc=CUDA_13),
        Settings(cuda_toolkit="host"),
        ("g++ 16 is too new", "--cuda-toolkit none"),
    ),
    "no toolkit": (
        CUDA,
        Settings(cuda_toolkit="host"),
        ("no CUDA toolkit was found", "$CUDA_HOME, on the PATH or in /usr/local/cuda", "--cuda-toolkit none"),
    ),
    "toolkit of another CUDA": (
        replace(CUDA, nvcc=Nvcc(Path("/usr/local/cuda"), (12, 9))),
        Settings(cuda_toolkit="host"),
        ("the CUDA toolkit in /usr/local/cuda is of version 12.9", "holds CUDA 13", "--cuda-toolkit none"),
    ),
    "toolkit newer than the driver": (
        replace(CUDA, nvcc=Nvcc(Path("/usr/local/cuda"), (13, 5))),
        Settings(cuda_toolkit="host"),
        ("is of version 13.5", "this driver goes up to CUDA 13.0", "--cuda-toolkit none"),
    ),
    "glibc for cpu": (replace(HEALTHY, glibc=(2, 28)), Settings(), ("glibc 2.31", "2.28", "upgrade")),
    "musl": (replace(HEALTHY, glibc=(0, 0)), Settings(), ("glibc 2.31", "another C library")),
    "avx2": (replace(HEALTHY, cpu_flags=frozenset({"sse4_2"})), Settings(), ("no AVX2", "Big CPU", "host")),
    "low port": (HEALTHY, Settings(port=443), ("port 443", "from 1024 on", "--port 8000")),
    "port of a service": (
        replace(HEALTHY, port_holder=Process(812, "nginx -g x", "nginx.service")),
        Settings(),
        ("port 8000 is taken", "pid 812 (nginx -g x) of nginx.service", "sudo systemctl stop nginx.service", "--port"),
    ),
    "port of a stopped service": (
        replace(HEALTHY, port_kept_for="other"),
        Settings(),
        ("port 8000 is taken", "the service other", "--port", "vllm-install set PORT=8001 --service other"),
    ),
    "port of a process": (
        replace(HEALTHY, port_holder=Process(813, "python3 -m http.server")),
        Settings(),
        ("port 8000 is taken", "pid 813 (python3 -m http.server)", "stop pid 813 yourself", "never", "--port"),
    ),
    "port of a stranger": (
        replace(HEALTHY, port_holder=Process(0, "unknown")),
        Settings(),
        ("port 8000 is taken", "another user", "sudo ss -ltnp 'sport = :8000'", "--port"),
    ),
    "no GPU": (HEALTHY, Settings(engine="cuda"), ("no NVIDIA GPU", "cuda engine", "--engine auto")),
    "no AMD GPU": (CUDA, Settings(engine="rocm"), ("no AMD GPU", "shows none", "--engine auto")),
    "unsupported AMD GPU": (
        replace(HEALTHY, gpus=(replace(MI300, arch="gfx1036", name="AMD gfx1036"),)),
        Settings(engine="rocm"),
        ("no AMD GPU was found that vLLM supports", "found: AMD gfx1036", "--engine auto"),
    ),
    "mismatch": (
        replace(HEALTHY, nvidia_error="nvidia-smi failed: Driver/library version mismatch"),
        Settings(),
        ("driver does not work", "version mismatch", "sudo reboot"),
    ),
    "no driver": (
        replace(HEALTHY, nvidia_error=NoDriver("no driver is loaded for the NVIDIA card at 0000:01:00.0")),
        Settings(),
        ("driver does not work", "0000:01:00.0", "install NVIDIA's driver 580", "--engine cpu"),
    ),
    "silent driver": (
        replace(HEALTHY, nvidia_error="no answer from nvidia-smi within 20 s"),
        Settings(),
        ("driver does not work", "within 20 s", "dmesg"),
    ),
    "old driver": (
        replace(CUDA, gpus=(replace(H200, driver="570.86.10", cuda="12.8"),)),
        Settings(),
        ("driver 570.86.10 is too old", "CUDA 13", "580", "CUDA 12.8", "install driver 580", "cu12"),
    ),
    "driver too old for CUDA 12": (
        replace(CUDA, gpus=(replace(H200, driver="470.57.02", cuda="11.4"),)),
        Settings(index_url="https://mirror.example/cu129"),
        ("driver 470.57.02 is too old", "CUDA 12", "525"),
    ),
    "old GPU": (
        replace(CUDA, gpus=(replace(H200, name="Tesla P100", capability=(6, 0)),)),
        Settings(),
        ("Tesla P100 is too old", "6.0, 7.5 is needed", "--engine cpu"),
    ),
    "too few GPUs": (
        replace(CUDA, gpus=(H200, H200)),
        Settings(tensor_parallel_size=4),
        ("4 GPUs were asked for, but there are 2", "NVIDIA", "--tensor-parallel-size 2"),
    ),
    "too few AMD GPUs": (ROCM, Settings(tensor_parallel_size=2), ("2 GPUs", "there are 1", "AMD")),
    "GPU memory": (
        replace(
            CUDA,
            gpus=(
                replace(
                    H200,
                    memory_used=70 * GIB,
                    holders=(Process(31, "python train.py", "", 60 * GIB), Process(32, "x", "ollama.service")),
                ),
            ),
        ),
        Settings(gpu_memory_utilization=0.9),
        (
            "NVIDIA H200 (GPU-1)", "70.0 GiB of 140.0 GiB are free", "126.0 GiB",
            "pid 31 (python train.py) holds 60.0 GiB", "pid 32 (x) of ollama.service holds some",
            "stop pid 31 yourself", "systemctl stop ollama.service",
            "--gpu-memory-utilization 0.5 or less",
        ),
    ),
    "GPU memory of nobody": (
        replace(CUDA, gpus=(replace(H200, memory_used=139 * GIB),)),
        Settings(),
        ("too little free memory", "no process shows", "fuser"),
    ),
    "no Python": (
        replace(CUDA, interpreters=()),
        Settings(),
        ("no Python for the cuda engine", "3.11 to 3.14", "found none", "apt-get install -y python3.12", "--python"),
    ),
    "Python too old or out of reach": (
        replace(
            CUDA,
            interpreters=(
                python("/usr/bin/python3.10", 3, 10, 12),
                python("/usr/local/bin/python3.12", 3, 12, 1, why="a service sees nothing below /root"),
            ),
        ),
        Settings(),
        (
            "/usr/bin/python3.10: it is Python 3.10.12",
            "/usr/local/bin/python3.12: a service sees nothing below /root",
            "--python",
        ),
    ),
    "Python for ROCm": (
        replace(ROCM, interpreters=(python("/usr/bin/python3.13", 3, 13, 0),)),
        Settings(),
        ("no Python for the rocm engine", "needs Python 3.12, which", "/usr/bin/python3.13: it is Python 3.13.0"),
    ),
    "the Python asked for": (
        HEALTHY,
        Settings(python="/opt/py/bin/python3"),
        ("no Python", "/opt/py/bin/python3: it does not exist or does not run"),
    ),
    "compilers": (
        replace(
            HEALTHY,
            c_compiler=None,
            cxx_compiler=None,
            interpreters=(python("/usr/bin/python3.12", 3, 12, 3, headers=False),),
        ),
        Settings(),
        (
            "no C compiler, no C++ compiler, no Python.h for /usr/bin/python3.12",
            "sudo apt-get install -y gcc g++ python3.12-dev",
        ),
    ),
    "read-only": (
        replace(HEALTHY, disks={**HEALTHY.disks, ETC: replace(DISK, path=ETC, read_only=True)}),
        Settings(),
        ("/etc cannot be written", "read-only", "remount,rw"),
    ),
    "noexec": (
        replace(HEALTHY, disks={**HEALTHY.disks, CACHE: replace(DISK, path=Path("/var/cache"), noexec=True)}),
        Settings(),
        ("nothing below /var/cache/vllm-install can be executed", "/var/cache is mounted with noexec", "remount,exec"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_each_problem_alone(name: str) -> None:
    facts, settings, parts = ALONE[name]
    problems = preflight.problems(settings, facts, LAYOUT)
    assert len(problems) == 1, problems
    assert problems[0].fatal
    position = 0
    for part in parts:
        position = shown(problems[0]).find(part, position)
        assert position >= 0, (part, shown(problems[0]))
    refused = preflight.refuse(problems)
    assert refused.exit_code == Exit.REFUSED
    assert refused.hint == problems[0].remedy
    assert problems[0].what in refused.message
    assert problems[0].why in refused.message


def test_replicas_on_the_processor_share_one_memory() -> None:
    def found(**given: object) -> list[str]:
        settings = replace(Settings(), engine="cpu", **given)  # type: ignore[arg-type]
        return [shown(problem) for problem in preflight.problems(settings, HEALTHY, LAYOUT)]

    assert found(replicas=2) == []
    (said,) = found(replicas=3)
    assert said == (
        "3 replicas do not fit into the memory of this host: each takes 0.4 of the 64.0 GiB for itself -> "
        "choose --gpu-memory-utilization 0.26 or less, or fewer --replicas"
    )
    assert found(replicas=3, gpu_memory_utilization=0.26) == []
    assert [problem.id for problem in preflight.problems(replace(Settings(), replicas=3), CUDA, LAYOUT)] == [
        "host-unfit"
    ]


def test_little_memory_is_a_warning() -> None:
    (problem,) = preflight.problems(Settings(), replace(HEALTHY, memory_total=4 * GIB), LAYOUT)
    assert not problem.fatal
    assert "4.0 GiB" in shown(problem)


def test_all_problems_at_once() -> None:
    facts = replace(
        HEALTHY,
        is_root=False,
        systemd=245,
        glibc=(2, 17),
        memory_total=GIB,
        interpreters=(),
        port_holder=Process(812, "nginx", "nginx.service"),
    )
    problems = preflight.problems(Settings(engine="cuda"), facts, LAYOUT)
    refused = preflight.refuse(problems)
    assert refused.exit_code == Exit.REFUSED
    assert refused.message.startswith("6 things")
    for problem in problems:
        assert (problem.what in refused.message) is problem.fatal
        assert (f"-> {problem.remedy}" in refused.message) is problem.fatal
    assert "6. " in refused.message
    assert "7. " not in refused.message
    assert "run the same command again" in refused.hint


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (replace(CUDA, service_runs=True, port_holder=OURS), Settings()),
        # the memory our own service holds comes free at its restart
        (replace(CUDA, service_runs=True, gpus=(replace(H200, memory_used=135 * GIB, holders=(OURS,)),)), Settings()),
        # how much that is, the driver may not say, or not who holds it
        (
            replace(
                CUDA,
                service_runs=True,
                gpus=(replace(H200, memory_used=135 * GIB, holders=(replace(OURS, memory=0),)),),
            ),
            Settings(),
        ),
        (replace(ROCM, service_runs=True, gpus=(replace(MI300, memory_used=190 * GIB),)), Settings()),
        (replace(CUDA, gpus=(replace(H200, memory_total=0),)), Settings()),
        (replace(CUDA, gpus=(replace(H200, capability=None),)), Settings()),
        (replace(CUDA, gpus=(replace(H200, driver="550.1"),)), Settings(index_url="https://mirror.example/cu129")),
        # the card for the display is not the one that serves
        (replace(CUDA, gpus=(replace(H200, name="Tesla P4", capability=(6, 1)), H200)), Settings()),
        (replace(HEALTHY, unprivileged_port=80), Settings(port=80)),
        (replace(HEALTHY, glibc=(2, 31)), Settings()),
        # a broken NVIDIA driver is none of the cpu engine's business
        (replace(HEALTHY, nvidia_error="broken"), Settings(engine="cpu")),
        (replace(HEALTHY, disks={**HEALTHY.disks, ETC: replace(DISK, noexec=True)}), Settings()),
        (replace(HEALTHY, interpreters=(python("/usr/bin/python3.10", 3, 10, 12), PYTHON)), Settings()),
    ],
)
def test_what_is_no_problem(facts: Facts, settings: Settings) -> None:
    assert preflight.problems(settings, facts, LAYOUT) == []


def test_our_service_does_not_excuse_others() -> None:
    other = Process(31, "python train.py", "", 100 * GIB)
    gpu = replace(H200, memory_used=130 * GIB, holders=(replace(OURS, memory=30 * GIB), other))
    (problem,) = preflight.problems(Settings(), replace(CUDA, service_runs=True, gpus=(gpu,)), LAYOUT)
    assert "40.0 GiB of 140.0 GiB are free" in problem.why
    assert "VLLM::EngineCore" not in shown(problem)


def test_the_port_of_another_service_of_ours_is_taken() -> None:
    facts = replace(HEALTHY, port_holder=Process(5, "vllm", "qwen3vl-b.service"))
    assert len(preflight.problems(Settings(), facts, LAYOUT)) == 1


@pytest.mark.parametrize(
    ("distribution", "command"),
    [
        (("debian",), "sudo apt-get install -y gcc g++ python3.12-dev"),
        (("linuxmint", "ubuntu", "debian"), "sudo apt-get install -y gcc g++ python3.12-dev"),
        (("rocky", "rhel", "centos", "fedora"), "sudo dnf install -y gcc gcc-c++ python3.12-devel"),
        (("opensuse-leap", "suse", "opensuse"), "sudo zypper install -y gcc gcc-c++ python312-devel"),
        (("manjaro", "arch"), "sudo pacman -S --needed gcc python"),
        (("gentoo",), "install gcc g++ python3.12-dev with this distribution's package manager"),
    ],
)
def test_the_command_of_the_distribution(distribution: tuple[str, ...], command: str) -> None:
    bare = python("/usr/bin/python3.12", 3, 12, 3, headers=False)
    facts = replace(HEALTHY, distribution=distribution, c_compiler=None, cxx_compiler=None, interpreters=(bare,))
    (problem,) = preflight.problems(Settings(), facts, LAYOUT)
    assert problem.remedy == command


@pytest.mark.parametrize(
    ("engine", "gpus", "error", "expected"),
    [
        ("auto", (), "", "cpu"),
        ("auto", (H200,), "", "cuda"),
        ("auto", (MI300,), "", "rocm"),
        ("auto", (MI300, H200), "", "cuda"),
        ("auto", (replace(MI300, arch="gfx1036"),), "", "cpu"),
        ("auto", (), "no driver is loaded", "cuda"),
        ("auto", (MI300,), "no driver is loaded", "rocm"),
        ("cpu", (H200,), "", "cpu"),
        ("rocm", (), "", "rocm"),
    ],
)
def test_the_engine_for_a_host(engine: str, gpus: tuple[Gpu, ...], error: str, expected: str) -> None:
    facts = replace(HEALTHY, gpus=gpus, nvidia_error=error)
    assert preflight.choose_engine(Settings(engine=engine), facts) == expected


def test_the_interpreter_with_headers_and_the_best_tried_version_wins() -> None:
    bare = python("/usr/bin/python3.12", 3, 12, 3, headers=False)
    older = python("/usr/bin/python3.11", 3, 11, 2)
    newer = python("/usr/bin/python3.14", 3, 14, 0)
    hidden = python("/usr/bin/python3.13", 3, 13, 0, why="closed")
    facts = replace(HEALTHY, interpreters=(bare, newer, older, hidden))
    assert preflight.choose_interpreter(Settings(), facts, "cuda") == older
    assert preflight.choose_interpreter(Settings(python="/usr/bin/python3.14"), facts, "cuda") == newer
    assert preflight.choose_interpreter(Settings(), facts, "rocm") == bare
    assert preflight.choose_interpreter(Settings(python="/usr/bin/python3.13"), facts, "cuda") is None


# disks


def on_disks(opt_free: int, cache_free: int, *, same: bool) -> Facts:
    opt = replace(DISK, path=Path("/opt"), free=opt_free)
    cache = opt if same else replace(DISK, path=Path("/var/cache"), free=cache_free, device=2)
    return replace(HEALTHY, disks={OPT: opt, CACHE: cache})


def test_directories_of_one_disk_are_summed() -> None:
    needs = {OPT / "engines": 8 * GIB, CACHE / "hub": 16 * GIB}
    (problem,) = preflight.check_space(needs, on_disks(20 * GIB, 0, same=True))
    # 24 GiB and five per cent of it
    missing = 24 * GIB + 24 * GIB // 20 - 20 * GIB
    assert f"{missing} bytes" in problem.why
    for part in ("20.0 GiB are free", "8.0 GiB in /opt/vllm-install/engines", "16.0 GiB in /var/cache", "5.2 GiB"):
        assert part in shown(problem)
    assert preflight.check_space(needs, on_disks(20 * GIB, 20 * GIB, same=False)) == []


def test_a_disk_that_is_just_large_enough() -> None:
    assert preflight.check_space({OPT: 4 * GIB}, on_disks(5 * GIB, 0, same=True)) == []
    assert len(preflight.check_space({OPT: 4 * GIB}, on_disks(5 * GIB - 1, 0, same=True))) == 1


def test_no_share_of_a_full_gpu_is_recommended() -> None:
    facts = replace(CUDA, gpus=(replace(H200, memory_used=139 * GIB),))
    (problem,) = preflight.problems(Settings(), facts, LAYOUT)
    assert "--gpu-memory-utilization" not in problem.remedy


def test_each_disk_is_told_of() -> None:
    needs = {OPT / "engines": 8 * GIB, CACHE / "hub": 16 * GIB}
    problems = preflight.check_space(needs, on_disks(GIB, GIB, same=False))
    assert [problem.what.split()[4] for problem in problems] == ["/opt", "/var/cache"]
    assert preflight.refuse(problems).exit_code == Exit.REFUSED


@given(st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**13), st.booleans())
def test_enough_space_is_exactly_enough(opt: int, cache: int, opt_free: int, cache_free: int, same: bool) -> None:
    def with_room(need: int) -> int:
        return need + max(need // 20, GIB) if need else 0

    problems = preflight.check_space({OPT: opt, CACHE: cache}, on_disks(opt_free, cache_free, same=same))
    if same:
        expected = int(with_room(opt + cache) > opt_free)
    else:
        expected = int(with_room(opt) > opt_free) + int(with_room(cache) > cache_free)
    assert len(problems) == expected


# Containers


IN_A_CONTAINER = Settings(runtime="podman")
BARE = replace(HEALTHY, podman=Podman((5, 4)), c_compiler=None, cxx_compiler=None, glibc=(2, 28), libnuma=False)


def test_a_container_needs_no_compiler_and_no_python_of_a_certain_version() -> None:
    old = (python("/usr/bin/python3.9", 3, 9, 2, headers=False),)
    assert preflight.problems(IN_A_CONTAINER, replace(BARE, interpreters=old), LAYOUT) == []
    assert preflight.choose_interpreter(IN_A_CONTAINER, replace(BARE, interpreters=old), "cpu") == old[0]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            replace(BARE, podman=None),
            "no podman was found: with RUNTIME=podman it runs the engine's container -> sudo apt-get install -y podman",
        ),
        (
            replace(BARE, podman=Podman((4, 3))),
            "podman 4.3 is too old: version 4.4 or newer is needed -> upgrade the distribution (Debian 13, "
            "Ubuntu 24.04 and RHEL 9 are new enough), or choose RUNTIME=venv",
        ),
        (
            replace(BARE, interpreters=()),
            "no Python was found: it starts the container -> sudo apt-get install -y python3",
        ),
        (
            replace(BARE, gpus=(H200,)),
            "podman knows no GPU: containers are given NVIDIA GPUs by the Container Device Interface -> "
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ),
        (
            replace(BARE, gpus=(MI300,)),
            "RUNTIME=podman has no way to give a container AMD's GPUs: none was tried -> choose RUNTIME=venv",
        ),
    ],
)
def test_what_a_container_lacks_is_said_with_what_helps(facts: Facts, said: str) -> None:
    assert [shown(problem) for problem in preflight.problems(IN_A_CONTAINER, facts, LAYOUT)] == [said]


def test_for_unified_memory_the_vendors_own_image_is_named() -> None:
    known = Podman((5, 4), frozenset(["nvidia.com/gpu=0"]))
    here = replace(BARE, gpus=(SPARK,), podman=known)
    (problem,) = preflight.problems(replace(IN_A_CONTAINER, gpu_memory_utilization=0.7), here, LAYOUT)
    assert not problem.fatal
    assert "--image nvcr.io/nvidia/vllm:TAG" in problem.remedy
    assert preflight.problems(replace(IN_A_CONTAINER, gpu_memory_utilization=0.7, image="x"), here, LAYOUT) == []


def test_gpus_that_podman_knows_are_enough() -> None:
    known = Podman((5, 4), frozenset({"nvidia.com/gpu=all", "nvidia.com/gpu=GPU-1"}))
    assert preflight.problems(IN_A_CONTAINER, replace(BARE, gpus=(H200,), podman=known), LAYOUT) == []
