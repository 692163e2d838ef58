"""`test --model`: a throwaway server that is always cleaned up (rows 25 and 26 of the features)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer.units.syntax import sandbox
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.boot.surroundings import REPO
from tests.kit.life import MODEL, until

PID = "/root/tool.pid"
TOOL = f'echo $$ >{PID}; exec "$0" -m installer test "$@"'
# PID 1 is not systemd, as far as anybody can see: the server is kept by a process of its own alone.
BARE = ("unshare", "--mount", "sh", "-euc", 'mount -t tmpfs none /run/systemd; exec "$0" "$@"')
AROUND = [pytest.param((), id="systemd"), pytest.param(BARE, id="bare")]
# Whatever a throwaway server could leave: processes, listeners, directories, shared memory, units.
LEFT = """
ps ax -o pid,args | grep -E 'vllm|VLLM' | grep -v grep || :
ss -Hltn | grep -v ':22 ' || :
ls -d /var/tmp/vllm-install-test-* /tmp/vllm-install-test-* /dev/shm/* /var/tmp/systemd-private-*vllm* 2>/dev/null || :
systemctl list-units --all --plain --no-legend 'vllm-install-test*'
"""


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    """With engine and model of an earlier trial, which are to stay."""
    with Machine() as machine:
        done = start(machine, standin_wheels).wait()
        assert done == 0, machine.evidence()
        yield machine


@pytest.fixture(autouse=True)
def _nothing_stays(machine: Machine) -> Iterator[None]:
    before = snapshot(machine.root, ignore=[PID, "etc"])
    yield
    until("nothing is left", lambda: machine.shell(LEFT).stdout == "", machine)
    assert difference(before, snapshot(machine.root, ignore=[PID, "etc"])) == []


def tool_in(
    machine: Machine, *args: str, around: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`vllm-install test ARGS` in the machine, its pid there in a file."""
    return machine.start(*around, "sh", "-euc", TOOL, sys.executable, *args, env=env)


def start(
    machine: Machine, wheels: Path, *args: str, around: tuple[str, ...] = (), faults: str = ""
) -> subprocess.Popen[str]:
    words = (
        "--model",
        MODEL,
        "--engine",
        "cpu",
        "--tool-call-parser",
        "hermes",
        *args,
        "--",
        "--additional-config",
        faults,
    )
    return tool_in(machine, *words, around=around, env={"FIND_LINKS": str(wheels), "OFFLINE": "yes"})


def ended(tool: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = tool.communicate(timeout=600)
    assert "Traceback" not in err, err
    return tool.returncode, out, err


def kill(machine: Machine, name: str, pids: str = f"$(cat {PID})") -> None:
    machine.shell(f"kill -{name} {pids}")


def waits_at(tool: subprocess.Popen[str], words: str) -> None:
    """Return when the progress on stderr has come to this stage."""
    assert tool.stderr is not None
    said = []
    for line in tool.stderr:
        said.append(line)
        if words in line:
            return
    raise AssertionError("".join(said))


@pytest.mark.parametrize("around", AROUND)
def test_parity_row_25_it_starts_tests_and_clears_up(
    machine: Machine, standin_wheels: Path, around: tuple[str, ...]
) -> None:
    code, out, err = ended(start(machine, standin_wheels, "--json", "--image", around=around, faults="sees"))
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    assert (report["service"], report["model"], report["failed"], report["skipped"]) == (None, MODEL, 0, 0)
    assert report["tests"][0]["name"] == "models"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", report["url"])


def test_parity_row_26_its_options_mean_what_they_meant(machine: Machine, standin_wheels: Path) -> None:
    """Row 26 of the features: --port --gpus --max-len --gpu-util."""
    args = ("--port", "8765", "--gpus", "1", "--max-len", "2k", "--gpu-util", "0.3", "--json")
    code, out, err = ended(start(machine, standin_wheels, *args))
    assert code == 0, err
    assert json.loads(out)["url"] == "http://127.0.0.1:8765"
    assert json.loads(out)["tests"][0]["figures"] == {"context": 2048}


def test_while_it_starts_it_says_how_far_it_is(machine: Machine, standin_wheels: Path) -> None:
    tool = start(machine, standin_wheels, faults="slow-start=1")
    waits_at(tool, "starting a throwaway server: loading weights (")
    assert ended(tool)[0] == 0


def test_with_systemd_it_has_a_service_s_sandbox_and_a_user_of_its_own(machine: Machine, standin_wheels: Path) -> None:
    tool = start(machine, standin_wheels, faults="slow-start=60")
    waits_at(tool, "loading weights")
    unit = f"vllm-install-test-{machine.run('cat', PID).stdout.strip()}"
    names = "DynamicUser,ProtectSystem,ProtectHome,PrivateDevices,NoNewPrivileges,CapabilityBoundingSet"
    shown = machine.run("systemctl", "show", unit, f"--property={names}").stdout
    assert set(shown.splitlines()) == {
        "DynamicUser=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateDevices=yes", "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
    }  # fmt: skip
    users = machine.shell("ps ax -o user:32,args | grep 'vllm_listen' | grep -v grep").stdout
    assert users
    assert not users.startswith("root")
    kill(machine, "TERM")
    assert ended(tool)[0] == 130


@pytest.mark.parametrize("kind", ["cpu", "cuda", "rocm"])
def test_systemd_takes_the_sandbox_of_every_kind_of_service(machine: Machine, kind: str) -> None:
    lines = sandbox((REPO / f"tests/golden/{kind}.service").read_text())
    assert len(lines) > 30
    # A group of the devices that this machine does not have is not what is tested.
    properties = [f"--property={line}" for line in lines if not line.startswith("SupplementaryGroups")]
    command = ("systemd-run", "--quiet", "--collect", "--pipe", "--property=DynamicUser=yes", *properties)
    bound = "/home/ana/my models: new/qwen"  # by one of these units
    machine.shell(f"mkdir -p '{bound}'")
    assert machine.run(*command, "id", "-u").stdout.strip() not in ("", "0")
    machine.shell("rm -r /home/ana")


# Whatever ends it, nothing is left (the fixture looks)


@pytest.mark.parametrize(
    ("name", "around"), [("INT", ()), ("TERM", ()), ("HUP", ()), ("KILL", ()), ("INT", BARE), ("KILL", BARE)]
)
def test_ended_while_it_starts(machine: Machine, standin_wheels: Path, name: str, around: tuple[str, ...]) -> None:
    tool = start(machine, standin_wheels, around=around, faults="slow-start=600")
    waits_at(tool, "loading weights")
    kill(machine, name)
    code, out, _ = ended(tool)
    assert code == (130 if name != "KILL" else -9)
    assert out == ""


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ["INT", "KILL"])
def test_ended_in_the_middle_of_an_answer(
    machine: Machine, standin_wheels: Path, name: str, around: tuple[str, ...]
) -> None:
    tool = start(machine, standin_wheels, around=around, faults="token-seconds=5")
    waits_at(tool, "wrong-key: passed")
    kill(machine, name)
    assert ended(tool)[0] == (130 if name != "KILL" else -9)


def test_what_lost_its_parent_goes_too(machine: Machine, standin_wheels: Path) -> None:
    """The watcher is no child of the server's, and a stopped one does not go by itself."""
    tool = start(machine, standin_wheels, around=BARE, faults="slow-start=600")
    waits_at(tool, "loading weights")
    machine.shell("pkill -STOP -f vllm_watche[r]")
    kill(machine, "KILL")
    assert ended(tool)[0] == -9


@pytest.mark.parametrize("around", AROUND)
def test_even_if_its_keeper_is_killed(machine: Machine, standin_wheels: Path, around: tuple[str, ...]) -> None:
    tool = start(machine, standin_wheels, around=around, faults="slow-start=600")
    waits_at(tool, "loading weights")
    kill(machine, "KILL", "$(pgrep -f 'vllm-install-test$')")
    code, _, err = ended(tool)
    assert code == 6
    assert "the server's keeper ended early" in err


def test_with_systemd_even_if_both_are_killed_at_once(machine: Machine, standin_wheels: Path) -> None:
    tool = start(machine, standin_wheels, faults="slow-start=600")
    waits_at(tool, "loading weights")
    kill(machine, "KILL", f"$(cat {PID}) $(pgrep -f 'vllm-install-test$')")
    assert ended(tool)[0] == -9


# What the sandbox says: whoever is in it can write what its keeper writes


def says(machine: Machine, tool: subprocess.Popen[str], *lines: str) -> None:
    """Lines in the keeper's name; returns when the tool has read them."""
    machine.write("/root/lines", "".join(f"{line}\n" for line in (*lines, '{"status": "all of it was read"}')))
    machine.shell("cat /root/lines >/proc/$(pgrep -nf 'vllm-install-test$')/fd/1; rm /root/lines")
    waits_at(tool, "all of it was read")


@pytest.mark.parametrize("around", AROUND)
def test_what_the_sandbox_says_is_no_path_of_root_s(
    machine: Machine, standin_wheels: Path, around: tuple[str, ...]
) -> None:
    machine.shell("mkdir /root/precious; touch /root/precious/file")
    tool = start(machine, standin_wheels, around=around, faults="slow-start=600")
    waits_at(tool, "loading weights")
    says(machine, tool, '{"home": "/root/precious"}', "[" * 100_000, "x" * 3_000_000, '{"home": 5}', "[]", '{"pid": 1}')
    kill(machine, "INT")
    code, _, err = ended(tool)
    assert code == 130, err
    machine.shell("rm /root/precious/file; rmdir /root/precious")


# Faults


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("refuse-context=512", "asked 1024; this GPU fits 512\n  help: ask for at most 512: --max-len 512"),
        ("die-at-start=1", "the throwaway server ended with status 1"),
    ],
)
def test_what_does_not_start_says_why(
    machine: Machine, standin_wheels: Path, faults: str, words: str, around: tuple[str, ...]
) -> None:
    code, out, err = ended(start(machine, standin_wheels, around=around, faults=faults))
    assert (code, out) == (6, ""), err
    assert words in err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--port", "99999"), 2, "--port='99999'"),
        (("--max-len", "lots"), 2, "expected a number of tokens"),
        (("--max-len", "64k"), 3, "more than the model's own limit of 32768"),
        (("--service", "other"), 2, "a key and a name of its own"),
    ],
)
def test_what_cannot_be_is_said(
    machine: Machine, standin_wheels: Path, args: tuple[str, ...], code: int, words: str
) -> None:
    ran, out, err = ended(start(machine, standin_wheels, *args))
    assert (ran, out) == (code, ""), err
    assert words in err


def test_a_port_that_is_taken_is_said_with_its_holder(machine: Machine, standin_wheels: Path) -> None:
    hold = "import socket, time; s = socket.create_server(('', 8765)); print('on', flush=True); time.sleep(600)"
    holder = machine.start(sys.executable, "-c", hold)
    assert holder.stdout
    assert holder.stdout.readline() == "on\n"
    code, _, err = ended(start(machine, standin_wheels, "--port", "8765"))
    machine.shell("pkill -f create_serve[r]")
    holder.communicate()
    assert code == 3
    assert re.search(r"port 8765 is taken: pid \d+ \(\S*python", err), err


def test_a_fault_of_the_server_fails_the_test_that_is_for_it(machine: Machine, standin_wheels: Path) -> None:
    code, out, err = ended(start(machine, standin_wheels, "--no-tools", faults="stream=cut"))
    assert code == 6, err
    assert "failed: streaming: the stream broke off" in out


def test_a_model_that_talks_instead_of_calling_is_told_from_its_parser(machine: Machine, standin_wheels: Path) -> None:
    """Row 28 of the features: tool calls are tested where a parser is set."""
    code, out, _ = ended(start(machine, standin_wheels, faults="talks"))
    assert code == 6
    assert "failed: tools: the model answered in text instead of calling the tool" in out
    assert "check that --tool-call-parser is the one of this model's family" in out


def test_a_user_may_try_what_is_here(machine: Machine, standin_wheels: Path) -> None:
    mode = machine.at("/root").stat().st_mode & 0o777
    machine.shell(f"chmod 755 /root; touch {PID}; chmod 666 {PID}")
    user = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    code, out, err = ended(start(machine, standin_wheels, around=user))
    machine.shell(f"chmod {mode:o} /root; rm {PID}")
    assert code == 0, err
    assert " 0 failed, " in out
