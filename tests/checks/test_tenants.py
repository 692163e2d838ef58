"""What services of ours take of a host, as their records and drop-ins say, and what is left for a further one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks.placement import Choice
from installer.checks.ports import kept_for
from installer.checks.tenants import ports_of_replicas, tenants, visible_devices, with_port, with_tenants
from installer.flow.resolve import _place, _replicas, _without
from installer.spec.facts import Facts, Gpu, Process, Tenant
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Placed, Replica
from installer.units.render import render, unit
from tests.checks.test_placement import gpu
from tests.checks.test_preflight import CUDA, H200
from tests.kit.made_up import MadeUp
from tests.kit.targets import replicated, target

LAYOUT = Layout("coder")
GPU = Placed("GPU-1", "NVIDIA H200", "/dev/nvidia0")


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path / "root")


def deployed(host: Host, name: str, *gpus: Placed, kind: str = "cuda", **settings: object) -> None:
    chosen = Settings(service=name, **settings)  # type: ignore[arg-type]
    made = dataclasses.replace(target(chosen, kind=kind), gpus=gpus)
    layout = Layout(name)
    save_state(host, layout, State(name, proved=made))
    host.write(layout.unit, render(made, layout)[layout.unit].text)


def test_what_services_take_stands_in_their_records(made_up: MadeUp) -> None:
    host = Host(made_up.root)
    deployed(host, "qwen3vl", GPU, gpu_memory_utilization=0.4)
    deployed(host, "wide", tensor_parallel_size=2, vllm_args=("-pp", "2"))
    save_state(host, Layout("begun"), State("begun"))
    host.write(Layout("damaged").state_file, "{")
    assert tenants(host) == (
        Tenant("qwen3vl.service", "cuda", (GPU,), 1, 0.4),
        Tenant("wide.service", "cuda", (), 4, 0.95),
    )


def test_drop_ins_that_choose_gpus_are_found_the_last_one_counts(made_up: MadeUp) -> None:
    host = Host(made_up.root)
    deployed(host, "coder", GPU)
    assert visible_devices(host, LAYOUT) == ()
    folder = Path("/etc/systemd/system/coder.service.d")
    host.write(folder / "10-mine.conf", "[Service]\nEnvironment=A=1 CUDA_VISIBLE_DEVICES=0\nLimitCORE=0\n")
    host.write(folder / "notes.txt", "Environment=CUDA_VISIBLE_DEVICES=7\n")
    assert visible_devices(host, LAYOUT) == (("CUDA_VISIBLE_DEVICES", "0"),)
    host.write(
        Path("/run/systemd/system/coder.service.d/20.conf"), '[Service]\n Environment = "CUDA_VISIBLE_DEVICES=1"\n'
    )
    assert visible_devices(host, LAYOUT) == (("CUDA_VISIBLE_DEVICES", "1"),)
    assert tenants(host)[0].visible == (("CUDA_VISIBLE_DEVICES", "1"),)
    host.write(folder / "30.conf", "[Service]\nEnvironment=\n")
    assert visible_devices(host, LAYOUT) == ()


def test_a_replica_has_drop_ins_of_its_own_and_those_of_all(made_up: MadeUp) -> None:
    host, folder = Host(made_up.root), Path("/etc/systemd/system")
    chosen = "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES={}\n"
    host.write(folder / "coder.service.d/gpus.conf", chosen.format(9))
    host.write(folder / "coder@2.service.d/gpus.conf", chosen.format(2))

    def found() -> list[tuple[tuple[str, str], ...]]:
        return [visible_devices(host, LAYOUT, number) for number in (1, 2)]

    assert found() == [(), (("CUDA_VISIBLE_DEVICES", "2"),)], "the other is the gateway's"
    host.write(folder / "coder@.service.d/gpus.conf", chosen.format(0))
    assert found() == [(("CUDA_VISIBLE_DEVICES", "0"),), (("CUDA_VISIBLE_DEVICES", "2"),)]
    host.write(folder / "coder@.service.d/z.conf", chosen.format(7))
    assert found() == [(("CUDA_VISIBLE_DEVICES", "7"),)] * 2, "files are read by their names"


def test_a_replica_whose_gpus_are_chosen_by_hand_is_shown_all_over_every_change(made_up: MadeUp) -> None:
    host = Host(made_up.root)
    host.write(Path("/etc/systemd/system/coder@2.service.d/g.conf"), "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=0\n")
    settings, gpus = Settings(service="coder", replicas=2), (gpu(0), gpu(1))
    made = _replicas(settings, Choice(gpus, named=True), State("coder"), host, Report())
    assert [[each.uuid for each in replica.gpus] for replica in made] == [[gpus[0].uuid], []]


# The next port


def test_the_next_port_is_one_that_nobody_has(made_up: MadeUp) -> None:
    host, auto = Host(made_up.root), Settings(service="coder", port=0)
    assert with_port(auto, State("coder"), host).port == 8000
    deployed(host, "qwen3vl")  # stopped: it is its own all the same
    assert with_port(auto, State("coder"), host).port == 8001
    made_up.listens("0.0.0.0", 8001, 4242)
    assert with_port(auto, State("coder"), host).port == 8002
    assert with_port(Settings(service="coder", port=9), State("coder"), host).port == 9


def test_a_port_once_taken_is_kept(made_up: MadeUp) -> None:
    proved = target(Settings(service="coder", port=8005))
    assert with_port(Settings(service="coder", port=0), State("coder", proved=proved), Host(made_up.root)).port == 8005


def test_where_every_port_is_taken_it_says_so(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("installer.checks.tenants.LAST_PORT", 8000)
    made_up.listens("0.0.0.0", 8000, 4242)
    with pytest.raises(Refused, match="no port from 8000 to 8000 is free"):
        with_port(Settings(service="coder", port=0), State("coder"), Host(made_up.root))


def test_replicas_get_ports_that_nobody_has_and_keep_them(made_up: MadeUp) -> None:
    host, two = Host(made_up.root), Settings(service="coder", replicas=2)
    assert ports_of_replicas(two, State("coder"), host) == [20001, 20002]
    made_up.listens("127.0.0.1", 20001, 4242)
    other = replicated((), (), service="chat")
    host.write(Layout("chat").unit.with_name("chat@2.service"), unit(other.target, Layout("chat"), 2))
    assert ports_of_replicas(two, State("coder"), host) == [20003, 20004]
    known = replicated((), (), service="coder").target
    assert ports_of_replicas(two, State("coder", proved=known), host) == [20001, 20002], "they listen there themselves"
    assert ports_of_replicas(two, State("coder", previous=known, proved=target()), host) == [20001, 20002]
    three = dataclasses.replace(two, replicas=3)
    assert ports_of_replicas(three, State("coder", proved=known), host) == [20001, 20002, 20003]
    taken = dataclasses.replace(two, port=20002)
    assert ports_of_replicas(taken, State("coder", proved=known), host) == [20001, 20003]


def test_replicas_that_a_change_left_behind_keep_the_ports_in_their_units(made_up: MadeUp) -> None:
    host, made = Host(made_up.root), replicated((), (), service="coder").target
    for replica in (Replica(1, 20007), Replica(2, 20009)):
        moved = dataclasses.replace(made, replicas=(replica,))
        host.write(LAYOUT.unit.with_name(LAYOUT.member_name(replica.number)), unit(moved, LAYOUT, replica.number))
    assert ports_of_replicas(made.settings, State("coder"), host) == [20007, 20009]


def test_the_port_of_a_replica_is_its_services(made_up: MadeUp) -> None:
    host, made = Host(made_up.root), replicated((), (), service="chat").target
    host.write(Layout("chat").unit.with_name("chat@2.service"), unit(made, Layout("chat"), 2))
    assert kept_for(host, "0.0.0.0", 20002, LAYOUT) == "chat"
    assert kept_for(host, "0.0.0.0", 20002, Layout("chat")) is None
    host.write(Layout("chat").unit, unit(made, Layout("chat")))
    assert kept_for(host, "0.0.0.0", 8000, LAYOUT) == "chat", "where its gateway listens"


def test_replicas_on_one_gpu_take_more_of_it(made_up: MadeUp) -> None:
    host = Host(made_up.root)
    deployed(host, "chat", GPU, replicas=2, gpu_memory_utilization=0.4, gpus=("GPU-1",))
    assert [(tenant.count, tenant.share) for tenant in tenants(host)] == [(2, 0.8)]
    both = (GPU, Placed("GPU-2", "NVIDIA H200"))
    deployed(host, "chat", *both, replicas=2, gpu_memory_utilization=0.4, gpus=("GPU-1", "GPU-2"))
    assert [(tenant.count, tenant.share) for tenant in tenants(host)] == [(2, 0.4)]


# From what is asked to what is stored


def place(settings: Settings, seen: Facts, kind: str = "cuda") -> tuple[Settings, Facts, tuple[Placed, ...]]:
    settings, seen, choice = _place(settings, seen, kind, LAYOUT, Report())
    return settings, seen, choice.placed


def two() -> tuple[Gpu, Gpu]:
    first = dataclasses.replace(H200, index=0, node="/dev/nvidia1", pci="0000:18:00.0")
    return first, dataclasses.replace(first, uuid="GPU-2", index=1, node="/dev/nvidia0", pci="0000:3b:00.0")


def test_what_was_named_by_number_is_stored_by_uuid_and_auto_stays_auto() -> None:
    seen = dataclasses.replace(CUDA, gpus=two())
    for word in ("1", "3b:00.0", "GPU-2"):
        settings, narrowed, placed = place(Settings(gpus=(word,)), seen)
        assert settings.gpus == ("GPU-2",)
        assert placed == (Placed("GPU-2", "NVIDIA H200", "/dev/nvidia0"),)
        assert narrowed.gpus == two()[1:], "what fits is reckoned with these alone"
    settings, narrowed, placed = place(Settings(), seen)
    assert (settings.gpus, placed[0].uuid) == (("auto",), "GPU-1")
    assert place(Settings(), CUDA, "cpu")[1].gpus == CUDA.gpus


def test_a_drop_in_that_comes_along_leaves_what_was_named_as_it_was() -> None:
    seen = dataclasses.replace(CUDA, gpus=two(), visible=(("CUDA_VISIBLE_DEVICES", "1"),))
    settings, narrowed, placed = place(Settings(gpus=("0",)), seen)
    assert (settings.gpus, narrowed.gpus, placed) == (("0",), two()[1:], ())


def test_an_adopted_deployment_stays_on_its_gpu_and_its_memory_comes_free() -> None:
    first, second = two()
    old = Process(31, "vllm serve", "old.service", 130 * 1024**3)
    second = dataclasses.replace(second, memory_used=old.memory, holders=(old,))
    seen = _without("old.service", dataclasses.replace(CUDA, gpus=(first, second)), LAYOUT)
    _, narrowed, placed = place(Settings(), seen)
    assert placed[0].uuid == "GPU-2"
    assert narrowed.gpus[0].holders[0].unit == LAYOUT.unit_name


def test_the_facts_know_of_the_others(made_up: MadeUp) -> None:
    host = Host(made_up.root)
    deployed(host, "qwen3vl", GPU)
    seen = with_tenants(made_up.gather(), host, LAYOUT)
    assert [tenant.unit for tenant in seen.tenants] == ["qwen3vl.service"]
    assert seen.visible == ()
