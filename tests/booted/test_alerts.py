"""Each alert fired by a planted fault, by a real Prometheus and Alertmanager to a webhook; doctor then says why."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from installer.monitor.rules import alerts
from scripts.alerts import FIRED
from tests.kit import nvml
from tests.kit.alerting import HOME, Watch
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO
from tests.kit.certificates import certificate
from tests.kit.gpu_host import MISMATCH, A, B, gpu, has, kernel_says, load_driver, tools
from tests.kit.life import MODEL, SERVICE, chat, cli, is_up, main_pid, processes, standin, until
from tests.kit.standin.wheel import build_wheel

pytestmark = [
    pytest.mark.root, pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]  # fmt: skip

UNIT = f"/etc/systemd/system/{SERVICE}.service"
CACHE = f"/var/cache/{SERVICE}"
RESTART = f"systemctl daemon-reload; systemctl reset-failed {SERVICE} || :; systemctl restart --no-block {SERVICE}"
MAIN = f"systemctl show --property=MainPID --value {SERVICE}"
OTHER = "other"
KEY = "sk-" + secrets.token_hex(24)


def says(words: str) -> str:
    """What the stand-in engine is to do, or to tell of itself."""
    return f"echo '{words}' >{CACHE}/standin"


def rises(words: str, by: str) -> str:
    return (
        f"systemd-run -q --unit=fault sh -c 'n=20; while :; do n=$((n+5)); "
        f"echo {words} {by}=$n >{CACHE}/standin.new; mv {CACHE}/standin.new {CACHE}/standin; sleep 0.5; done'"
    )


@dataclass(frozen=True)
class Fault:
    alert: str
    arrange: str
    finding: str  # what doctor says first
    command: tuple[str, ...] = ()  # of vllm-install, before it; and what takes it back
    undo: tuple[str, ...] = ()
    asks: bool = False  # whether clients ask meanwhile
    code: int = 0  # of the command
    seen: str = ""  # what Prometheus has to have read of it before the rest comes


FAULTS = [
    Fault("VllmNotServing", f"systemctl stop {SERVICE}", "service-stopped"),
    Fault("VllmHung", says("hang running=4"), "engine-hung"),
    Fault("VllmQueueGrowing", rises("running=4 kv-usage=0.1", "waiting"), "limit-too-low"),
    Fault("VllmCacheFull", rises("running=4 waiting=9 kv-usage=0.97", "preemptions"), "cache-full"),
    Fault("VllmTtftSlow", ":", "ttft-beyond-target", ("set", "TARGET_TTFT=1ms"), ("set", "TARGET_TTFT="), asks=True),
    Fault("VllmItlSlow", says("slow-tokens"), "itl-beyond-target", ("set", "TARGET_ITL=20ms"), ("set", "TARGET_ITL="),
          asks=True),
    Fault("VllmRefusals", ":", "requests-refused", ("keys", "limit", "default", "--requests", "1/min"),
          ("keys", "limit", "default", "--none"), asks=True),
    Fault(
        "VllmKeyExpires", f"sed -i \"s/default=sha256:[0-9a-f]*/&@$(date -ud +1hour +%FT%TZ)/\" {UNIT}", "key-expires",
    ),
    Fault("VllmDiskFull", "mount -t tmpfs -o size=400m tmpfs /var/lib/vllm-usage; "
          "head -c 395M /dev/zero >/var/lib/vllm-usage/filler", "disk-low"),
    Fault("VllmScrapeFails", f"echo another-key-0123456789abcdefghij >{HOME}/key; mkdir -p /etc/vllm-install/monitor; "
          f"cp {HOME}/key /etc/vllm-install/monitor/key", "monitor-key-refused"),
    Fault("VllmChangeUndone", ":", "change-undone", ("set", "VLLM_ARGS=--additional-config last-words"), code=6),
    Fault("VllmNotifyFails", f"{sys.executable} -m installer alarm --test || :", "notify-failed",
          ("set", "NOTIFY_COMMAND=/bin/false"), ("set", "NOTIFY_COMMAND="), seen="vllm_install_notify_failures_total"),
    Fault("VllmFiguresMissing", f"sed -i 's/default=sha256:[0-9a-f]*/default=sha256:none/' {UNIT}", "key-malformed"),
    Fault("VllmRestarting", f"mkdir -p {UNIT}.d; printf '[Service]\\nRestartSec=0\\n' >{UNIT}.d/fault.conf; "
          f"systemctl daemon-reload; for n in 1 2 3; do was=$({MAIN}); systemctl kill --signal=KILL {SERVICE}; "
          f"until is=$({MAIN}) && [ $is != 0 ] && [ $is != $was ]; do sleep 0.2; done; done", "restarted-by-itself"),
    Fault("VllmStartSlow", f"mkdir -p {UNIT}.d; printf '[Service]\\nTimeoutStartSec=25\\n' >{UNIT}.d/fault.conf; "
          f"{says('stall=load')}; {RESTART}", "dropin-breaks"),
    Fault("VllmFiguresStale", "systemctl stop watch-collect; mkdir -p /etc/vllm-install/monitor; "
          "rm /var/lib/prometheus/node-exporter/vllm-install.prom", "figures-stale"),
]  # fmt: skip
BEFORE = f"mkdir -p /root/before; cp -a --parents {UNIT} /root/before"
CLEAR = f"""
    systemctl stop fault 2>/dev/null || :
    umount /var/lib/vllm-usage 2>/dev/null || :
    rm -rf {CACHE}/standin {UNIT}.d /etc/vllm-install/monitor
    cp -a /root/before/. /
    echo {KEY} >{HOME}/key
    systemctl daemon-reload
    systemctl reset-failed {SERVICE} 2>/dev/null || :
