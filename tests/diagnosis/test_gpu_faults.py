"""Faults of GPUs: each by a line as it was really printed, or by what the driver says; and what doctor says then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installer.base.datafile import DataError, Section
from installer.diagnosis import gpu_faults
from installer.diagnosis.gpu_faults import Example, Fault, of_line, of_lines
from installer.spec.target import Placed
from scripts import gpu_faults as page
from tests.diagnosis.test_doctor import SERVICE, Tree
from tests.kit import nvml
from tests.kit.commands import check_ours
from tests.kit.nvml import h200

FAULTS = gpu_faults.faults()
EXAMPLES = [(fault, example) for fault in FAULTS for example in fault.examples]
A, B = str(h200(0)["uuid"]), str(h200(1)["uuid"])


@pytest.mark.parametrize(("fault", "example"), EXAMPLES, ids=[f"{f.id}-{n}" for n, (f, _) in enumerate(EXAMPLES)])
def test_a_line_is_recognised_as_what_it_is(fault: Fault, example: Example) -> None:
    seen = of_line(f"[  130.456250] {example.line}")
    assert seen is not None
    assert seen.fault.id == fault.id, "an entry further up takes it"
    assert "{" not in seen.cause
    assert seen.cause.endswith(fault.decision.means)


def test_every_fault_and_every_pattern_has_a_line() -> None:
    for fault in FAULTS:
        assert fault.examples, fault.id
        for pattern in fault.patterns:
            assert any(pattern.search(example.line) for example in fault.examples), f"{fault.id}: {pattern.pattern}"


@pytest.mark.parametrize(
    ("xid", "decision"),
    [(13, "restart"), (31, "restart"), (63, "drain"), (64, "replace"), (79, "reboot"), (92, "keep"), (94, "restart"),
     (95, "reset"), (119, "reset"), (4711, "restart")],
)  # fmt: skip
def test_what_is_done_about_an_error(xid: int, decision: str) -> None:
    seen = of_line(f"NVRM: Xid (PCI:0000:3B:00): {xid}, pid=1, name=python3, Ch 00000008")
    assert seen
    assert (seen.fault.decision.name, seen.pci) == (decision, "0000:3b:00.0")


@pytest.mark.parametrize("line", ["usb 1-1: new device", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.159.04"])
def test_other_lines_mean_nothing(line: str) -> None:
    assert of_line(line) is None


def test_the_last_verdict_of_the_driver_counts() -> None:
    changed = "NVRM: Xid (PCI:0000:0{}:00): 154, GPU recovery action changed from {} to {}"
    needed = [changed.format(gpu, "0x0 (None)", "0x1 (GPU Reset Required)") for gpu in (1, 2)]
    assert [seen.pci for seen in of_lines(needed)] == ["0000:01:00.0", "0000:02:00.0"]
    done = changed.format(1, "0x1 (GPU Reset Required)", "0x0 (None)")
    assert [seen.pci for seen in of_lines([*needed, done])] == ["0000:02:00.0"]
    worse = changed.format(2, "0x1 (GPU Reset Required)", "0x2 (Node Reboot Required)")
    assert [seen.fault.id for seen in of_lines([*needed, done, worse])] == ["gpu-reboot-required"]


def test_the_root_cause_comes_first() -> None:
    lines = [
        "NVRM: Xid (PCI:0000:01:00): 45, pid=9, name=python, Ch 0000000f",
        "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
        "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
    ]
    assert [seen.fault.id for seen in of_lines(lines)] == ["gpu-off-bus", "gpu-reboot-required", "gpu-error"]


# What doctor makes of it


def row(gpu: dict[str, object], index: int) -> str:
    return f"580.159.04, 9.0, 143771, 0, {gpu['uuid']}, {index}, {gpu['pci']}, Disabled, NVIDIA H200"


def host(root: Path, *gpus: dict[str, object], given: tuple[str, ...] = (A,)) -> Tree:
    """A service that was given some of two GPUs, whose library says these things."""
    tree = Tree(root, gpus=tuple(Placed(uuid, "NVIDIA H200") for uuid in given))
    rows = "\n".join(row(gpu, index) for index, gpu in enumerate((h200(0), h200(1))))
    tree.command("nvidia-smi", f"case $* in *query-gpu*) cat <<'END'\n{rows}\nEND\n;; esac")
    nvml.install(root, gpus or (h200(0), h200(1)))
    for node in ("nvidiactl", "nvidia-uvm"):
        tree.write(Path("/dev", node), "")
    return tree


@pytest.mark.parametrize(
    ("state", "expected", "severity", "helps"),
    [
        ({"handle": 15}, "gpu-off-bus", "fault", "sudo reboot"),
        ({"recovery": 2}, "gpu-reboot-required", "fault", "sudo reboot"),
        ({"recovery": 1}, "gpu-reset-required", "fault", f"sudo nvidia-smi --gpu-reset -i {A}"),
        ({"recovery": 4}, "gpu-drain-advised", "note", f"sudo nvidia-smi --gpu-reset -i {A}"),
        ({"remapped_pending": 1}, "gpu-remap-pending", "note", f"sudo nvidia-smi --gpu-reset -i {A}"),
        ({"remapped_failed": 1}, "gpu-remap-failed", "fault", "sudo nvidia-bug-report.sh"),
        ({"throttled": 0x40, "temperature": 91}, "gpu-hot", "note", "nvidia-smi -q -d TEMPERATURE"),
        ({"throttled": 0x4, "power_limit": 350000}, "gpu-power-capped", "note", "nvidia-smi -q -d TEMPERATURE"),
    ],
)
def test_what_a_gpu_says_is_a_finding_with_a_command(
    tmp_path: Path, state: dict[str, object], expected: str, severity: str, helps: str
) -> None:
    tree = host(tmp_path, h200(0, **state), h200(1))
    found = [finding for finding in tree.findings() if finding.id == expected]
    assert [finding.severity for finding in found] == [severity]
    assert helps in found[0].commands[0]
    check_ours(list(found[0].commands))


def test_sound_gpus_are_no_finding_and_full_power_is_no_want_of_it(tmp_path: Path) -> None:
    sound = {fault.id for fault in FAULTS}
    assert not sound & set(host(tmp_path, h200(0, throttled=0x4), h200(1)).ids())


def test_a_module_that_gave_up_is_named_although_the_driver_answers(tmp_path: Path) -> None:
    tree = host(tmp_path)
    tree.host.remove(Path("/dev/nvidia-uvm"))
    tree.host.make_dir(Path("/dev/nvidia-uvm"))
    assert tree.first().id == "uvm-broken"


def test_the_gpu_of_another_service_is_not_this_one_s_trouble(tmp_path: Path) -> None:
    tree = host(tmp_path, h200(0), h200(1, recovery=1))
    tree.journal("NVRM: Xid (PCI:0000:11:00): 31, pid=7, MMU Fault")
    assert not {"gpu-reset-required", "gpu-error"} & set(tree.ids())
    tree.journal("NVRM: Xid (PCI:0000:10:00): 31, pid=7, MMU Fault")
    assert "gpu-error" in tree.ids()


def test_a_fault_of_several_gpus_is_one_finding_and_one_command(tmp_path: Path) -> None:
    tree = host(tmp_path, h200(0, recovery=1), h200(1, recovery=1), given=(A, B))
    (finding,) = [finding for finding in tree.findings() if finding.id == "gpu-reset-required"]
    assert finding.commands[0] == (
        f"sudo systemctl stop {SERVICE} && sudo nvidia-smi --gpu-reset -i {A},{B} && sudo systemctl start {SERVICE}"
    )


def test_what_the_kernel_says_of_a_gpu_is_none_of_a_cpu_service_s_trouble(tmp_path: Path) -> None:
    tree = Tree(tmp_path, kind="cpu")
    tree.journal("NVRM: Xid (PCI:0000:01:00): 79, pid=7, GPU has fallen off the bus.")
    assert "gpu-off-bus" not in tree.ids()


# The table


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"decision": "pray"}, "pray"),
        ({"xids": ["79"]}, "xids"),
        ({"patterns": ["("]}, "faults 1"),
        ({"id": "gpu-error"}, "gpu-error"),
        ({"further": 1}, "further"),
    ],
)
def test_a_table_with_a_slip_is_refused_by_name(wrong: dict[str, object], says: str) -> None:
    table = json.loads(gpu_faults.TABLE.read_text())
    table["faults"][0] |= wrong
    with pytest.raises(DataError, match=says):
        gpu_faults.parse(Section.of("table", table, "decisions faults"))


def test_the_page_for_users_is_made_of_this_table() -> None:
    assert page.PAGE.read_text() == page.page(), "run: make docs"
