"""doctor on a booted host: it names the planted fault first, in every one of them, and nothing on a healthy host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.commands import check_ours
from tests.kit.life import SERVICE, cli, is_up, main_pid, standin, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
DROPIN = f"{UNIT}.d/override.conf"
SETTINGS = f"/etc/vllm-install/{SERVICE}.env"
STATE = f"/var/lib/vllm-install/{SERVICE}/state.json"
MODEL = "/var/cache/vllm-install/builtin/tiny"
CACHE = f"/var/cache/{SERVICE}"
WORDS = f"{CACHE}/last-words"
RELOAD, RESTART = "systemctl daemon-reload", f"systemctl daemon-reload; systemctl restart {SERVICE} || :"


def dropin(text: str) -> str:
    return f"mkdir -p {UNIT}.d; printf '[Service]\\n{text}\\n' >{DROPIN}; {RELOAD}"


def changed(path: str, script: str) -> str:
    return f"sed -i '{script}' {path}"


def told(fault: str) -> str:
    """Started anew, with a fault of the stand-in: no second try, so that the run is the one looked at."""
    return f"{dropin('Restart=no')}; echo {fault} >{CACHE}/standin; {RESTART}"


def dies_saying(line: str) -> str:
    quoted = line.replace("'", "'\\''")
    return f"printf '%s\\n' '{quoted}' >{WORDS}; {told('last-words')}"


@dataclass(frozen=True)
class Fault:
    id: str
    arrange: str
    is_note: bool = False
    says: str = ""  # found in the cause, the evidence or a command


UNTIL_IT_IS_KILLED = f"while [ $(systemctl show -P SubState {SERVICE}) = running ]; do sleep 0.1; done"
IMPATIENT = "Restart=no\\nEnvironment=START_PATIENCE_SEC=2"
NO_SUCH_FLAG = "s/--shutdown-timeout/--no-such-flag 3 &/"
UFW = """
    mount -t tmpfs tmpfs /usr/local/sbin
    echo '#!/bin/sh' >/usr/local/sbin/ufw
    echo 'echo "Status: active"; echo "Default: deny (incoming), allow (outgoing)"' >>/usr/local/sbin/ufw
    chmod 755 /usr/local/sbin /usr/local/sbin/ufw
