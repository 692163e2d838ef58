"""The alert rules by Prometheus's own judge: each fires on the series of its fault, and not on those beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from installer.diagnosis import doctor
from installer.diagnosis.gpu_faults import faults
from installer.diagnosis.signatures import signatures
from installer.monitor.rules import TABLE, alerts, rules, scaled
from scripts import alerts as page

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
E, K, G = '{service="a",member="0"}', '{service="a",key="x"}', '{gpu="0",uuid="GPU-1"}'
P = "vllm_install_"
YEAR = 31536000


def gpu(name: str, **label: str) -> str:
    ((key, value),) = label.items()
    return f'{P}gpu_{name}{{gpu="0",uuid="GPU-1",{key}="{value}"}}'


@dataclass(frozen=True)
class Case:
    """Series that it fires on after `at` minutes, and others, close to them, that it does not fire on."""

    fires: dict[str, str]
    quiet: dict[str, str]
    at: int = 20
    extra: tuple[dict[str, str], ...] = field(default=())  # more that it does not fire on
    also: tuple[dict[str, str], ...] = field(default=())  # more that it fires on


def histogram(name: str, soon: str, late: str) -> dict[str, str]:
    return {
        f'vllm:{name}_seconds_bucket{{service="a",member="0",le="{le}"}}': values
        for le, values in (("0.1", soon), ("10", late), ("+Inf", late))
    }


def target(of: str) -> dict[str, str]:
    return {f'{P}target_seconds{{service="a",of="{of}"}}': "1x40"}


def late(of: str, name: str) -> Case:
    slow, soon = histogram(name, "0+1x40", "0+60x40"), histogram(name, "0+60x40", "0+60x40")
    return Case({**slow, **target(of)}, {**soon, **target(of)}, 20, (slow,))


WORKS = {
    f"vllm:num_requests_running{E}": "4x40", f"vllm:prompt_tokens_total{E}": "9x40",
    f"vllm:kv_cache_usage_perc{E}": "0.4x40",
}  # fmt: skip
CASES = {
    "VllmNotServing": Case(
        {f"{P}ready{E}": "1x5 0x40", f"{P}starting_seconds{E}": "0x45"},
        {f"{P}ready{E}": "1x5 0x40", f"{P}starting_seconds{E}": "0x5 0+60x40"},
        extra=({f"{P}ready{E}": "1x18 0 1x20"},),
    ),
    "VllmRestarting": Case({f"{P}restarts_total{E}": "0x5 3x40"}, {f"{P}restarts_total{E}": "0x5 1x40"}, 10),
    "VllmStartSlow": Case(
        {f"{P}starting_seconds{E}": "0+60x10", f"{P}start_limit_seconds{E}": "600x10"},
        {f"{P}starting_seconds{E}": "0+60x10", f"{P}start_limit_seconds{E}": "7200x10"}, 9,
        also=({f"{P}starting_seconds{E}": "1201+60x10", f"{P}start_limit_seconds{E}": "7200x10"},),
    ),
    "VllmHung": Case(
        {**WORKS, f"vllm:generation_tokens_total{E}": "0+9x10 90x30"},
        {**WORKS, f"vllm:generation_tokens_total{E}": "0+9x40"},
        extra=({**WORKS, f"vllm:generation_tokens_total{E}": "90x40", f"vllm:kv_cache_usage_perc{E}": "0+0.01x40"},
               {**WORKS, f"vllm:generation_tokens_total{E}": "90x40", f"vllm:prompt_tokens_total{E}": "0+9x40"},
               {**WORKS, f"vllm:generation_tokens_total{E}": "90x40", f"vllm:num_requests_running{E}": "0x40"}),
    ),
    "VllmQueueGrowing": Case(
        {f"vllm:num_requests_waiting{E}": "20+10x40"}, {f"vllm:num_requests_waiting{E}": "500x40"},
        extra=({f"vllm:num_requests_waiting{E}": "500-9x40"}, {f"vllm:num_requests_waiting{E}": "0 9 0 9 0+3x36"}),
    ),
    "VllmTtftSlow": late("ttft", "time_to_first_token"),
    "VllmItlSlow": late("itl", "inter_token_latency"),
    "VllmCacheFull": Case(
        {f"vllm:kv_cache_usage_perc{E}": "0.97x40", f"vllm:num_preemptions_total{E}": "0+1x40"},
        {f"vllm:kv_cache_usage_perc{E}": "0.97x40", f"vllm:num_preemptions_total{E}": "7x40"},
        extra=({f"vllm:kv_cache_usage_perc{E}": "0.5x40", f"vllm:num_preemptions_total{E}": "0+1x40"},),
    ),
    "VllmKeyExpires": Case(
        {f"{P}key_expires_timestamp_seconds{K}": f"{6 * 86400}x40"},
        {f"{P}key_expires_timestamp_seconds{K}": f"{8 * 86400}x40"},
        extra=({f'{P}key_expires_timestamp_seconds{{service="a",key="x-old-2"}}': "3600x40"},),
    ),
    "VllmCertificateExpires": Case(
        {f'{P}certificate_expires_timestamp_seconds{{service="a"}}': f"{13 * 86400}x40"},
        {f'{P}certificate_expires_timestamp_seconds{{service="a"}}': f"{15 * 86400}x40"},
    ),
    "VllmRefusals": Case(
        {f"{P}refused_total{K}": "0+10x40", f"{P}requests_total{K}": "0+50x40"},
        {f"{P}refused_total{K}": "0+10x40", f"{P}requests_total{K}": "0+500x40"},
        extra=({f"{P}refused_total{K}": "0+2x40", f"{P}requests_total{K}": "0+1x40"},),
    ),
    "VllmChangeUndone": Case(
        {f'{P}rolled_back_timestamp_seconds{{service="a"}}': "600x40"},
        {f'{P}rolled_back_timestamp_seconds{{service="a"}}': "-2460x40"},
    ),
    "VllmNotifyFails": Case(
        {f'{P}notify_failures_total{{service="a"}}': "7x5 8x40"}, {f'{P}notify_failures_total{{service="a"}}': "7x40"},
    ),
    "VllmFallback": Case({f'{P}fallback{{service="a"}}': "1x40"}, {f'{P}fallback{{service="a"}}': "0x40"}),
    "VllmReplicaDown": Case(
        {f'{P}members{{service="a"}}': "2x40", f'{P}members_up{{service="a"}}': "1x40"},
        {f'{P}members{{service="a"}}': "2x40", f'{P}members_up{{service="a"}}': "2x18 1 2x20"},
        extra=({f'{P}members{{service="a"}}': "1x40", f'{P}members_up{{service="a"}}': "0x40"},),
    ),
    "VllmHostLost": Case(
        {f'{P}peer_heard{{service="a",host="gpu1",peer="gpu2"}}': "1x5 0x40"},
        {f'{P}peer_heard{{service="a",host="gpu1",peer="gpu2"}}': "1x40"},
        extra=({f'{P}peer_heard{{service="a",host="gpu1",peer="gpu2"}}': "0x40",
                f'{P}peer_heard{{service="a",host="gpu3",peer="gpu2"}}': "1x40"},),
    ),
    "VllmFiguresMissing": Case(
        {f'{P}source_failed{{source="gpus"}}': "1x40"}, {f'{P}source_failed{{source="gpus"}}': "1x5 _x40"},
    ),
    "VllmDiskFull": Case(
        {f'{P}disk_free_bytes{{what="weights"}}': "1e9x40", f'{P}disk_size_bytes{{what="weights"}}': "1e12x40"},
        {f'{P}disk_free_bytes{{what="weights"}}': "2e9x40", f'{P}disk_size_bytes{{what="weights"}}': "1e12x40"},
        extra=({f'{P}disk_free_bytes{{what="usage"}}': "1e9x40", f'{P}disk_size_bytes{{what="usage"}}': "2e10x40"},),
    ),
    "VllmGpuLost": Case({f'{P}gpu_lost{{uuid="GPU-1",service="a"}}': "1x40"}, {}),
    "VllmGpuXid": Case(
        {gpu("xid_total", xid="79"): "_x15 1x40"},
        {gpu("xid_total", xid="79"): "1x40"},
        extra=({gpu("xid_total", xid="79"): "1x2 2x40"},),
    ),
    "VllmGpuEcc": Case(
        {gpu("ecc_errors_total", kind="uncorrected"): "3x10 4x40"},
        {gpu("ecc_errors_total", kind="uncorrected"): "3x40"},
        extra=(
            {gpu("ecc_errors_total", kind="corrected"): "0+9x40"},
            {gpu("remapped_rows", kind="uncorrected"): "2x40"},
        ),
        also=({gpu("remapped_rows", kind="pending"): "1x40"},),
    ),
    "VllmGpuHot": Case(
        {gpu("throttled", reason="software_thermal"): "1x40"},
        {gpu("throttled", reason="power_cap"): "1x40"},
        extra=({f"{P}gpu_temperature_celsius{G}": "85x40"}, {f"{P}gpu_temperature_celsius{G}": "80x18 95 80x20"}),
        also=({f"{P}gpu_temperature_celsius{G}": "95x40"},),
    ),
    "VllmGpuPowerCapped": Case(
        {gpu("throttled", reason="power_brake"): "1x40"},
        {gpu("throttled", reason="power_cap"): "1x40"},
    ),
    "VllmGpusUnreadable": Case({f"{P}gpus_readable": "0x40"}, {f"{P}gpus_readable": "1x40"}),
    "VllmWatcherSilent": Case({f"{P}watchdog_age_seconds{E}": "90x40"}, {f"{P}watchdog_age_seconds{E}": "60x40"}),
    "VllmScrapeFails": Case(
        {'up{job="vllm-install",service="a",member="0"}': "0x40", f"{P}ready{E}": "1x40"},
        {'up{job="vllm-install",service="a",member="0"}': "0x40", f"{P}ready{E}": "0x40"},
        extra=({'up{job="vllm-install",service="a",member="0",host="gpu1"}': "0x40",
                f'{P}ready{{service="a",member="0",host="gpu2"}}': "1x40"},),
    ),
    "VllmFiguresStale": Case(
        {f"{P}collected_timestamp_seconds": "0x40"}, {f"{P}collected_timestamp_seconds": "0+60x40"},
        extra=({f"{P}collected_timestamp_seconds": "0+60x10 720+60x30"},),
        also=({f"{P}collected_timestamp_seconds": "0+60x40", 'up{job="vllm-install-hosts",host="gpu2"}': "0x40"},),
    ),
}  # fmt: skip


# What has begun a moment ago, and may be over in another.
BEGUN = {
    "VllmNotServing": {f"{P}ready{E}": "1x17 0x20", f"{P}starting_seconds{E}": "0x40"},
    "VllmTtftSlow": {**histogram("time_to_first_token", "0+60x15 900x24", "0+60x40"), **target("ttft")},
    "VllmItlSlow": {**histogram("inter_token_latency", "0+60x15 900x24", "0+60x40"), **target("itl")},
    "VllmRefusals": {f"{P}refused_total{K}": "0x16 0+10x20", f"{P}requests_total{K}": "0+50x40"},
    "VllmFallback": {f'{P}fallback{{service="a"}}': "0x19 1x20"},
    "VllmHostLost": {f'{P}peer_heard{{service="a",host="gpu1",peer="gpu2"}}': "1x19 0x20"},
    "VllmFiguresMissing": {f'{P}source_failed{{source="gpus"}}': "_x18 1x20"},
    "VllmReplicaDown": {f'{P}members{{service="a"}}': "2x40", f'{P}members_up{{service="a"}}': "2x19 1x20"},
    "VllmDiskFull": {
        f'{P}disk_free_bytes{{what="weights"}}': "2e9x19 1e9x20", f'{P}disk_size_bytes{{what="weights"}}': "1e12x40",
    },
    "VllmGpuHot": {gpu("throttled", reason="software_thermal"): "0x19 1x20"},
    "VllmGpuPowerCapped": {gpu("throttled", reason="power_brake"): "0x19 1x20"},
    "VllmGpusUnreadable": {f"{P}gpus_readable": "1x19 0x20"},
    "VllmScrapeFails": {'up{job="vllm-install",service="a",member="0"}': "1x19 0x20", f"{P}ready{E}": "1x40"},
    "VllmFiguresStale": {f"{P}collected_timestamp_seconds": "0+60x17 1020x22"},
}  # fmt: skip


def judged(name: str, series: dict[str, str], at: int, fires: bool) -> dict[str, object]:
    return {
        "name": f"{name} {'fires' if fires else 'is quiet'} on {series}",
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                "eval_time": f"{at}m",
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }


def promtool(*args: str | Path) -> None:
    done = subprocess.run(["promtool", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_fires_on_its_fault_and_on_nothing_close_to_it(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules())
    groups = [
        judged(name, series, case.at, series in (case.fires, *case.also))
        for name, case in CASES.items()
        for series in (case.fires, *case.also, case.quiet, *case.extra, *([BEGUN[name]] if name in BEGUN else ()))
    ]
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": groups}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests, width=1000))
    promtool("check", "rules", tmp_path / "rules.yml")
    promtool("test", "rules", tmp_path / "tests.yml")


@needs_promtool
def test_shortened_rules_are_rules_too(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules(scale=1 / 40))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_every_alert_is_judged() -> None:
    assert {alert.name for alert in alerts()} == set(CASES)


def test_what_a_test_shortens() -> None:
    assert scaled("rate(x[<5m>]) > <1200> and y < 3", 0.01) == "rate(x[3000ms]) > 12 and y < 3"
    assert scaled("rate(x[<5m>]) > <1200> and y < 3", 1) == "rate(x[5m]) > 1200 and y < 3"


def test_every_alert_names_findings_that_there_are() -> None:
    """By the source: a finding is a literal somewhere in what doctor is made of."""
    root = Path(doctor.__file__).parents[1]
    rooms = ("diagnosis", "checks", "group")
    source = "".join(path.read_text() for room in rooms for path in (root / room).rglob("*.py"))
    known = set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', source)) | {"ttft-beyond-target", "itl-beyond-target"}
    known |= {fault.id for fault in faults()} | {signature.id for signature in signatures()}
    for alert in alerts():
        assert set(alert.doctor) <= known, alert.name


def test_the_page_has_a_section_for_each_and_is_up_to_date() -> None:
    written = page.PAGE.read_text()
    assert written == page.page(), f"{TABLE} changed: make docs"
    for alert in alerts():
        assert f"\n## {alert.name}\n" in written
        assert f"runbook_url: docs/alerts.md#{alert.name.lower()}\n" in rules()
        assert f"runbook_url: https://wiki/a#{alert.name.lower()}\n" in rules(runbooks="https://wiki/a")
