"""Facts of made-up machines below a temporary root, and of the machine that runs the tests."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.checks import facts
from installer.checks.gpus import nvidia
from installer.spec.facts import Process
from installer.spec.settings import Settings
from installer.units.processes import conflict
from tests.kit.boot.surroundings import REPO, in_own_mounts
from tests.kit.made_up import MadeUp

LAYOUT = Layout("qwen3vl")
UUID = "GPU-11111111-2222-3333-4444-555555555555"
MIB = 1024 * 1024
GB10 = f"580.1, [N/A], [N/A], [N/A], {UUID}, 0, 0000000F:01:00.0, [N/A], NVIDIA GB10"
KERNEL_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (root@host)\n"


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path / "root")


def nvidia_smi(gpus: str, apps: str = "", cuda: str = "13.0") -> str:
    return f"""case "$1" in
--query-gpu={nvidia.WHAT}) printf '{gpus}';;
--query-compute-apps={nvidia.HOLDERS}) printf '{apps}';;
--version) printf 'NVIDIA-SMI version  : 580.1\\nCUDA Version        : {cuda}\\n';;
*) exit 2;;
esac"""


# Ports


def put_unit(
    made_up: MadeUp, name: str, *words: str, launcher: str = "/opt/vllm-install/runtime/1/vllm_launcher.py"
) -> None:
    line = " ".join(["/opt/vllm-install/engines/1/bin/python", launcher, "launch", "--", "serve", "m", *words])
    made_up.file(f"/etc/systemd/system/{name}.service", f"[Service]\nExecStart={line}\n")


@pytest.mark.parametrize(
    ("words", "keeper"),
    [
        (("--port", "8000"), "other"),
        ((), "other"),  # vLLM's own
        (("--host", "10.0.0.1", "--port", "8000"), "other"),
        (("--port", "8000", "--port", "8001"), None),
        (("--port=8001",), None),
        (("--port", "8001", "--por=8000"), "other"),
        (("--port", "eight"), None),
    ],
)
def test_the_port_of_a_service_that_is_stopped_is_taken(
    made_up: MadeUp, words: tuple[str, ...], keeper: str | None
) -> None:
    put_unit(made_up, "other", *words)
    put_unit(made_up, "broken", "--host", "nowhere")
    put_unit(made_up, "theirs", launcher="/srv/serve.py")
    assert made_up.gather().port_kept_for == keeper


def test_a_port_on_another_address_is_free(made_up: MadeUp) -> None:
    put_unit(made_up, "other", "--host", "127.0.0.1", "--port", "8000")
    assert made_up.gather(Settings(host="10.0.0.1")).port_kept_for is None
    assert made_up.gather(Settings(host="localhost")).port_kept_for == "other"


def test_two_services_that_share_a_port_already_may_go_on_to(made_up: MadeUp) -> None:
    put_unit(made_up, "other", "--port", "8000")
    put_unit(made_up, LAYOUT.service, "--port", "8000")
    assert made_up.gather().port_kept_for is None


# GPUs


def test_an_nvidia_gpu_and_who_holds_it(made_up: MadeUp) -> None:
    made_up.command(
        "/usr/bin/nvidia-smi",
        nvidia_smi(
            f"580.159.04, 9.0, 143771, 1634, {UUID}, 0, 00000000:18:00.0, Disabled, NVIDIA H200\\n"
            "580.159.04, 9.0, 143771, 0, GPU-2, 1, 00000000:3B:00.0, Disabled, NVIDIA H200\\n",
            f"400, 1634, {UUID}, VLLM::EngineCore\\n401, [N/A], {UUID}, a, b\\n",
        ),
    )
    made_up.process(400, "VLLM::EngineCore", unit="/vllm.slice/qwen3vl.service")
    first, second = made_up.gather().gpus
    assert (first.vendor, first.name, first.uuid, first.driver) == ("nvidia", "NVIDIA H200", UUID, "580.159.04")
    assert (first.cuda, first.capability) == ("13.0", (9, 0))
    assert (first.memory_total, first.memory_used) == (143771 * MIB, 1634 * MIB)
    assert first.holders == (
        Process(400, "VLLM::EngineCore", "qwen3vl.service", 1634 * MIB),
        Process(401, "a, b", "", 0),
    )
    assert (second.uuid, second.holders) == ("GPU-2", ())


def test_which_device_node_is_whose_only_the_driver_says(made_up: MadeUp) -> None:
    """The numbers of nodes follow another order than nvidia-smi's index; an address has two spellings."""
    rows = (
        f"580.1, 9.0, 1, 0, GPU-{i}, {i}, 00000000:{bus}:00.0, Disabled, NVIDIA H200" for i, bus in ((0, 18), (1, "3B"))
    )
    made_up.command("/usr/bin/nvidia-smi", nvidia_smi("\\n".join(rows)))
    for bus, minor in (("18", 1), ("3b", 0)):
        text = f"Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-????????\nDevice Minor: \t {minor}\n"
        made_up.file(f"/proc/driver/nvidia/gpus/0000:{bus}:00.0/information", text)
    found = [(gpu.index, gpu.pci, gpu.node) for gpu in made_up.gather().gpus]
    assert found == [(0, "0000:18:00.0", "/dev/nvidia1"), (1, "0000:3b:00.0", "/dev/nvidia0")]


