"""What systemd says of a unit and its main process, and what shows that this one would make way for its successor."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.units import systemd
from installer.units.graph import Member, handle
from installer.units.journal import invocation
from installer.units.systemd import MainProcess, hands_over, has_user, running_process, unit_properties

LAYOUT = Layout("qwen3vl")
MEMBER = handle(LAYOUT)
OURS = "{ path=/e/bin/python ; argv[]=/e/bin/python /opt/vllm-install/runtime/1/vllm_launcher.py reload --api-key x ; }"


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What systemd says of the unit."""
    shown = {"ExecReload": OURS}
    monkeypatch.setattr(systemd, "unit_properties", lambda *_: shown)
    return shown


def listen(host: Host, member: Member = MEMBER) -> None:
    host.make_dir(member.run_dir)
    os.mknod(host.at(member.control), stat.S_IFSOCK | 0o600)


def test_a_supervisor_listens_to_its_successor(host: Host, reloads: dict[str, str]) -> None:
    assert not hands_over(host, MEMBER), "one of an earlier version does not"
    listen(host)
    assert hands_over(host, MEMBER)


def test_a_replica_has_a_door_to_hand_over(host: Host, reloads: dict[str, str]) -> None:
    replica = Member(LAYOUT, LAYOUT.member_name(1), 1)
    listen(host, replica)
    assert not hands_over(host, replica), "one of an earlier version has none, and the gateway would not find the next"
    host.make_dir(LAYOUT.door(1).parent)
    os.mknod(host.at(LAYOUT.door(1)), stat.S_IFSOCK | 0o666)
    assert hands_over(host, replica)


@pytest.mark.parametrize("theirs", ["", "{ path=/bin/true ; argv[]=/bin/true ; }"])
def test_a_reload_that_an_admin_replaced_brings_no_successor(host: Host, reloads: dict[str, str], theirs: str) -> None:
    listen(host)
    reloads["ExecReload"] = theirs
    assert not hands_over(host, MEMBER)


def test_a_file_or_a_link_is_nobody_who_listens(host: Host, reloads: dict[str, str]) -> None:
    listen(host)
    host.at(MEMBER.control).rename(host.at(LAYOUT.run_dir) / "elsewhere")
    host.at(MEMBER.control).symlink_to("elsewhere")
    assert not hands_over(host, MEMBER)
    host.remove(MEMBER.control)
    host.write(MEMBER.control, "")
    assert not hands_over(host, MEMBER)


# The main process


ENVIRONMENT = ("UNIT_DIGEST=0123=4", "VLLM_CACHE_ROOT=/var/cache", "CUDA_VISIBLE_DEVICES=GPU-1,GPU-2", "EMPTY=")


@pytest.fixture
def process(tmp_path: Path, reloads: dict[str, str]) -> Host:
    host = Host(tmp_path)
    reloads |= {"MainPID": "7", "ActiveState": "active"}
    host.write(Path("/proc/7/environ"), "\0".join(ENVIRONMENT) + "\0")
    host.write(LAYOUT.run_dir / "keys", f"default inference {'0' * 64} -\n")
    return host


@pytest.mark.parametrize(
    ("state", "is_up"),
    [("active", True), ("reloading", True), ("activating", False), ("deactivating", None), ("failed", None)],
)
def test_a_main_process_is_known_by_what_it_was_started_with(
    process: Host, reloads: dict[str, str], state: str, is_up: bool | None
) -> None:
    reloads["ActiveState"] = state
    keys = frozenset({("default", "0" * 64)})
    expected = None if is_up is None else MainProcess(7, "0123=4", keys, is_up, frozenset({"GPU-1", "GPU-2"}))
    assert running_process(process, MEMBER) == expected


def test_one_without_a_cache_of_vllm_is_a_gateway(process: Host) -> None:
    process.write(Path("/proc/7/environ"), "UNIT_DIGEST=x\0")
    found = running_process(process, MEMBER)
    assert found is not None
    assert (found.digest, found.gpus, found.is_gateway) == ("x", frozenset(), True)


def test_one_that_was_started_with_a_door_has_one(process: Host) -> None:
    process.write(Path("/proc/7/environ"), "\0".join((*ENVIRONMENT, "DOOR=/run/x.sock")))
    found = running_process(process, MEMBER)
    assert found is not None
    assert found.has_door


@pytest.mark.parametrize("pid", ["0", ""])
def test_where_none_runs_there_is_none(process: Host, reloads: dict[str, str], pid: str) -> None:
    reloads["MainPID"] = pid
    assert running_process(process, MEMBER) is None


def test_one_that_has_just_ended_was_started_from_no_unit_that_is_known(process: Host) -> None:
    process.remove(Path("/proc/7"))
    found = running_process(process, MEMBER)
    assert found is not None
    assert (found.digest, found.gpus) == ("", frozenset())


# What systemd is asked


def test_properties_are_asked_for_by_name_and_of_this_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/words\nprintf "Job=\\nResult=a=b\\n"; exit 4\n')
    program.chmod(0o755)
    monkeypatch.setattr("installer.base.host.PATH", f"{tmp_path}:/usr/bin:/bin")
    assert unit_properties(Host(), "a.service", "Job", "Result") == {"Job": "", "Result": "a=b"}
    assert (tmp_path / "words").read_text() == "show a.service --property Job,Result\n"
    assert unit_properties(Host(tmp_path), "a.service", "Job") == {}, "systemd knows nothing of another root"


def test_a_run_is_known_by_what_systemd_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    asked = "show a.service --property InvocationID"
    program.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] && echo InvocationID=0123\n')
    program.chmod(0o755)
    monkeypatch.setattr("installer.base.host.PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (invocation(Host(), "a.service"), invocation(Host(), "b.service")) == ("0123", "")


def test_a_user_is_known_by_the_whole_name(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert not has_user(host, "vllm")
    host.write(Path("/etc/passwd"), "root:x:0:0::/:\nvllm-a:x:990:990::/:\n")
    assert has_user(host, "vllm-a")
    assert not has_user(host, "vllm")
    assert not has_user(host, "x")
