"""What goes wrong on a host that has no service yet: a clear error, the documented exit code, the host as it was."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.boot.surroundings import REPO, local_wheel_folders
from tests.kit.life import SERVICE, cli, is_gone, serves, standin, until

DROP_IN = f"/etc/systemd/system/{SERVICE}.service.d"
DOWNLOADED = ("/opt/vllm-install", "/var/cache/vllm-install")
DOWNLOADS = ("/opt", *DOWNLOADED)
HUB = """
import sys
from installer.model import builtin
from tests.kit.hub import Hub
with Hub() as hub:
    for name in ("org/open", "org/gated"):
        hub.add(name, dict(builtin.files()))
    hub.repos["org/gated"].gated, hub.repos["org/gated"].token = True, "hf_token"
    print(hub.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def hub(machine: Machine) -> Iterator[str]:
    """The address of a model hub in the machine."""
    with machine.start(sys.executable, "-c", HUB) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("")


@dataclass(frozen=True)
class Fault:
    code: int
    says: tuple[str, ...]
    args: tuple[str, ...] = ()
    arrange: str = ":"
    clear: str = ":"
    standin: bool = True  # the options for the stand-in engine come first


SETTINGS_FILE = f"/etc/vllm-install/{SERVICE}.env"
STATES, UNITS, WEIGHTS = "/var/lib/vllm-install", "/etc/systemd/system", "/var/cache/vllm-install"
Scripts = tuple[str, str]  # what brings the fault about, and what ends it


def tmpfs(path: str, size: str) -> Scripts:
    return f"mkdir -p {path}; mount -t tmpfs -o size={size} tmpfs {path}", f"umount {path}; rmdir {path}"


def full(path: str) -> Scripts:
    """A copy of the directory on a disk of its own that has no room left."""
    return (
        f"mkdir -p {path} /run/full; mount -t tmpfs -o size=4m tmpfs /run/full; cp -a {path}/. /run/full; "
        f"mount --bind /run/full {path}; umount /run/full; cat /dev/zero >{path}/filler 2>/dev/null || :",
        f"umount {path}; rmdir /run/full; rmdir {path} 2>/dev/null || :",
    )


def without_index(arrange: str, clear: str) -> Scripts:
    """A host whose admin told pip to use no index, so that the wheels at hand suffice without `--offline`."""
    pip = "/etc/pip.conf"
    return (
        f"touch {pip}; mv {pip} {pip}.before; echo '[global]\nno-index = true' >{pip}; {arrange}",
        f"mv {pip}.before {pip}; [ -s {pip} ] || rm {pip}; {clear}",
    )


def misbehave(words: str, more: str = "") -> Scripts:
    """The stand-in engine's faults, asked for in a drop-in, which every deploy leaves alone."""
    lines = f"[Service]\\nEnvironment='VLLM_STANDIN={words}' {more}\\n"
    return f'mkdir {DROP_IN}; printf "{lines}" >{DROP_IN}/fault.conf', f"rm -r {DROP_IN}"


def settings_file(text: str) -> Scripts:
    return f"mkdir /etc/vllm-install; printf '{text}' >{SETTINGS_FILE}", "rm -r /etc/vllm-install"


REFUSED = {
    "unknown model": Fault(
        5, ("org/none",), ("--model", "org/none", "--hf-endpoint", "HUB", "--online")),
    "unknown revision": Fault(
        5, ("no-such-branch",),
        ("--model", "org/open", "--revision", "no-such-branch", "--hf-endpoint", "HUB", "--online")),
    "gated model": Fault(
        5, ("gated", "HF_TOKEN|hf auth login"), ("--model", "org/gated", "--hf-endpoint", "HUB", "--online")),
    "no network for the model": Fault(5, ("huggingface.co",), ("--model", "org/open", "--online")),
    "no network for the engine": Fault(
        4, ("the package index cannot be reached",), ("--model", "builtin:tiny", "--engine", "cpu"), standin=False),
    "offline, and the model is not here": Fault(5, ("org/open",), ("--model", "org/open")),
    "no such directory of a model": Fault(5, ("/srv/none",), ("--model", "/srv/none")),
    "disk too small for the engine": Fault(
        3, ("/opt/vllm-install", "too small", "free"), (), *tmpfs("/opt/vllm-install", "32m")),
    "disk too small for the weights": Fault(
        3, ("/var/cache/vllm-install", "too small"), ("--model", "org/open", "--hf-endpoint", "HUB", "--online"),
        *without_index(*tmpfs("/var/cache/vllm-install", "64m"))),
    "port taken": Fault(
        3, (r"port 8000 is taken", r"python.*\(pid \d+\)|pid \d+", "--port"), (),
        "systemd-run --quiet --unit=taker python3 -m http.server 8000; "
        "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))' 2>/dev/null; do :; done",
        "systemctl stop taker"),
    "no GPU": Fault(3, ("NVIDIA", "--engine"), ("--engine", "cuda")),
    "a unit that is not ours": Fault(
        3, (rf"{SERVICE}\.service exists already", "--service"), (),
        f"printf '[Service]\\nExecStart=/bin/true\\n' >/etc/systemd/system/{SERVICE}.service",
        f"rm /etc/systemd/system/{SERVICE}.service"),
    "a unit of the distribution": Fault(
        3, ("systemd-journald.service exists already",), ("--service", "systemd-journald")),
    "a masked unit": Fault(
        3, (rf"{SERVICE}\.service", "unmask|exists already"), (),
        f"systemctl --quiet mask {SERVICE}", f"systemctl --quiet unmask {SERVICE}"),
    "a directory of another program": Fault(
        3, (f"/var/cache/{SERVICE} exists already",), (), f"mkdir /var/cache/{SERVICE}", f"rmdir /var/cache/{SERVICE}"),
    "read-only /etc": Fault(
        3, ("/etc", "read-only", "remount"), (),
        "mount --bind /etc /etc; mount -o remount,bind,ro /etc", "umount /etc"),
    "full disk at the state": Fault(3, (f"disk is full while writing {STATES}/", "df -h"), (), *full(STATES)),
    "a relative path as service": Fault(2, (r"\.\./evil",), ("--service", "../evil")),
    "a path as service": Fault(2, ("/etc/passwd",), ("--service", "/etc/passwd")),
    "no service": Fault(2, ("service",), ("--service", "")),
    "a service with a space": Fault(2, ("a b",), ("--service", "a b")),
    "a service with a line end": Fault(2, ("service",), ("--service", "a\nb")),
    "a port that is no number": Fault(2, ("eighty",), ("--port", "eighty")),
    "a context that is no number": Fault(2, ("lots",), ("--context", "lots")),
    "a model with a line end": Fault(2, ("",), ("--model", "a\n[Service]\nExecStart=/bin/sh")),
    "a model name with a line end": Fault(2, ("",), ("--served-model-name", "a\nb")),
    "a flag that vLLM does not know": Fault(2, ("has no flag --no-such-flag",), ("--", "--no-such-flag")),
    "a flag with a line end": Fault(2, ("",), ("--", "--x", "a\nUser=root")),
    "a weak key": Fault(2, ("key",), ("--api-key-file", "/run/key"), "echo short >/run/key", "rm /run/key"),
    "an unbalanced quote in the settings file": Fault(2, (SETTINGS_FILE,), (), *settings_file('MODEL_NAME="open\\n')),
    "a bad value in the settings file": Fault(2, ("PORT", "eighty"), (), *settings_file("PORT=eighty\\n")),
    "a bare word in the settings file": Fault(
        2, (SETTINGS_FILE, "line 2"), (), *settings_file("PORT=8000\\nhello there\\n")),
    "bytes in the settings file": Fault(2, ("MODEL_NAME",), (), *settings_file("MODEL_NAME=\\377\\376\\n")),
}  # fmt: skip

UNDONE = {
    "the engine dies at its start": Fault(6, ("did not come up", "journalctl"), (), *misbehave("die-at-start=1")),
    "the engine hangs at its start": Fault(
        6, ("did not come up",), (), *misbehave("stall=load", "START_PATIENCE_SEC=2")),
    "the engine dies at the first answer": Fault(6, ("did not come up",), (), *misbehave("die-on-completion")),
    "the engine never answers": Fault(6, ("did not come up",), (), *misbehave("hang", "START_PATIENCE_SEC=2")),
    "a context that does not fit": Fault(6, ("--context 512",), (), *misbehave("refuse-context=512")),
    "full disk at the units": Fault(3, (f"disk is full while writing {UNITS}/", "df -h"), (), *full(UNITS)),
    "full disk at the weights": Fault(3, (f"disk is full while writing {WEIGHTS}", "df -h"), (), *full(WEIGHTS)),
}  # fmt: skip


def run(machine: Machine, fault: Fault, hub: str, wheels: Path) -> None:
    """Deploy into the fault: what is said and how it ends."""
    args = (*(standin(wheels) if fault.standin else ()), *(word.replace("HUB", hub) for word in fault.args))
    done = cli(machine, "deploy", *args, code=fault.code)
    for pattern in fault.says:
        assert re.search(pattern, done.err), f"{pattern!r} is missing in:\n{done.err}\n{machine.evidence()}"
    assert re.search(r"^error: .+", done.err, re.M), done.err
    # What is not valid is corrected by what the message says was expected; everything else names a way out.
    assert fault.code == 2 or re.search(r"^  help: .+", done.err, re.M), done.err
    assert done.out == ""
    print(done.err)


@contextmanager
def during(machine: Machine, arrange: str, clear: str) -> Iterator[None]:
    """The fault, for as long as it lasts."""
    machine.shell(arrange)
    try:
        yield
    finally:
        machine.shell(f"{clear}; systemctl daemon-reload")


def completes(machine: Machine, wheels: Path, bare: dict[str, str]) -> None:
    """The fault is over: the same command succeeds, and what it made can be taken away."""
    serves(machine, cli(machine, "deploy", *standin(wheels)).key)
    cli(machine, "uninstall", "--yes", "--purge")
    is_gone(machine, bare)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_host_untouched(machine: Machine, hub: str, standin_wheels: Path, name: str) -> None:
    fault, bare = REFUSED[name], snapshot(machine.root)
    with during(machine, fault.arrange, fault.clear):
        before = as_it_sees_itself(machine)
        run(machine, fault, hub, standin_wheels)
        assert difference(before, as_it_sees_itself(machine)) == []
    is_gone(machine, bare)


@pytest.mark.parametrize("name", UNDONE)
def test_undone_with_nothing_but_downloads_left(machine: Machine, hub: str, standin_wheels: Path, name: str) -> None:
    fault, bare = UNDONE[name], snapshot(machine.root)
    with during(machine, fault.arrange, fault.clear):
        before = as_it_sees_itself(machine)
        run(machine, fault, hub, standin_wheels)
        assert beyond_downloads(before, as_it_sees_itself(machine)) == []
    completes(machine, standin_wheels, bare)


def beyond_downloads(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [line for line in difference(before, after) if not line.split()[1].startswith(DOWNLOADS)]


def as_it_sees_itself(machine: Machine) -> dict[str, str]:
    """A snapshot with what is mounted in the machine, less what is mounted there from outside."""
    bound = (REPO, sys.base_prefix, *local_wheel_folders())
    return snapshot(Path(f"/proc/{machine.leader}/root"), ignore=[str(path) for path in bound])


def test_not_root(machine: Machine, standin_wheels: Path) -> None:
    before = as_it_sees_itself(machine)
    command = [sys.executable, "-m", "installer", "deploy", *standin(standin_wheels)]
    done = machine.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "root" in done.stderr
    assert "sudo" in done.stderr
    assert difference(before, as_it_sees_itself(machine)) == []


@pytest.mark.parametrize(
    "point", ["begin:1", "effect:1:3", "done:2", "effect:4:1", "done:5", "done:12", "done:13", "show"]
)
def test_an_interrupted_first_deploy_is_undone_and_can_be_rerun(
    machine: Machine, standin_wheels: Path, point: str
) -> None:
    bare = snapshot(machine.root)
    deploy = ("deploy", *standin(standin_wheels))
    for signal in ("INT", "TERM"):
        # A session of its own, as a terminal gives: Ctrl-C reaches the children of the command too, and nothing else.
        command = ("setsid", "--wait", sys.executable, "-m", "tests.kit.cut", signal, point, *deploy)
        done = machine.run(*command, check=False)
        assert done.returncode == 130, f"{done.stdout}\n{done.stderr}"
        assert f"interrupted by SIG{signal}" in done.stderr
        assert "Traceback" not in done.stderr
        if point != "show":
            assert beyond_downloads(bare, snapshot(machine.root)) == []
            if signal == "INT":  # with its downloads the next one would have other steps
                machine.run("rm", "-rf", *DOWNLOADED)
    completes(machine, standin_wheels, bare)


def test_a_second_deploy_while_one_runs_names_it(machine: Machine, standin_wheels: Path) -> None:
    bare = snapshot(machine.root)
    command = [sys.executable, "-m", "installer", "deploy", *standin(standin_wheels)]
    with during(machine, *misbehave("stall=load")), machine.start(*command) as first:
        until("the service is starting", lambda: "activating" in active(machine), machine)
        holder = machine.run("cat", f"/run/vllm-install/{SERVICE}.change.now").stdout.strip()
        assert holder.startswith("vllm-install deploy --service qwen3vl (pid ")
        second = cli(machine, "deploy", *standin(standin_wheels), code=3)
        assert f"another change is under way: {holder}" in second.err
        cli(machine, "plan", *standin(standin_wheels))  # looking is free
        machine.run("kill", "-TERM", re.findall(r"pid (\d+)", holder)[0])
        _, said = first.communicate(timeout=300)
        assert first.returncode == 130
        assert "interrupted by SIGTERM" in said
    completes(machine, standin_wheels, bare)


def test_an_engine_killed_while_it_starts_is_reported_and_undone(machine: Machine, standin_wheels: Path) -> None:
    bare = snapshot(machine.root)
    command = [sys.executable, "-m", "installer", "deploy", *standin(standin_wheels)]
    with during(machine, *misbehave("stall=load")), machine.start(*command) as deploy:
        until("vLLM is loading", lambda: "loading" in active(machine), machine)
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", SERVICE)
        _, said = deploy.communicate(timeout=300)
        assert deploy.returncode == 6, said
        assert "did not come up (signal)" in said
    completes(machine, standin_wheels, bare)


def active(machine: Machine) -> str:
    return machine.run("systemctl", "show", SERVICE, "--property=ActiveState,StatusText").stdout