def slice_report(index: int, total: int) -> str:
    memory = f"<total>{total} MiB</total><reserved>0 MiB</reserved><used>12 MiB</used>"
    bar = "<bar1_memory_usage><total>32767 MiB</total><used>0 MiB</used></bar1_memory_usage>"
    return (
        f"<mig_device><index>{index}</index><gpu_instance_id>{index + 3}</gpu_instance_id>"
        f"<fb_memory_usage>{memory}</fb_memory_usage>{bar}</mig_device>"
    )


def test_the_slices_of_a_gpu_take_its_place(made_up: MadeUp) -> None:
    """The texts are shortened from nvidia-smi's own, of drivers 535 and 580."""
    whole = "GPU-7f57f032-34ab-a064-c37c-7a4f75601cc5"
    listed = f"""GPU 0: NVIDIA H200 (UUID: {whole})
  MIG 2g.35gb     Device  0: (UUID: MIG-377e0049-554c-540b-93c6-d0976f8426cb)
  MIG 1g.18gb     Device  1: (UUID: MIG-f39aa248-6f1b-5769-b119-8d650bb34b27)
GPU 1: NVIDIA H200 (UUID: GPU-2)
"""
    report = f"""<gpu id="00000000:18:00.0"><mig_devices>{slice_report(0, 33280)}{slice_report(1, 16384)}</mig_devices>
<uuid>{whole}</uuid></gpu><gpu id="00000000:3B:00.0"><mig_devices>None</mig_devices><uuid>GPU-2</uuid></gpu>"""
    made_up.file("/listed", listed)
    made_up.file("/report", report)
    rows = (
        f"580.1, 9.0, 143771, 0, {whole}, 0, 00000000:18:00.0, Enabled, NVIDIA H200\\n"
        "580.1, 9.0, 143771, 0, GPU-2, 1, 00000000:3B:00.0, Disabled, NVIDIA H200\\n"
    )
    mig = f'case "$*" in "-L") cat {made_up.root}/listed;; "-q -x") cat {made_up.root}/report;; esac'
    made_up.command("/usr/bin/nvidia-smi", nvidia_smi(rows).replace("*) exit 2;;", f"*) {mig};;"))
    made_up.file("/proc/driver/nvidia/gpus/0000:18:00.0/information", "Device Minor: \t 4\n")
    first, second, other = made_up.gather().gpus
    assert (first.name, first.uuid) == ("NVIDIA H200 MIG 2g.35gb", "MIG-377e0049-554c-540b-93c6-d0976f8426cb")
    assert (second.name, second.uuid) == ("NVIDIA H200 MIG 1g.18gb", "MIG-f39aa248-6f1b-5769-b119-8d650bb34b27")
    assert [(gpu.memory_total, gpu.memory_used) for gpu in (first, second)] == [
        (33280 * MIB, 12 * MIB), (16384 * MIB, 12 * MIB),
    ]  # fmt: skip
    assert {(gpu.node, gpu.is_slice, gpu.capability) for gpu in (first, second)} == {("/dev/nvidia4", True, (9, 0))}
    assert (other.uuid, other.is_slice) == ("GPU-2", False)


def test_figures_that_the_driver_does_not_have(made_up: MadeUp) -> None:
    made_up.command("/usr/bin/nvidia-smi", nvidia_smi(f"{GB10}\\n", cuda="?"))
    (gpu,) = made_up.gather().gpus
    assert (gpu.capability, gpu.memory_total, gpu.memory_used, gpu.cuda) == (None, 0, 0, None)


