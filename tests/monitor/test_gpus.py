"""Rows about GPUs on hosts that say what a test wants; the journal is a real one where that matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.checks.gpus import figures
from installer.diagnosis.scene import look
from installer.monitor import gpu_events, gpus
from installer.monitor.moment import Moment
from installer.monitor.textfile import Row, text
from installer.spec.target import Placed
from tests.diagnosis.test_doctor import SERVICE, Tree
from tests.kit import nvml
from tests.kit.nvml import h200

A, B = str(h200(0)["uuid"]), str(h200(1)["uuid"])
XID = "NVRM: Xid (PCI:0000:{}:00): {}, pid=7, name=python3, Ch 00000008"


class Journal:
    """A journalctl of the kernel's lines, which knows cursors as the real one does."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.lines = tree, Path("/lines")
        tree.write(self.lines, "")
        at = tree.host.at(self.lines)
        tree.command(
            "journalctl",
            f"case $* in *after-cursor*) n=${{*#*--after-cursor=}}; tail -n +$((${{n%% *}} + 1)) {at};;\n"
            f"*--lines=1*) tail -n 1 {at};; *--grep*) grep -E 'NVRM: .*Xid' {at};; esac",
        )

    def says(self, *lines: str) -> None:
        before = (self.tree.host.read(self.lines) or "").splitlines()
        entries = [
            json.dumps({"MESSAGE": line, "__CURSOR": str(n), "__REALTIME_TIMESTAMP": f"{n:020}"})
            for n, line in enumerate(lines, len(before) + 1)
        ]
        self.tree.write(self.lines, "".join(f"{line}\n" for line in [*before, *entries]))


def host(root: Path, *own: dict[str, object], given: tuple[str, ...] = (A,)) -> Tree:
    tree = Tree(root, gpus=tuple(Placed(uuid, "NVIDIA H200") for uuid in given))
    nvml.install(root, own)
    return tree


def rows(tree: Tree) -> list[Row]:
    return list(gpus.rows(Moment(tree.host, (look(SERVICE, tree.host),))))


def value(found: list[Row], name: str, /, **labels: str) -> float | None:
    values = [
        row.value for row in found if row.name == f"vllm_install_gpu{name}" and labels.items() <= row.labels.items()
    ]
    assert len(values) < 2
    return values[0] if values else None


def test_a_gpu_and_who_uses_it(tmp_path: Path) -> None:
    found = rows(host(tmp_path, h200(0, throttled=0x4), h200(1)))
    of = {"gpu": "0", "uuid": A}
    assert value(found, "s_readable") == 1
    assert value(found, "_info", **of, name="NVIDIA H200", driver="580.159.04", vendor="nvidia") == 1
    assert value(found, "_memory_total_bytes", **of) == 150754820096
    assert value(found, "_energy_joules_total", **of) == pytest.approx(1234567.89)
    assert value(found, "_clock_hertz", **of, clock="memory") == 3.201e9
    assert [value(found, "_throttled", **of, reason=why) for why in ("power_cap", "hardware_thermal")] == [1, 0]
    assert value(found, "_remapped_rows", **of, kind="pending") == 0
    assert [value(found, "_used_by", service=SERVICE, gpu=gpu) for gpu in ("0", "1")] == [1, None]
    assert value(found, "_action_needed") is None
    written = text(gpus.FAMILIES, found)
    assert f'vllm_install_gpu_temperature_celsius{{gpu="1",uuid="{B}"}} 44\n' in written


def test_sixteen_gpus_of_which_one_hangs_cost_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [h200(index) for index in range(16)]
    tree = host(tmp_path, *every, given=(str(every[15]["uuid"]),))
    assert len([row for row in rows(tree) if row.name == "vllm_install_gpu_info"]) == 16
    nvml.say(tmp_path, [*every[:15], h200(15, hang=1)])
    monkeypatch.setattr(figures, "WITHIN", 10.0)
    found = rows(tree)
    assert len([row for row in found if row.name == "vllm_install_gpu_info"]) == 15
    assert value(found, "s_readable") == 0
    assert "did not answer" in next(row.note for row in found if row.name == "vllm_install_gpus_readable")
    assert value(found, "_lost") is None


def test_a_gpu_that_is_gone_is_told_of_whose_it_was(tmp_path: Path) -> None:
    tree = host(tmp_path, h200(0), h200(1), given=(A, B))
    journal = Journal(tree)
    assert value(rows(tree), "_lost") is None
    nvml.say(tmp_path, [h200(0), h200(1, handle=15)])
    journal.says(XID.format("11", 79))
    found = rows(tree)
    assert value(found, "s_readable") == 0
    assert value(found, "_lost", uuid=B, service=SERVICE) == 1
    assert value(found, "_xid_total", gpu="1", uuid=B, xid="79") == 1


def test_what_the_driver_wants_done(tmp_path: Path) -> None:
    assert value(rows(host(tmp_path, h200(0, recovery=1))), "_action_needed", uuid=A, action="reset") == 1


def test_a_host_without_gpus_has_no_rows(tmp_path: Path) -> None:
    assert rows(Tree(tmp_path, kind="cpu")) == []


def test_a_card_without_a_driver_is_said(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.card()
    found = rows(tree)
    assert value(found, "s_readable") == 0
    assert found[0].note == "no driver is loaded for the NVIDIA card at 0000:01:00.0"


# Errors that the driver reported


def test_each_error_is_counted_once(tmp_path: Path) -> None:
    tree = host(tmp_path, h200(0))
    journal = Journal(tree)
    journal.says("usb 1-1: new device", XID.format("10", 31), XID.format("10", 31), "eth0: link up")
    of = {"gpu": "0", "uuid": A}
    for _ in range(2):
        found = rows(tree)
        assert [value(found, "_xid_total", **of, xid=xid) for xid in ("31", "79", "4711")] == [2, 0, None]
    journal.says(XID.format("10", 31), XID.format("10", 4711), "eth0: link down")
    found = rows(tree)
    assert [value(found, "_xid_total", **of, xid=xid) for xid in ("31", "79", "4711")] == [3, 0, 1]
    assert (tree.host.mode(gpu_events.NOTES) or 0) & 0o077 == 0


def test_notes_that_are_damaged_begin_anew(tmp_path: Path) -> None:
    tree = host(tmp_path, h200(0))
    Journal(tree).says(XID.format("10", 31))
    for damage in ("{", "[]", '{"cursor": "1", "counts": {"x": 3}, "known": {}}'):
        tree.write(gpu_events.NOTES, damage)
        assert value(rows(tree), "_xid_total", gpu="0", xid="31") == 1


def test_a_journal_that_cannot_be_asked_costs_the_counts_alone(tmp_path: Path) -> None:
    tree = host(tmp_path, h200(0))
    tree.host.remove(Path("/usr/bin/journalctl"))
    assert value(rows(tree), "_temperature_celsius", uuid=A) == 44


def test_addresses_beyond_all_gpus_are_not_counted(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    Journal(tree).says(*(XID.format(f"{bus:02x}", 31) for bus in range(100)))
    assert len(gpu_events.count(Host(tmp_path), ()).counts) == gpu_events.MOST
