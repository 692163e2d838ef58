"""Two services on a host with two GPUs, under a real systemd: each on its own, by uuid, and no other let in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import nvml
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.gpu_host import HOST, A, B, gpu, has, load_driver, tools
from tests.kit.life import Outcome, cli, is_gone, main_pid, serves
from tests.kit.standin.wheel import build_wheel


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(binds=tools(tmp_path_factory.mktemp("tools"))) as machine:
        yield machine


@pytest.fixture(scope="module")
def options(standin_wheels: Path) -> tuple[str, ...]:
    """The stand-in under the name by which the CUDA engine is installed."""
    folder = standin_wheels.with_name("standin-cuda")
    build_wheel(folder, name="vllm")
    return ("--model", "builtin:tiny", "--find-links", str(folder), "--offline")


@pytest.fixture(autouse=True)
def _nothing_stays(machine: Machine) -> Iterator[None]:
    before = snapshot(machine.root)
    has(machine, {A: 1, B: 0})
    yield
    services = [row["service"] for row in cli(machine, "list", "--json").json]
    for service in services:
        cli(machine, "uninstall", "--service", service, "--purge", "--yes")
    machine.at(HOST).unlink()
    is_gone(machine, before, services)


def visible(machine: Machine, service: str) -> tuple[str, list[str]]:
    """What the process of a service has for a choice of GPUs, and the nodes in its /dev."""
    pid = main_pid(machine, service)
    environment = machine.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
    variables = dict(pair.partition("=")[::2] for pair in environment)
    nodes = machine.shell(f"cd /proc/{pid}/root/dev && ls -d nvidia[0-9]* || :").stdout.split()
    return variables.get("CUDA_VISIBLE_DEVICES", ""), nodes


def two_services(machine: Machine, options: tuple[str, ...]) -> tuple[Outcome, Outcome]:
    first = cli(machine, "deploy", *options, "--json")
    return first, cli(machine, "deploy", *options, "--service", "two", "--port", "auto", "--json")


def test_a_second_service_takes_the_second_gpu_and_the_next_port(machine: Machine, options: tuple[str, ...]) -> None:
    planned = cli(machine, "plan", *options, "--json").json
    assert planned["gpus"] == [{"uuid": A, "name": "NVIDIA H200", "node": "/dev/nvidia1"}]
    first, second = two_services(machine, options)
    serves(machine, first.json["api_key"])
    serves(machine, second.json["api_key"], 8001)
    assert visible(machine, "qwen3vl") == (A, ["nvidia1"])
    assert visible(machine, "two") == (B, ["nvidia0"])
    assert [gpu["uuid"] for gpu in cli(machine, "status", "--service", "two", "--json").json["gpus"]] == [B]
    assert f"NVIDIA H200 ({B}): " in cli(machine, "status", "--service", "two").out
    assert "GPU memory is held" not in machine.journal("--unit=two")
    for service in ("qwen3vl", "two"):
        pid = main_pid(machine, service)
        assert cli(machine, "deploy", "--service", service, "--port", "auto", "--json").changes == []
        assert cli(machine, "plan", "--service", service, "--json").json["changes"] == []
        assert main_pid(machine, service) == pid
        assert cli(machine, "doctor", "--service", service).code == 0
    assert "\nPORT=8001\n" in machine.at("/etc/vllm-install/two.env").read_text()
    third = cli(machine, "deploy", *options, "--service", "three", "--port", "auto", code=3)
    assert "1 GPUs were asked for, and 0 are free" in third.err
    assert f"0: NVIDIA H200 ({A}): 23.2 GiB free" in third.err
    assert "of two.service" in third.err


def test_gpus_are_asked_for_by_number_and_kept_by_uuid(machine: Machine, options: tuple[str, ...]) -> None:
    refused = cli(machine, "deploy", *options, "--gpus", "2", code=3)
    assert f"there is no GPU 2: this host has 0: NVIDIA H200 ({A}); 1: NVIDIA H200 ({B})" in refused.err
    key = cli(machine, "deploy", *options, "--gpus", "1", "--json").json["api_key"]
    assert visible(machine, "qwen3vl") == (B, ["nvidia0"])
    assert f"\nGPUS={B}\n" in machine.at("/etc/vllm-install/qwen3vl.env").read_text()
    assert cli(machine, "deploy", "--gpus", "0000:17:00.0", "--json").changes == []
    # It comes back under other numbers: the same GPU, whose node has to be let in.
    has(machine, {B: 3, A: 1})
    assert "gpu-renumbered" in [found["id"] for found in cli(machine, "doctor", "--json", code=8).json["findings"]]
    machine.shell("touch /dev/nvidia3")
    cli(machine, "deploy")
    assert visible(machine, "qwen3vl") == (B, ["nvidia3"])
    cli(machine, "set", "GPUS=auto")
    assert visible(machine, "qwen3vl") == (B, ["nvidia3"])
    serves(machine, key)
    # It goes away.
    has(machine, {A: 1})
    found = cli(machine, "doctor", "--json", code=8).json["findings"][0]
    assert (found["id"], found["cause"]) == ("gpu-gone", f"the GPU NVIDIA H200 ({B}) is not on this host")
    done = cli(machine, "deploy")
    assert f"NVIDIA H200 ({A}) takes its place" in done.err
    assert visible(machine, "qwen3vl") == (A, ["nvidia1"])
    machine.shell("rm /dev/nvidia3")


def test_a_drop_in_that_chooses_gpus_is_seen_and_wins(machine: Machine, options: tuple[str, ...]) -> None:
    cli(machine, "deploy", *options)
    assert visible(machine, "qwen3vl") == (A, ["nvidia1"])
    drop_in = "/etc/systemd/system/qwen3vl.service.d/gpus.conf"
    machine.write(drop_in, "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=1\n")
    machine.run("systemctl", "daemon-reload")
    finding = next(f for f in cli(machine, "doctor", "--json", code=8).json["findings"] if f["id"] == "gpus-by-hand")
    assert "CUDA_VISIBLE_DEVICES=1, set by hand, wins over GPUS, but the sandbox lets in other GPUs" in finding["cause"]
    planned = cli(machine, "plan")
    assert "GPUs: chosen by hand, CUDA_VISIBLE_DEVICES=1" in planned.err
    cli(machine, "deploy")
    assert visible(machine, "qwen3vl") == ("1", ["nvidia0", "nvidia1"])
    assert cli(machine, "doctor").code == 0
    shown = cli(machine, "status", "--json").json
    assert shown["gpus_by_hand"] == "CUDA_VISIBLE_DEVICES=1"
    assert "chosen by hand, CUDA_VISIBLE_DEVICES=1" in cli(machine, "status").out
    machine.at(drop_in).unlink()


@pytest.fixture
def driver(machine: Machine) -> Iterator[Path]:
    cache = machine.at("/etc/ld.so.cache")
    before = cache.read_bytes() if cache.exists() else None
    root = load_driver(machine)
    yield root
    machine.shell("rm /proc/driver/nvidia/version /dev/nvidiactl /dev/nvidia-uvm")
    for path in ("/etc/ld.so.conf.d/nvml.conf", "/root/version"):
        machine.at(path).unlink()
    for folder in (root, machine.at("/var/cache/ldconfig")):
        shutil.rmtree(folder)
    cache.write_bytes(before) if before is not None else cache.unlink()


def test_a_gpu_that_needs_a_reset_ends_the_start_with_the_reason_and_the_other_service_goes_on(
    machine: Machine, options: tuple[str, ...], driver: Path
) -> None:
    first, _ = two_services(machine, options)
    nvml.say(driver, [gpu(A), gpu(B, recovery=1)])
    machine.run("systemctl", "restart", "two", check=False)
    shown = machine.run("systemctl", "show", "two", "-p", "ActiveState,SubState,NRestarts,StatusText").stdout
    assert "ActiveState=failed\nSubState=failed\n" in shown, machine.evidence()
    assert "NRestarts=0\n" in shown
    assert f"StatusText=refused: the GPU {B} is of no use before a reset" in shown
    found = cli(machine, "doctor", "--service", "two", "--json", code=8).json["findings"][0]
    assert (found["id"], f"sudo nvidia-smi --gpu-reset -i {B}" in found["commands"][0]) == ("gpu-reset-required", True)
    assert cli(machine, "doctor").code == 0
    serves(machine, first.json["api_key"])
    nvml.say(driver, [gpu(A), gpu(B)])
    machine.run("systemctl", "start", "two")
    assert cli(machine, "doctor", "--service", "two").code == 0