def test_a_gpu_that_names_no_memory_has_the_hosts(made_up: MadeUp) -> None:
    """As a DGX Spark says it: each process's memory is known, the GPU's is not."""
    row = f"580.173.02, 12.1, [N/A], [N/A], {UUID}, 0, 0000000F:01:00.0, [N/A], NVIDIA GB10"
    made_up.command("/usr/bin/nvidia-smi", nvidia_smi(f"{row}\\n", f"400, 43008, {UUID}, VLLM::EngineCore\\n"))
    made_up.file("/proc/meminfo", "MemTotal:       127600748 kB\nMemAvailable:   118566368 kB\n")
    (gpu,) = made_up.gather().gpus
    assert (gpu.is_unified, gpu.capability) == (True, (12, 1))
    assert (gpu.memory_total, gpu.memory_used) == (127600748 << 10, (127600748 - 118566368) << 10)
    assert [holder.memory for holder in gpu.holders] == [43008 * MIB]


def test_a_driver_that_does_not_match_its_library(made_up: MadeUp) -> None:
    made_up.command(
        "/usr/bin/nvidia-smi",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
    )
    made_up.file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    made_up.file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    seen = made_up.gather()
    assert seen.gpus == ()
    assert "exit status 18: Failed to initialize NVML: Driver/library version mismatch" in seen.nvidia_error


def test_a_driver_that_never_answers(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "ANSWERS_WITHIN", 0.2)
    made_up.command("/usr/bin/nvidia-smi", "exec sleep 60")
    assert "no answer" in made_up.gather().nvidia_error


def test_the_tool_without_any_card_is_no_fault(made_up: MadeUp) -> None:
    made_up.command("/usr/bin/nvidia-smi", "echo 'No devices were found'; exit 6")
    seen = made_up.gather()
    assert (seen.gpus, seen.nvidia_error) == ((), "")


def test_a_driver_without_its_tools(made_up: MadeUp) -> None:
    made_up.file("/proc/driver/nvidia/version", KERNEL_MODULE)
    made_up.file(
        "/proc/driver/nvidia/gpus/0000:01:00.0/information",
        f"Model: \t\t NVIDIA L4\nIRQ:   \t\t 41\nGPU UUID: \t {UUID}\nDevice Minor: \t 0\n",
    )
    (gpu,) = made_up.gather().gpus
    assert (gpu.vendor, gpu.name, gpu.uuid, gpu.driver) == ("nvidia", "NVIDIA L4", UUID, "570.86.10")
    assert (gpu.index, gpu.pci, gpu.node) == (0, "0000:01:00.0", "/dev/nvidia0")
    assert gpu.capability is None


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x10de", "0x030000", "no driver is loaded for the NVIDIA card at 0000:01:00.0"),
        ("0x10de", "0x040300", ""),  # its sound device
        ("0x8086", "0x030000", ""),
    ],
)
def test_a_card_without_a_driver(made_up: MadeUp, vendor: str, kind: str, expected: str) -> None:
    made_up.file("/sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}\n")
    made_up.file("/sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n")
    assert made_up.gather().nvidia_error == expected


@pytest.mark.parametrize(("number", "arch"), [(90402, "gfx942"), (90010, "gfx90a"), (110001, "gfx1101")])
def test_amd_gpus(made_up: MadeUp, number: int, arch: str) -> None:
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    made_up.file(f"{nodes}/0/properties", "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n")
    made_up.file(
        f"{nodes}/1/properties",
        f"simd_count 1216\ngfx_target_version {number}\ndrm_render_minor 128\nunique_id 255\n",
    )
    made_up.file("/sys/class/drm/renderD128/device/mem_info_vram_total", f"{1000 * MIB}\n")
    made_up.file("/sys/class/drm/renderD128/device/mem_info_vram_used", f"{10 * MIB}\n")
    made_up.file("/sys/module/amdgpu/version", "6.12.12\n")
    (gpu,) = made_up.gather().gpus
    assert (gpu.vendor, gpu.arch, gpu.name, gpu.driver) == ("amd", arch, f"AMD {arch}", "6.12.12")
    assert (gpu.memory_total, gpu.memory_used, gpu.uuid) == (1000 * MIB, 10 * MIB, "GPU-00000000000000ff")


