"""Each alert fired by a planted fault, by a real Prometheus and Alertmanager to a webhook; doctor then says why."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from installer.monitor.rules import alerts
from scripts.alerts import FIRED
from tests.kit.alerting import HOME, PLANTED, Watch
from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, chat, cli, is_up, main_pid, processes, standin, until

pytestmark = [
    pytest.mark.root, pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]  # fmt: skip

UNIT = f"/etc/systemd/system/{SERVICE}.service"
CACHE = f"/var/cache/{SERVICE}"
RESTART = f"systemctl daemon-reload; systemctl reset-failed {SERVICE} || :; systemctl restart --no-block {SERVICE}"
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


GPU = 'gpu="0",uuid="GPU-1"'
ECC = f'vllm_install_gpu_ecc_errors_total{{{GPU},kind="uncorrected"}}'
# Faults that no machine here has: the row that its collector would write.
ROWS = {
    "VllmGpuLost": 'gpu_lost{service="other",uuid="GPU-1"} 1',
    "VllmGpuXid": f'gpu_xid_total{{{GPU},xid="79"}} 1',
    "VllmGpuEcc": f"{ECC.removeprefix('vllm_install_')} 4",
    "VllmCertificateExpires": 'certificate_expires_timestamp_seconds{service="other"} 1',
    "VllmFallback": 'fallback{service="other"} 1',
    "VllmReplicaDown": 'members{service="other"} 2\nvllm_install_members_up{service="other"} 1',
    "VllmGpuHot": f'gpu_throttled{{{GPU},reason="hardware_thermal"}} 1',
    "VllmGpuPowerCapped": f'gpu_throttled{{{GPU},reason="power_brake"}} 1',
    "VllmGpusUnreadable": "gpus_readable 0",
}
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
    Fault("VllmRestarting", f"for n in 1 2 3; do until systemctl is-active -q {SERVICE}; do sleep 0.2; done; "
          f"systemctl kill --signal=KILL {SERVICE}; sleep 2; done", "restarted-by-itself"),
    Fault("VllmStartSlow", f"mkdir -p {UNIT}.d; printf '[Service]\\nTimeoutStartSec=25\\n' >{UNIT}.d/fault.conf; "
          f"{says('stall=load')}; {RESTART}", "dropin-breaks"),
    Fault("VllmFiguresStale", "systemctl stop watch-collect; mkdir -p /etc/vllm-install/monitor; "
          "rm /var/lib/prometheus/node-exporter/vllm-install.prom", "figures-stale"),
]  # fmt: skip
CLEAR = f"""
    systemctl stop fault 2>/dev/null || :
    umount /var/lib/vllm-usage 2>/dev/null || :
    rm -rf {CACHE}/standin {PLANTED} {UNIT}.d /etc/vllm-install/monitor
    cp -a /root/before/. /
    echo {KEY} >{HOME}/key
    systemctl daemon-reload
    systemctl reset-failed {SERVICE} 2>/dev/null || :
"""


@pytest.fixture(scope="module")
def watch(standin_wheels: Path) -> Iterator[Watch]:
    with Machine() as machine:
        key = cli(machine, "deploy", *standin(standin_wheels)).key
        cli(machine, "set-apikey", "--name", "monitor", "--role", "metrics", "-", stdin=KEY)
        machine.shell(f"mkdir /root/before; cp -a --parents {UNIT} /root/before")
        found = Watch.start(machine, KEY)
        found.client = key
        yield found
        if os.environ.get("GOLDEN") == "write":
            FIRED.write_text(json.dumps({**json.loads(FIRED.read_text()), **SEEN}, indent=1) + "\n")


SEEN: dict[str, dict[str, object]] = {}


def plant(watch: Watch, fault: Fault) -> None:
    machine = watch.machine
    if fault.command:
        cli(machine, *fault.command)
    machine.shell(fault.arrange)


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
            until("it comes", lambda: asked(watch) and watch.has_come(fault.alert), machine, 45)
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
    machine.shell(CLEAR)
    if fault.undo:
        cli(machine, *fault.undo)
    if fault.alert == "VllmFiguresStale":
        watch.collect()
    if fault.asks or fault.alert in ("VllmHung", "VllmRestarting") or main_pid(machine) != pid:
        machine.run("systemctl", "restart", SERVICE)
    until("it serves again", lambda: is_up(machine), machine)


def test_what_no_machine_here_has_and_a_watcher_that_is_stopped(watch: Watch) -> None:
    machine, pid = watch.machine, main_pid(watch.machine)
    for alert in (*ROWS, "VllmWatcherSilent"):
        watch.mark(alert)
    machine.write(PLANTED, f"{ECC} 3\n")
    until("it is read", lambda: watch.query(ECC), machine)
    began = time.monotonic()
    machine.write(PLANTED, "".join(f"vllm_install_{row}\n" for row in ROWS.values()))
    watcher = next(pid for pid, line in processes(machine).items() if "vllm_watcher.py" in line)
    machine.shell(f"kill -STOP {watcher}")
    for alert in ROWS:
        SEEN[alert] = {"seconds": round(watch.fired(alert, began)), "doctor": ""}
    seconds = watch.fired("VllmWatcherSilent", began)
    assert first_finding(machine) == "watcher-silent"
    SEEN["VllmWatcherSilent"] = {"seconds": round(seconds), "doctor": "watcher-silent"}
    assert main_pid(machine) == pid


def test_every_alert_was_fired() -> None:
    assert {*ROWS, *(fault.alert for fault in FAULTS), "VllmWatcherSilent"} == {alert.name for alert in alerts()}
    named = {alert.name: alert.doctor for alert in alerts()}
    assert [fault for fault in FAULTS if fault.finding not in named[fault.alert]] == []