"""


@pytest.fixture(scope="module")
def watch(standin_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with Machine(binds=tools(tmp_path_factory.mktemp("tools"))) as machine:
        has(machine, {A: 1, B: 0})
        key = cli(machine, "deploy", *standin(standin_wheels)).key
        cli(machine, "set-apikey", "--name", "monitor", "--role", "metrics", "-", stdin=KEY)
        machine.shell(BEFORE)
        found = Watch.start(machine, KEY)
        found.client = key
        yield found
        write_seen()


def write_seen() -> None:
    if os.environ.get("GOLDEN") == "write":
        FIRED.write_text(json.dumps({**json.loads(FIRED.read_text()), **SEEN}, indent=1) + "\n")


SEEN: dict[str, dict[str, object]] = {}


def plant(watch: Watch, fault: Fault) -> None:
    machine = watch.machine
    if fault.command:
        cli(machine, *fault.command, code=fault.code)
    if fault.seen:
        until("it is read", lambda: watch.query(fault.seen), machine)
    machine.shell(f"cd {REPO}; {fault.arrange}")


def first_finding(machine: Machine) -> str:
    done = machine.cli("doctor", "--json", check=False)
    findings = json.loads(done.stdout)["findings"]
    return str(findings[0]["id"]) if findings else ""


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.alert for fault in FAULTS])
def test_the_alert_comes_and_doctor_says_why(watch: Watch, fault: Fault) -> None:
    machine = watch.machine
    watch.mark(fault.alert)
    pid, began = main_pid(machine), time.monotonic()
    try:
        plant(watch, fault)
        if fault.asks:
            until("it comes", lambda: asked(watch) and watch.has_come(fault.alert), machine)
        seconds = watch.fired(fault.alert, began)
        if fault.alert == "VllmRestarting":
            until("it is back", lambda: is_up(machine), machine)
        assert first_finding(machine) == fault.finding
        SEEN[fault.alert] = {"seconds": round(seconds), "doctor": fault.finding}
    finally:
        clear(watch, fault, pid)


def asked(watch: Watch) -> bool:
    for _ in range(10):
        chat(watch.machine, watch.client)
    return True


def clear(watch: Watch, fault: Fault, pid: int) -> None:
    machine = watch.machine
    if fault.alert == "VllmStartSlow":  # what stalls while it loads does not hear that it is to stop
        machine.run("systemctl", "kill", "--signal=KILL", SERVICE, check=False)
    machine.shell(CLEAR)
    if fault.undo:
        cli(machine, *fault.undo)
        machine.shell(BEFORE)
    if fault.alert == "VllmFiguresStale":
        watch.collect()
    if fault.asks or fault.alert in ("VllmHung", "VllmRestarting") or main_pid(machine) != pid:
        machine.run("systemctl", "restart", SERVICE)
    until("it serves again", lambda: is_up(machine), machine)


# Of another service: two replicas on a GPU each, HTTPS, and an endpoint that answers in its place. In three turns.
SOON = {
    "VllmCertificateExpires": "tls", "VllmReplicaDown": "service-stopped", "VllmGpuHot": "gpu-hot",
    "VllmGpuPowerCapped": "gpu-power-capped", "VllmGpuEcc": "gpu-remap-pending",
}  # fmt: skip
LOST = {"VllmGpuLost": "gpu-off-bus", "VllmGpuXid": "gpu-stuck", "VllmFallback": "service-stopped"}
BLIND = {"VllmGpusUnreadable": "driver-mismatch"}
STUCK = (
    "NVRM: Xid (PCI:0000:16:00): 109, pid=7, name=python3, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x58005"
)


def deploy_other(machine: Machine, wheels: Path) -> Path:
    """What its GPUs say of themselves is what is laid where the path leads that this gives."""
    folder = wheels.with_name("standin-cuda")
    build_wheel(folder, name="vllm")
    library = load_driver(machine)
    certificate(machine.at("/etc/tls"), "localhost", "127.0.0.1")
    machine.write("/etc/tls/other.key", "sk-theirs\n", 0o600)
    gateway = ("--tls-cert", "/etc/tls/tls.pem", "--tls-key", "/etc/tls/tls.key", "--fallback-key-file")
    fallback = ("/etc/tls/other.key", "--fallback-url", "http://127.0.0.1:9998/v1")
    engines = ("--model", MODEL, "--find-links", str(folder), "--offline", "--replicas", "2", "--port", "8001")
    cli(machine, "deploy", "--service", OTHER, *engines, *gateway, *fallback)
    return library


def come(watch: Watch, expected: dict[str, str], began: float) -> None:
    """Each of them, and doctor has what explains it."""
    seconds = {alert: round(watch.fired(alert, began)) for alert in expected}
    said = watch.machine.cli("doctor", "--service", OTHER, "--json", check=False).stdout
    found = [finding["id"] for finding in json.loads(said)["findings"]]
    assert [name for name in expected.values() if name not in found] == [], found
    SEEN.update({alert: {"seconds": seconds[alert], "doctor": name} for alert, name in expected.items()})


def test_replicas_and_gpus_that_fail_and_a_watcher_that_is_stopped(watch: Watch, standin_wheels: Path) -> None:
    machine = watch.machine
    # Of a silent watcher the alert tells after 80 s: all else is done meanwhile, for which systemd is to wait longer.
    machine.write(f"{UNIT}.d/patient.conf", "[Service]\nWatchdogSec=240\n")
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE}")
    watch.mark("VllmWatcherSilent")
    silent, pid, stopped_at = replace(watch), main_pid(machine), time.monotonic()
    machine.shell(f"kill -STOP {next(pid for pid, line in processes(machine).items() if 'vllm_watcher.py' in line)}")
    library = deploy_other(machine, standin_wheels)
    until("its figures are read", lambda: watch.query('vllm_install_gpu_xid_total{gpu="0",xid="109"} == 0'), machine)
    for alert in (*SOON, *LOST, *BLIND):
        watch.mark(alert)
    began = time.monotonic()
    certificate(machine.at("/etc/tls"), "localhost", "127.0.0.1", days=9)
    braked = gpu(B, throttled=0x80, ecc_uncorrected=4, remapped_pending=1)
    nvml.say(library, [gpu(A, throttled=0x40, temperature=95), braked])
    # In this order: a reload reaches the replicas, too, and who is stopped in the midst of one has failed.
    machine.shell(f"systemctl stop {OTHER}@2; systemctl reload {OTHER}")
    come(watch, SOON, began)
    began = time.monotonic()
    nvml.say(library, [gpu(A), gpu(B, handle=15)])
    kernel_says(machine, STUCK)
    machine.shell(f"systemctl stop {OTHER}@1")
    come(watch, LOST, began)
    seconds = silent.fired("VllmWatcherSilent", stopped_at)
    assert first_finding(machine) == "watcher-silent"
    SEEN["VllmWatcherSilent"] = {"seconds": round(seconds), "doctor": "watcher-silent"}
    assert main_pid(machine) == pid
    nvml.say(library, [gpu(A), gpu(B)])
    watch.mark("VllmGpusUnreadable")  # one that was lost could not be read either
    began = time.monotonic()
    nvml.say(library, [gpu(A), gpu(B)], init=18)
    machine.write(MISMATCH, "")
    come(watch, BLIND, began)


def test_every_alert_was_fired() -> None:
    planted = {**{fault.alert: fault.finding for fault in FAULTS}, **SOON, **LOST, **BLIND}
    planted |= {"VllmWatcherSilent": "watcher-silent", "VllmHostLost": "host-lost"}  # by tests of their own
    assert set(planted) == {alert.name for alert in alerts()}
    assert [alert.name for alert in alerts() if planted[alert.name] not in alert.doctor] == []