def test_amd_gpus_are_counted_as_the_driver_counts_and_told_apart_without_a_number_of_their_own(
    made_up: MadeUp,
) -> None:
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    for number, place, unique in ((2, 0xC300, 0), (10, 0x0300, 0xABC)):
        made_up.file(
            f"{nodes}/{number}/properties",
            f"simd_count 1216\ngfx_target_version 90402\ndrm_render_minor {126 + number}\nunique_id {unique}\n"
            f"domain 0\nlocation_id {place}\n",
        )
    first, second = made_up.gather().gpus
    assert (first.index, first.uuid, first.pci, first.node) == (
        0,
        "0000:c3:00.0",
        "0000:c3:00.0",
        "/dev/dri/renderD128",
    )
    assert (second.index, second.uuid) == (1, "GPU-0000000000000abc")
    assert (second.pci, second.node) == ("0000:03:00.0", "/dev/dri/renderD136")


# interpreters


def test_interpreters_are_found_by_running_them(made_up: MadeUp) -> None:
    made_up.python("/usr/bin/python3.11", "3.11.2")
    made_up.file("/usr/include/python3.11/Python.h", "")
    made_up.python("/usr/local/bin/python3.12", "3.12.8", prefix="/usr/local")
    made_up.python("/usr/local/bin/python3.11", "3.11.2", real="/usr/bin/python3.11")  # the same one again
    made_up.command("/usr/bin/python3.13", "exit 1")
    made_up.file("/usr/bin/python3.14", "not a program")
    found = made_up.gather().interpreters
    assert [(str(i.path), i.version, i.why_unreachable, i.headers) for i in found] == [
        ("/usr/bin/python3.11", (3, 11, 2), "", True),
        ("/usr/local/bin/python3.12", (3, 12, 8), "", False),
    ]


def test_the_interpreter_asked_for_comes_first(made_up: MadeUp) -> None:
    made_up.python("/usr/bin/python3.12", "3.12.8")
    made_up.python("/opt/python/bin/python3", "3.13.1", prefix="/opt/python")
    found = made_up.gather(Settings(python="/opt/python/bin/python3")).interpreters
    assert [str(i.path) for i in found] == ["/opt/python/bin/python3", "/usr/bin/python3.12"]


@pytest.mark.parametrize(
    ("path", "real", "prefix", "why"),
    [
        ("/root/py/bin/python3", None, "/root/py", "a service sees nothing below /root"),
        ("/home/ann/py/bin/python3", None, "/home/ann/py", "a service sees nothing below /home"),
        ("/opt/closed/bin/python3", None, "/opt/closed", "/opt/closed is closed to other users (mode 0700)"),
        # a link in an open place to an interpreter in a closed one
        ("/opt/open/python3", "/root/py/bin/python3.12", "/usr", "a service sees nothing below /root"),
        # a virtual environment in an open place whose standard library lies in a closed one
        ("/opt/open/python3", None, "/opt/closed", "/opt/closed is closed to other users (mode 0700)"),
    ],
)
def test_interpreters_out_of_reach(made_up: MadeUp, path: str, real: str | None, prefix: str, why: str) -> None:
    (made_up.root / "root/py/bin").mkdir(parents=True)
    (made_up.root / "opt/closed").mkdir(mode=0o700)
    made_up.python(path, "3.12.1", real, prefix)
    (found,) = made_up.gather(Settings(python=path)).interpreters
    assert found.why_unreachable == why


# who listens


def test_parity_row_19_the_holder_of_the_port(made_up: MadeUp) -> None:
    made_up.listens("0.0.0.0", 8000, 4242)
    made_up.process(50, "other", inode=1)
    words = ("/opt/e/bin/python", "vllm", "serve", "--api-key", "sk-secret")
    made_up.process(77, *words, inode=4242, unit="/a/b.service/x")
    assert made_up.gather().port_holder == Process(77, "/opt/e/bin/python vllm serve", "b.service")
    assert made_up.gather(Settings(port=8001)).port_holder is None


def test_a_listener_on_another_address_is_none_of_ours(made_up: MadeUp) -> None:
    made_up.listens("10.0.0.5", 8000, 4242)
    made_up.process(77, "nginx", inode=4242)
    assert made_up.gather(Settings(host="127.0.0.1")).port_holder is None
    assert made_up.gather(Settings(host="0.0.0.0")).port_holder == Process(77, "nginx")


