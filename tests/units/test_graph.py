"""The units of a service: the one that people type, and the replicas that may stand behind it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from installer.base.host import Host
from installer.base.layout import Layout
from installer.spec.target import Placed, Target
from installer.units.graph import handle, members, on_disk
from installer.units.render import fingerprint, generation, process_digest, render, unit
from tests.kit.targets import replicated, target

LAYOUT = Layout("qwen3vl")
GPUS = (Placed("GPU-1", "NVIDIA L4", "/dev/nvidia0"), Placed("GPU-2", "NVIDIA L4", "/dev/nvidia1"))


def on(*gpus: tuple[Placed, ...]) -> Target:
    return replicated(*gpus, kind="cuda").target


def test_a_service_is_one_unit_of_its_name() -> None:
    (member,) = members(LAYOUT)
    assert member == handle(LAYOUT)
    assert (member.name, member.path, member.run_dir) == ("qwen3vl.service", LAYOUT.unit, LAYOUT.run_dir)
    assert member.drop_ins == Path("/etc/systemd/system/qwen3vl.service.d")
    assert member.wants_link == Path("/etc/systemd/system/multi-user.target.wants/qwen3vl.service")
    (member,) = members(LAYOUT, target())
    assert (member, member.host, member.port) == (handle(LAYOUT, target()), "0.0.0.0", 8000)


def test_replicas_are_units_of_their_own_on_the_loopback_interface() -> None:
    first, second = members(LAYOUT, on(GPUS[:1], GPUS[1:]))
    assert (first.name, first.number, first.host, first.port) == ("qwen3vl@1.service", 1, "127.0.0.1", 20001)
    assert second.path == Path("/etc/systemd/system/qwen3vl@2.service")
    assert (second.run_dir, second.control) == (Path("/run/qwen3vl@2"), Path("/run/qwen3vl@2/control"))
    assert second.holding == Path("/run/qwen3vl@2/holding")


def test_only_a_number_makes_a_unit_a_replica(tmp_path: Path) -> None:
    host = Host(tmp_path)
    others = ("qwen3vl@x", "qwen3vl@0", "qwen3vl@100", "qwen3vl@01", "qwen3vl", "qwen3vl2@1", "qwen3vl@1@2")
    for name in ("qwen3vl@10", "qwen3vl@9", *others):
        host.write(Path(f"/etc/systemd/system/{name}.service"), "")
    host.write(Path("/etc/systemd/system/qwen3vl@3.timer"), "")
    assert [member.name for member in on_disk(host, LAYOUT)] == ["qwen3vl@9.service", "qwen3vl@10.service"]
    assert [member.number for member in on_disk(host, LAYOUT)] == [9, 10]


@given(st.text() | st.integers().map("qwen3vl@{}.service".format))
def test_a_name_means_one_replica_at_most(name: str) -> None:
    number = LAYOUT.number_of(name)
    assert number is None or name in (LAYOUT.member_name(number), LAYOUT.unit_name)


def test_every_member_is_rendered_and_its_keys_are_its_own_to_say() -> None:
    for made in (target(), on(GPUS[:1], GPUS[1:])):
        files = render(made, LAYOUT)
        for member in members(LAYOUT, made):
            text = files[member.path].text
            assert fingerprint(text, member.path, LAYOUT) == fingerprint(
                text.replace("--api-key default=sha256:", "--api-key mine=sha256:"), member.path, LAYOUT
            )
            assert fingerprint(text, member.path, LAYOUT) != fingerprint(text + "Nice=5\n", member.path, LAYOUT)


def test_a_replica_has_its_own_gpus_port_and_places_and_answers_at_once_while_it_starts() -> None:
    made = on(GPUS[:1], GPUS[1:])
    lines = unit(made, LAYOUT, 2).splitlines()
    for line in (
        "PartOf=qwen3vl.service", "RuntimeDirectory=qwen3vl@2", "SyslogIdentifier=qwen3vl@2", "CacheDirectory=qwen3vl",
        "Environment=CUDA_VISIBLE_DEVICES=GPU-2", "BindPaths=-/dev/nvidia1", "Environment=HOLD=5 DRAIN=30 HEAR_OUT=30",
        "User=vllm-qwen3vl", "Description=vLLM serving Qwen/Qwen3-VL-8B-Instruct, replica 2",
    ):  # fmt: skip
        assert line in lines
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert "--host 127.0.0.1 --port 20002" in start
    assert "IPAddressDeny=link-local" in lines, "it may fetch what the service may"
    assert not {"[Install]", "WantedBy=multi-user.target"} & set(lines), "the unit of the name brings it up"
    assert not [line for line in lines if "systemctl stop" in line]


def test_replicas_on_one_gpu_start_one_after_the_other() -> None:
    def after(number: int, *gpus: tuple[Placed, ...]) -> list[str]:
        lines = unit(on(*gpus), LAYOUT, number).splitlines()
        return [line for line in lines if line.startswith("After=qwen3vl")]

    assert after(2, GPUS[:1], GPUS[1:]) == []
    assert after(2, GPUS, GPUS[1:]) == ["After=qwen3vl@1.service"]
    assert after(3, GPUS[:1], GPUS[1:], GPUS[:1]) == ["After=qwen3vl@1.service"]
    assert after(3, GPUS[:1], GPUS[:1], GPUS[:1]) == ["After=qwen3vl@2.service"]


def test_what_changes_for_one_replica_is_due_for_it_alone() -> None:
    before, after = on(GPUS[:1], GPUS[1:]), on(GPUS[:1], GPUS)
    digests = [[process_digest(made, LAYOUT, number) for number in (1, 2)] for made in (before, after)]
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]
    assert generation(before, LAYOUT) != generation(after, LAYOUT)
    assert generation(target(), LAYOUT) == (process_digest(target(), LAYOUT),)


def test_an_engine_lives_on_under_the_unit_of_the_gateway_that_will_take_its_place() -> None:
    """systemd goes by the new text while the first replica starts, and the watchdog over the engine stays armed."""
    applied = ("Type=", "NotifyAccess=", "FileDescriptorStoreMax=", "KillMode=", "KillSignal=", "TimeoutStopSec=")
    engine, gateway = (
        [line for line in unit(made, LAYOUT).splitlines() if line.startswith(applied)]
        for made in (target(), on(GPUS[:1], GPUS[1:]))
    )
    assert engine == gateway
