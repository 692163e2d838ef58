"""What the GPUs are asked, by a library that says what a test wants; and which of them no start can succeed with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_gpus
from tests.kit import nvml
from tests.kit.nvml import h200

A, B = str(h200(0)["uuid"]), str(h200(1)["uuid"])


def asked(root: Path) -> list[dict[str, Any]]:
    program = [sys.executable, "-EsS", RUNTIME / "vllm_gpus.py", root]
    return vllm_gpus.read(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def test_every_figure_of_a_gpu_in_the_unit_of_its_name(tmp_path: Path) -> None:
    nvml.install(tmp_path, [h200(0, throttled=0x4 | 0x40 | 0x1)])
    head, gpu, complete = asked(tmp_path)
    assert (head["driver"], complete) == ("580.159.04", {"complete": True})
    assert (gpu["uuid"], gpu["name"], gpu["pci"]) == (A, "NVIDIA H200", "00000000:10:00.0")
    assert gpu["throttled"] == ["power_cap", "hardware_thermal"]
    assert gpu["figures"] == {
        "memory_used": 4 << 30, "memory_total": 150754820096, "utilization": 0.37,
        "power": pytest.approx(412.345), "power_limit": 700.0, "power_usual_limit": 700.0,
        "energy": pytest.approx(1234567.89), "temperature": 44, "memory_temperature": 51,
        "clock_sm": 1.98e9, "clock_memory": 3.201e9, "ecc_corrected": 2, "ecc_uncorrected": 0,
        "ecc_uncorrected_now": 0, "remapped_corrected": 0, "remapped_uncorrected": 0, "remapped_pending": 0,
        "remapped_failed": 0, "pcie_replays": 3, "nvlink_errors": 5, "recovery": 0,
    }  # fmt: skip


def test_an_older_driver_and_a_smaller_gpu_leave_out_what_they_do_not_know(tmp_path: Path) -> None:
    known = {"uuid": A, "name": "Tesla T4", "pci": "00000000:10:00.0", "temperature": 40, "throttled": 0x80}
    nvml.install(tmp_path, [{**known, "retired_pending": 1}], is_old=True)
    gpu = asked(tmp_path)[1]
    assert gpu["throttled"] == ["power_brake"]
    assert gpu["figures"] == {"temperature": 40, "remapped_pending": 1}


@pytest.mark.parametrize("how", ["handle", "lost"])
def test_a_gpu_that_is_gone_does_not_hide_the_others(tmp_path: Path, how: str) -> None:
    nvml.install(tmp_path, [h200(0), h200(1, **{how: 15}), h200(2)])
    first, second, third = asked(tmp_path)[1:4]
    assert second["lost"] == "GPU is lost"
    assert [each["figures"]["temperature"] for each in (first, third)] == [44, 44]


def test_a_library_of_another_driver_says_so(tmp_path: Path) -> None:
    nvml.install(tmp_path, [h200(0)], init=18)
    assert asked(tmp_path) == [{"why": "Driver/library version mismatch"}, {"complete": True}]


def test_a_driver_without_its_library_says_so(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(nvml.DRIVER)
    said, complete = asked(tmp_path)
    assert "libnvidia-ml.so.1" in said["why"]
    assert complete == {"complete": True}


def test_a_host_without_gpus_has_nothing_to_say(tmp_path: Path) -> None:
    assert asked(tmp_path) == [{"complete": True}]


def test_amd_s_by_what_the_kernel_shows(tmp_path: Path) -> None:
    node, device = tmp_path / "sys/class/kfd/kfd/topology/nodes", tmp_path / "sys/class/drm/renderD128/device"
    files = {
        node / "0/properties": "simd_count 0\n",
        node / "1/properties": "simd_count 304\ndrm_render_minor 128\nlocation_id 1280\ndomain 0\nunique_id 255\n",
        device / "product_name": "AMD Instinct MI300X\n",
        device / "mem_info_vram_used": "1024\n",
        device / "mem_info_vram_total": "4096\n",
        device / "gpu_busy_percent": "50\n",
        device / "pcie_replay_count": "7\n",
        device / "hwmon/hwmon5/power1_average": "250000000\n",
        device / "hwmon/hwmon5/power1_cap": "750000000\n",
        device / "hwmon/hwmon5/temp1_label": "junction\n",
        device / "hwmon/hwmon5/temp1_input": "61000\n",
        device / "hwmon/hwmon5/temp2_label": "mem\n",
        device / "hwmon/hwmon5/temp2_input": "55000\n",
        device / "hwmon/hwmon5/freq1_input": "2100000000\n",
        device / "ras/umc_err_count": "ue: 1\nce: 4\n",
        device / "ras/gfx_err_count": "ue: 0\nce: 2\n",
        tmp_path / "sys/module/amdgpu/version": "6.12.12\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    gpu = asked(tmp_path)[0]
    assert (gpu["index"], gpu["uuid"], gpu["pci"]) == (0, "GPU-00000000000000ff", "0000:05:00.0")
    assert (gpu["name"], gpu["driver"]) == ("AMD Instinct MI300X", "6.12.12")
    assert gpu["figures"] == {
        "memory_used": 1024, "memory_total": 4096, "utilization": 0.5, "power": 250.0, "power_limit": 750.0,
        "temperature": 61.0, "memory_temperature": 55.0, "clock_sm": 2.1e9, "pcie_replays": 7,
        "ecc_corrected": 6, "ecc_uncorrected": 1,
    }  # fmt: skip


# Before a start


@pytest.mark.parametrize(
    ("gpus", "named", "why"),
    [
        ([h200(0)], [A], ""),
        ([h200(0)], [B], "is not there any more: restart the host"),
        ([h200(0), h200(1, handle=15)], [B], "is not there any more (GPU is lost): restart the host"),
        ([h200(0), h200(1, handle=15)], [A], ""),
        ([h200(0), h200(1, lost=1)], [A, B], "(GPU is lost)"),
        ([h200(0, recovery=1)], [A], f"before a reset: sudo nvidia-smi --gpu-reset -i {A}"),
        ([h200(0, recovery=2)], [A], "before the host is restarted"),
        ([h200(0, recovery=6)], [A], "before a reset"),
        ([h200(0, recovery=7)], [A], "before the host is restarted"),
        ([h200(0, recovery=3)], [A], ""),
        ([h200(0, recovery=4)], [A], ""),
        ([h200(0, remapped_pending=1, remapped_failed=1)], [A], ""),
        ([h200(0), h200(1, recovery=1)], [A], ""),
        ([h200(0)], ["MIG-1"], ""),
    ],
)
def test_which_gpus_no_start_can_succeed_with(
    tmp_path: Path, gpus: list[dict[str, object]], named: list[str], why: str
) -> None:
    nvml.install(tmp_path, gpus)
    found = vllm_gpus.unfit(named, asked(tmp_path))
    assert (why in found) if why else found == ""


def test_a_module_that_gave_up_stops_every_start_and_nvml_does_not_show_it(tmp_path: Path) -> None:
    nvml.install(tmp_path, [h200(0)])
    assert vllm_gpus.unfit([A], asked(tmp_path)) == ""
    (tmp_path / "dev/nvidia-uvm").mkdir(parents=True)  # nothing else that root can open fails in such a way
    found = vllm_gpus.unfit([A], asked(tmp_path))
    assert found.startswith("the driver's module nvidia-uvm is broken (Is a directory)")


def test_what_a_driver_did_not_say_stops_no_start(tmp_path: Path) -> None:
    """It hangs, or it is not there yet: a later try may find it."""
    nvml.install(tmp_path, [h200(0)])
    said = asked(tmp_path)
    assert vllm_gpus.unfit([B], said)
    assert vllm_gpus.unfit([B], said[:-1]) == ""
    assert vllm_gpus.unfit([B], [{"why": "Unknown Error"}, {"complete": True}]) == ""


def test_only_whole_lines_are_read() -> None:
    assert vllm_gpus.read('{"index": 0}\n[1]\n{"index": 1, "na') == [{"index": 0}]