@pytest.mark.parametrize(("link", "other"), [("3", "5"), ("5", "3")])  # one of them is listed after the other
def test_a_process_that_closes_files_meanwhile_is_still_found(made_up: MadeUp, link: str, other: str) -> None:
    made_up.listens("0.0.0.0", 8000, 4242)
    made_up.process(77, "busy")
    handles = made_up.root / "proc/77/fd"
    (handles / "3").unlink()
    (handles / link).symlink_to("socket:[4242]")
    (handles / other).write_text("no longer a link")
    assert made_up.gather().port_holder == Process(77, "busy")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("vllm", "serve", "m", "--api-key", "sk-secret"), "vllm serve m"),
        (("python3", "-m", "http.server", "8000"), "python3 -m http.server 8000"),
        (("python3", "-c", "key = 'sk-secret'"), "python3"),
        (("nginx: master process /usr/sbin/nginx -g daemon off;",), "nginx: master process /usr/sbin/nginx"),
        (("x" * 200,), "x" * 79 + "…"),
    ],
)
def test_of_a_command_only_what_cannot_hold_a_key_is_shown(
    made_up: MadeUp, words: tuple[str, ...], command: str
) -> None:
    made_up.listens("0.0.0.0", 8000, 4242)
    made_up.process(77, *words, inode=4242)
    assert made_up.gather().port_holder == Process(77, command)


def test_a_listener_of_nobody_we_can_see(made_up: MadeUp) -> None:
    made_up.listens("::", 8000, 4242)
    assert made_up.gather().port_holder == Process(0, "unknown")


def test_a_users_own_service_is_not_named_and_a_kernel_name_helps(made_up: MadeUp) -> None:
    made_up.listens("127.0.0.1", 8000, 7)
    made_up.process(9, inode=7, unit="/user.slice/user-0.slice/user@0.service/app.slice/web.service")
    assert made_up.gather().port_holder == Process(9, "short-name", "")