"""
NO_SUCH_PROGRAM = "ExecStart=\\nExecStart=/no/such"
CONTROL = "/etc/systemd/system.control"
GUESSED = f"s/default=sha256:[0-9a-f]*/default=sha256:{sha256(b'password123456789012345678901234').hexdigest()}/"
EXPIRED = "s/default=sha256:[0-9a-f]*/&@2026-01-01T00:00:00Z/"
FAULTS = [
    Fault("service-stopped", f"systemctl stop {SERVICE}", says=f"systemctl start {SERVICE}"),
    Fault(
        "port-in-use",  # row 19 of the parity list: the process is named, and not ended
        f"systemctl stop {SERVICE}; systemd-run -q --unit=taker python3 -m http.server 8000; "
        "until ss -Hltn | grep -q :8000; do sleep 0.1; done",
        says="sudo systemctl stop taker.service",
    ),
    Fault("engine-missing", "mv /opt/vllm-install/engines /opt/vllm-install/away", says="vllm-install deploy"),
    Fault("runtime-missing", "mv /opt/vllm-install/runtime /opt/vllm-install/away"),
    Fault("runtime-changed", "sed -i '$a # mine' /opt/vllm-install/runtime/*/vllm_guard.py"),
    Fault("probe-key-missing", f"rm /var/lib/vllm-install/{SERVICE}/probe-key"),
    Fault("user-missing", changed("/etc/passwd", f"/^vllm-{SERVICE}:/d")),
    Fault("unit-missing", f"rm {UNIT}"),
    Fault("unit-masked", f"ln -sf /dev/null {UNIT}; {RELOAD}", says="unmask"),
    Fault("unit-masked", f"mkdir -p {CONTROL}; ln -sfn /dev/null {CONTROL}/{SERVICE}.service; {RELOAD}", says=CONTROL),
    Fault("unit-edited", f"{changed(UNIT, 's/^LimitNOFILE=.*/LimitNOFILE=99/')}; {RELOAD}", True, "LimitNOFILE=99"),
    Fault("dropin-breaks", dropin("MemoryDenyWriteExecute=yes"), says="sed -i"),
    Fault("dropin-weakens", dropin("NoNewPrivileges=no"), True, "NoNewPrivileges"),
    Fault("dropin-flags", dropin("ExecStart=\\nExecStart=/bin/true"), True),
    Fault("dropin-flags", dropin("ExecStart=/bin/true"), says="sed -i"),  # of two, systemd takes none
    Fault("dropin-flags", f"{dropin(NO_SUCH_PROGRAM)}; {RESTART}", says="sed -i"),
    Fault("dropin-breaks", dropin("Type=oneshot\\nRestart=always"), says="Type=oneshot"),
    Fault("settings-malformed", f"echo 'no assignment' >>{SETTINGS}", says="sudoedit"),
    Fault("settings-not-applied", f"echo 'PORT=9000' >>{SETTINGS}", True, "PORT"),
    Fault("shard-damaged", f"truncate -s -100 {MODEL}/model.safetensors"),
    Fault("tokenizer-missing", f"rm {MODEL}/tokenizer*"),
    Fault("model-config-damaged", f"echo '{{' >{MODEL}/config.json"),
    Fault("weights-missing", f"rm {MODEL}/model.safetensors"),
    Fault("permission-denied", f"chmod 0700 {MODEL}", says=f"chmod o+rx {MODEL}"),
    Fault("keys-expired", f"{changed(UNIT, EXPIRED)}; {RELOAD}", says="set-apikey"),
    Fault("key-guessable", f"{changed(UNIT, GUESSED)}; {RELOAD}", says="set-apikey"),
    Fault("key-malformed", f"{changed(UNIT, 's/default=sha256:./default=sha256:/')}; {RELOAD}"),
    Fault("record-damaged", f"echo '{{' >{STATE}"),
    Fault("change-cut-off", changed(STATE, 's/"pending": null/"pending": "set PORT=8001"/'), True, "set PORT=8001"),
    Fault("not-enabled", f"systemctl disable {SERVICE}", True, "systemctl enable"),
    Fault("flag-unknown", f"{changed(UNIT, NO_SUCH_FLAG)}; {RESTART}", says="--no-such-flag"),
    Fault("context-too-large", told("refuse-context=512"), says="--context 512"),
    Fault("engine-hung", f"echo hang >{CACHE}/standin", says="systemctl restart"),
    Fault(
        "start-hung",
        f"{dropin(IMPATIENT)}; echo stall=load >{CACHE}/standin; {RESTART}",
    ),
    Fault("disk-full", f"mount -t tmpfs -o size=4m tmpfs {CACHE}; cat /dev/zero >{CACHE}/filler 2>/dev/null || :"),
    Fault("restarted-by-itself", f"systemctl kill --signal=KILL {SERVICE}; {UNTIL_IT_IS_KILLED}", True),
    Fault("service-failed", told("die-at-start=9")),
    # Row 13: out of memory, a slow load, a GPU that idles; each with the exact command.
    Fault(
        "gpu-out-of-memory",
        dies_saying("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB."),
        says="--max-num-seqs",
    ),
    Fault("slow-load", dies_saying("INFO 11-21 [loader.py:1] Loading weights took 412.5 seconds"), True),
    Fault("limit-too-low", f"echo waiting=7 running=4 kv-usage=0.1 >{CACHE}/standin", True, "--max-num-seqs 8"),
    Fault("cache-full", f"echo waiting=7 running=4 kv-usage=0.97 >{CACHE}/standin", True, "--gpu-memory-utilization"),
    Fault("nccl", dies_saying("RuntimeError: NCCL error: unhandled system error")),
    Fault("driver-too-old", dies_saying("RuntimeError: The NVIDIA driver on your system is too old")),
    Fault("python-headers-missing", dies_saying("/tmp/x.c:6:10: fatal error: Python.h: No such file or directory")),
    Fault("firewall", UFW, True, "sudo ufw allow 8000/tcp"),
]  # fmt: skip
CLEAR = f"""
    systemctl stop taker 2>/dev/null || :
    umount {CACHE} 2>/dev/null || :
    umount /usr/local/sbin 2>/dev/null || :
    for part in engines runtime; do
        if [ -d /opt/vllm-install/away ] && [ ! -d /opt/vllm-install/$part ]; then
            mv /opt/vllm-install/away /opt/vllm-install/$part
        fi
    done
    rm -rf {CACHE}/* {UNIT}.d {UNIT} {CONTROL}
    cp -a /root/before/. /
    systemctl daemon-reload
    systemctl enable {SERVICE} 2>/dev/null
    systemctl reset-failed {SERVICE} 2>/dev/null || :
"""
KEEP = f"/opt/vllm-install/runtime {UNIT} {SETTINGS} /var/lib/vllm-install /var/cache/vllm-install /etc/passwd"


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        machine.key = cli(machine, "deploy", *standin(standin_wheels)).key  # type: ignore[attr-defined]
        machine.shell(f"mkdir /root/before; cp -a --parents {KEEP} /root/before")
        yield machine


def doctor(machine: Machine) -> dict[str, Any]:
    done = machine.cli("doctor", "--json", check=False)
    assert done.returncode in (0, 8), done
    assert done.stderr == "", done.stderr
    found = dict(json.loads(done.stdout))
    assert done.returncode == (0 if found["healthy"] else 8)
    return found


def test_nothing_is_found_on_a_healthy_host(machine: Machine) -> None:
    assert doctor(machine) == {"service": SERVICE, "findings": [], "unseen": [], "healthy": True}
    assert cli(machine, "doctor").out == f"{SERVICE}: nothing is wrong\n"


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
def test_parity_row_13_the_planted_fault_is_named_first(machine: Machine, fault: Fault) -> None:
    pid = main_pid(machine)
    machine.shell(fault.arrange)
    try:
        if fault.id in ("restarted-by-itself", "slow-load"):
            until("it serves again", lambda: is_up(machine), machine)
        machine.run("journalctl", "--sync")
        found = doctor(machine)
        assert found["findings"], "nothing found"
        first = found["findings"][0]
        assert first["id"] == fault.id, found
        assert found["healthy"] is fault.is_note
        assert first["commands"]
        for finding in found["findings"]:
            check_ours(finding["commands"])
        assert fault.says in " ".join([first["cause"], first["evidence"], *first["commands"]])
        assert found["unseen"] == []
    finally:
        machine.shell(CLEAR)
        if main_pid(machine) != pid:  # what never stopped runs as it ran before
            machine.run("systemctl", "restart", SERVICE)


def test_afterwards_nothing_is_found_again(machine: Machine) -> None:
    assert doctor(machine)["findings"] == []