@pytest.mark.parametrize(
    ("wanted", "taken", "expected"),
    [
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "::", True),
        ("0.0.0.0", "::1", False),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "10.0.0.5", False),
        ("127.0.0.1", "::", True),
        ("localhost", "127.0.0.1", True),
        ("localhost", "10.0.0.5", False),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::1", "::1", True),
        ("::1", "fd00::1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_which_addresses_exclude_each_other(wanted: str, taken: str, expected: bool) -> None:
    assert conflict(wanted, ipaddress.ip_address(taken)) is expected


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"])
def test_a_socket_of_this_very_process_is_found(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.bind((address, 0))
        server.listen()
        port = server.getsockname()[1]
        host = "::1" if address == "::1" else "127.0.0.1"
        holder = facts.gather(Host(), Settings(host=host, port=port), LAYOUT).port_holder
    assert holder is not None
    assert holder.pid == os.getpid()
    itself = Path("/proc/self/cmdline").read_text().replace("\0", " ")
    assert holder.command[:12] == itself[:12]


# the machine


def test_the_machine_itself(made_up: MadeUp) -> None:
    made_up.file("/proc/cpuinfo", "model name\t: Big CPU\nflags\t\t: fpu avx2 avx512f\n\nflags\t\t: other\n")
    made_up.file("/proc/meminfo", "MemTotal:     2000 kB\nMemFree:  1 kB\nMemAvailable:   1000 kB\nHugePages:  0\n")
    made_up.file("/etc/os-release", 'NAME="Rocky"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n')
    made_up.file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n")
    made_up.command("/usr/bin/gcc", "exit 0")
    made_up.command("/usr/bin/g++", "exit 0")
    made_up.command("/usr/bin/systemd-sysusers", "exit 0")
    made_up.command(
        "/usr/bin/systemctl",
        "case $1$4 in --version) echo 'systemd 252 (252.39-1)';; showqwen3vl.service) echo activating;; esac",
    )
    (made_up.root / "run/systemd/system").mkdir(parents=True)
    seen = made_up.gather()
    assert (seen.cpu, seen.cpu_flags) == ("Big CPU", {"fpu", "avx2", "avx512f"})
    assert (seen.memory_total, seen.memory_available, seen.node_memory) == (2000 * 1024, 1000 * 1024, 2000 * 1024)
    assert seen.distribution == ("rocky", "rhel", "centos", "fedora")
    assert seen.unprivileged_port == 80
    assert (seen.c_compiler, seen.cxx_compiler) == (Path("/usr/bin/gcc"), Path("/usr/bin/g++"))
    assert not seen.libnuma
    made_up.file("/usr/lib/x86_64-linux-gnu/libnuma.so.1", "")
    assert made_up.gather().libnuma
    assert (seen.systemd, seen.systemd_is_pid1, seen.sysusers, seen.service_runs) == (252, True, True, True)


def test_the_memory_of_a_node(made_up: MadeUp) -> None:
    """Not that of one without processors, nor what the kernel says of a node that is empty."""
    made_up.file("/proc/meminfo", "MemTotal: 9000 kB\n")
    for node, (cpus, memory) in {"node0": ("0-3\n", 4000), "node1": ("4-7\n", 3000), "node2": ("\n", 2000)}.items():
        made_up.file(f"/sys/devices/system/node/{node}/cpulist", cpus)
        made_up.file(f"/sys/devices/system/node/{node}/meminfo", f"\nNode {node[4:]} MemTotal:       {memory} kB\n")
    made_up.file("/sys/devices/system/node/node3/cpulist", "8\n")
    made_up.file("/sys/devices/system/node/node3/meminfo", "Node 3 MemTotal:       0 kB\n")
    made_up.file("/sys/devices/system/node/power/cpulist", "9\n")
    seen = made_up.gather()
    assert (seen.memory_total, seen.node_memory) == (9000 * 1024, 3000 * 1024)


def test_a_bare_root(made_up: MadeUp) -> None:
    seen = made_up.gather()
    assert (seen.gpus, seen.nvidia_error, seen.interpreters, seen.port_holder) == ((), "", (), None)
    assert (seen.systemd, seen.systemd_is_pid1, seen.sysusers, seen.service_runs) == (None, False, False, False)
    assert (seen.c_compiler, seen.cxx_compiler, seen.distribution) == (None, None, ())
    assert (seen.cpu, seen.cpu_flags, seen.unprivileged_port) == ("", frozenset(), 1024)


def test_the_instruction_set_of_arm(made_up: MadeUp) -> None:
    made_up.file("/proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve\n")
    assert made_up.gather().cpu_flags == {"fp", "asimd", "sve"}


def test_clang_will_do_for_c(made_up: MadeUp) -> None:
    made_up.command("/usr/bin/clang", "exit 0")
    seen = made_up.gather()
    assert (seen.c_compiler, seen.cxx_compiler) == (Path("/usr/bin/clang"), None)


def test_disks_are_those_of_the_nearest_directory(made_up: MadeUp) -> None:
    (made_up.root / "opt/vllm-install").mkdir()
    disks = made_up.gather().disks
    assert {str(target): str(disk.path) for target, disk in disks.items()} == {
        "/opt/vllm-install": "/opt/vllm-install",
        "/var/cache/vllm-install": "/var/cache",
        "/etc": "/etc",
        "/var/lib": "/var/lib",
    }
    for disk in disks.values():
        assert disk.device == made_up.root.stat().st_dev
        assert 0 < disk.free <= disk.total


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw", (49152, 65536, False, False)),
        ("ro", (49152, 65536, True, False)),
        ("noexec", (49152, 65536, False, True)),
    ],
)
def test_a_small_disk_of_its_own(made_up: MadeUp, options: str, expected: tuple[int, int, bool, bool]) -> None:
    (made_up.root / "opt/vllm-install").mkdir()
    probe = (
        "import sys; from pathlib import Path\n"
        "from installer.base.host import Host; from installer.checks.facts import probe_disk\n"
        "disk = probe_disk(Host(Path(sys.argv[1])), Path('/opt/vllm-install/engines'))\n"
        "print((disk.free, disk.total, disk.read_only, disk.noexec))"
    )
    script = f"""disk="$1/opt/vllm-install"
        mount -t tmpfs -o size=64k none "$disk"
        head -c 16384 /dev/zero > "$disk/file"
        mount -o remount,{options} "$disk"
        exec "$2" -c "$3" "$1\""""
    command = in_own_mounts(script, made_up.root, sys.executable, probe)
    done = Host().run(*command, cwd=REPO)
    assert done.stdout.strip() == str(expected)


def test_gathering_changes_nothing(made_up: MadeUp) -> None:
    made_up.python("/usr/bin/python3.11", "3.11.2")
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in made_up.root.rglob("*"))
    seen = [made_up.gather() for _ in range(2)]  # while others write to this disk
    first, second = (replace(f, disks={p: replace(d, free=0) for p, d in f.disks.items()}) for f in seen)
    assert first == second
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in made_up.root.rglob("*")) == before


def test_this_machine() -> None:
    seen = facts.gather(Host(), Settings(python=sys.executable), LAYOUT)
    assert seen.arch == os.uname().machine
    assert seen.is_root == (os.geteuid() == 0)
    assert seen.cpu_flags
    assert seen.glibc >= (2, 17)
    assert seen.memory_total >= seen.memory_available > 0
    assert seen.memory_total >= seen.node_memory > 0
    assert sys.version_info[:3] in [i.version for i in seen.interpreters]
